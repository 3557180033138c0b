"""MHP, the data of MPS (CVPR 2024): 918,315 comparisons in four dimensions."""

from lit_align.data.judged_lists import JudgedLists


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
        for i, row in enumerate(self.table_rows(split, ("image_0", "image_1"))):
            first = {name: row.pop(name, None) for name in self.known}
            scores = {name: [None, None] if x is None else [float(x), 1 - float(x)] for name, x in first.items()}
            one = {"prompt": row.pop("prompt"), "images": [row.pop("image_0"), row.pop("image_1")], "scores": scores}
            yield one | {"index": i, "file": self.path, "columns": row}
