"""What pair datasets share."""

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.data.images import decode


def usable(rows, columns: tuple[str, ...], on_corrupt: str, folder: str = "."):
    """The rows whose images can be read, when `on_corrupt` is "skip" (looked up once, then cached); else all of them."""
    if on_corrupt == "error":
        return rows

    def readable(*cells) -> bool:
        try:
            for cell in cells:
                decode(cell, 1, "", folder)
        except ValueError:
            return False
        return True

    found = rows.map(lambda *cells: {"readable": readable(*cells)}, input_columns=list(columns), remove_columns=rows.column_names, desc="images")
    bad = [i for i, ok in enumerate(found["readable"]) if not ok]
    if bad:
        rank_zero_warn(f"{len(bad)} of {len(rows)} rows hold an unreadable image and are skipped: {bad[:20]}{' ...' if bad[20:] else ''}")
    return rows.select([i for i, ok in enumerate(found["readable"]) if ok])
