"""The image files that a table names: whether they are there, when they changed, whether they can be read."""

import os

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_align.data.images import READER, decode

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def in_folder(rows, keys: tuple[str, ...], folder: str):
    """The rows with the paths in columns `keys` (a path or a list of paths per cell) taken relative to `folder`."""
    from datasets import Image, IterableDataset, List

    known = {"features": rows.features} if isinstance(rows, IterableDataset) else {}
    for key in keys:
        if "string" in str(rows.features[key]):
            rows = rows.map(joined, fn_kwargs={"key": key, "folder": folder}, input_columns=key, **known)
        if isinstance(rows.features[key], Image):
            rows = rows.cast_column(key, Image(decode=False))  # `decode` reads it, and knows the row
        elif isinstance(rows.features[key], List) and isinstance(rows.features[key].feature, Image):
            rows = rows.cast_column(key, List(Image(decode=False)))
    return rows


def joined(cell, key: str, folder: str) -> dict:
    """The cell with its paths under `folder`. A function of this module, so that `datasets` can hash it."""
    paths = cell if isinstance(cell, list) else [cell]
    paths = [os.path.join(folder, path) if isinstance(path, str) else path for path in paths]
    return {key: paths if isinstance(cell, list) else paths[0]}


def stems(folder: str) -> dict[str, str]:
    """Every file below a folder by its name without the ending: {stem: path}. FileNotFoundError if there is none."""
    found = {os.path.splitext(name)[0]: os.path.join(at, name) for at, _, files in os.walk(folder) for name in files}
    if not found:
        raise FileNotFoundError(f"{folder} is no folder with image files.")
    return found


def stamp_files(rows, columns: dict[str, str], on_corrupt: str):
    """The rows with a column `stamp`: size and modification time of each image file. Whatever is cached from the rows
    then depends on the files.

    Args:
        columns: the keys of the image columns, and their names in the file.
        on_corrupt: "error" raises FileNotFoundError for the first file that is not there; with "skip"
            `drop_unreadable` leaves its row out. One look at each file: about 5 s for a million on a local disk.
    """
    stamps, missing = [""] * len(rows), []
    for key, column in columns.items():
        for i, cell in enumerate(path_cells(rows, key)):
            for path in cell:
                try:
                    found = os.stat(path)
                except OSError:
                    missing.append((i, column, path))
                    stamps[i] += " missing"
                else:
                    stamps[i] += f" {found.st_size} {found.st_mtime_ns}"
    if missing and on_corrupt == "error":
        i, column, path = missing[0]
        row = rows.select_columns(["index", "file"])[i]
        more = f" ({len(missing)} files are missing)" if len(missing) > 1 else ""
        where = f"row {row['index']}, column {column} of {row['file']}"
        raise FileNotFoundError(f"{where}: there is no file {path or '(empty cell)'}{more}.")
    if "stamp" in rows.column_names:
        stamps = [known + new for known, new in zip(rows["stamp"][:], stamps)]
        rows = rows.remove_columns("stamp")
    return rows.add_column("stamp", stamps)


def path_cells(rows, key: str):
    """The paths in each cell of a column; none where the table itself holds the image."""
    import pyarrow.compute as pc
    from datasets import Image

    if isinstance(rows.features[key], Image):  # {"bytes", "path"}: bytes are not loaded here
        for chunk in rows.data.column(key).chunks:
            outside = pc.is_null(pc.struct_field(chunk, "bytes"))
            for path, named in zip(pc.struct_field(chunk, "path"), outside):
                yield [path.as_py()] if named.as_py() and path.as_py() else []
    elif "string" in str(rows.features[key]):
        for cell in rows[key]:
            paths = cell if isinstance(cell, list) else [cell]
            yield ["" if path is None else path for path in paths if path is None or isinstance(path, str)]


def drop_unreadable(rows, keys: tuple[str, ...], on_corrupt: str):
    """The rows whose images can be read, if `on_corrupt` is "skip"; else all of them. All images are decoded once; the
    verdict is cached until a file changes."""
    from datasets.fingerprint import Hasher

    if on_corrupt == "error":
        return rows

    def readable(*cells) -> bool:
        try:
            for cell in cells:
                decode(cell, 1, "")
        except ValueError:
            return False
        return True

    found = rows.map(
        lambda *cells: {"readable": readable(*cells)},
        input_columns=list(keys),
        remove_columns=rows.column_names,
        new_fingerprint=Hasher.hash([rows._fingerprint, keys, READER]),
        desc="images",
    )
    good = [i for i, ok in enumerate(found["readable"]) if ok]
    bad = sorted(set(range(len(rows))) - set(good))
    if bad:
        numbers = rows.select_columns("index").select(bad[:20])["index"][:]
        shown = f"{numbers}{' ...' if bad[20:] else ''}"
        rank_zero_warn(f"{len(bad)} of {len(rows)} rows hold an unreadable image and are skipped: {shown}")
    rank_zero_info(f"on_corrupt: {len(good)} of {len(rows)} rows have readable images")
    return rows.select(good)
