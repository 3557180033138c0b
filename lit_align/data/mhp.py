"""MHP, the data of MPS (CVPR 2024): 918,315 comparisons in four dimensions."""

import os

from lit_align.data.judged_lists import JudgedLists
from lit_align.data.tables import read_table
from lit_align.paths import find


class MHP(JudgedLists):
    """MHP as a table: prompt, image_0, image_1, and for each dimension 1 where image_0 is better, 0 where image_1 is,
    0.5 in a tie, or nothing.

    The authors have not released the data, so the layout is ours. Dimensions are overall, aesthetics, alignment (of
    image and text) and detail.

    Args:
        path: a .parquet, .jsonl or .csv file, or a folder or hub id of a dataset. Images are encoded bytes, or paths
            relative to the file.
    """

    home = (
        "MHP was not released: set --data.path to your copy, a table with the columns prompt, image_0, image_1 and "
        "one for each dimension."
    )
    dimensions, known = {"overall": 1.0}, ("overall", "aesthetics", "alignment", "detail")

    def lists(self, split: str):
        table = read_table(self.path, self.splits[split], self.revision)
        require(table, self.path, ("prompt", "image_0", "image_1", *self.dimensions), self.home)
        folder = os.path.dirname(find(self.path))
        for i, row in enumerate(undecoded(table)):
            first = {name: row.pop(name, None) for name in self.known}
            scores = {name: [None, None] if x is None else [float(x), 1 - float(x)] for name, x in first.items()}
            images = [in_place(row.pop(name), folder) for name in ("image_0", "image_1")]
            one = {"prompt": row.pop("prompt"), "images": images, "scores": scores}
            yield one | {"index": i, "file": self.path, "columns": row}


def require(table, path: str, columns: tuple[str, ...], home: str) -> None:
    """Raises ValueError that names the first column the table lacks."""
    if missing := [name for name in columns if name not in table.column_names]:
        found = ", ".join(table.column_names)
        raise ValueError(f"column `{missing[0]}` not found in {path}; columns are {found}. {home}")


def undecoded(table):
    """The table with its images as they are stored."""
    from datasets import Image, List

    for name, kind in table.features.items():
        if isinstance(kind, Image):
            table = table.cast_column(name, Image(decode=False))
        elif isinstance(kind, List) and isinstance(kind.feature, Image):
            table = table.cast_column(name, List(Image(decode=False)))
    return table


def in_place(cell, folder: str):
    """An image cell, a path relative to the folder."""
    return os.path.join(folder, cell) if isinstance(cell, str) else cell
