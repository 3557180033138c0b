"""Rows whose images cannot be read."""

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.data.images import decode


def drop_unreadable(rows, columns: tuple[str, ...], on_corrupt: str):
    """The rows whose images can be read, if `on_corrupt` is "skip" (looked up once, then cached); else all of them."""
    if on_corrupt == "error":
        return rows

    def readable(*cells) -> bool:
        try:
            for cell in cells:
                decode(cell, 1, "")
        except ValueError:
            return False
        return True

    look = {"input_columns": list(columns), "remove_columns": rows.column_names, "desc": "images"}
    found = rows.map(lambda *cells: {"readable": readable(*cells)}, **look)
    good = [i for i, ok in enumerate(found["readable"]) if ok]
    bad = [rows[i]["index"] for i in sorted(set(range(len(rows))) - set(good))]
    if bad:
        shown = f"{bad[:20]}{' ...' if bad[20:] else ''}"
        rank_zero_warn(f"{len(bad)} of {len(rows)} rows hold an unreadable image and are skipped: {shown}")
    return rows.select(good)
