"""Stored lists of the base model's samples with their scores, as pairs."""

from collections.abc import Iterator

from lit_align.data.judged_lists import JudgedLists

SCORES = ("correct", "partial", "large", "red", "sparse")


class ShapesPairs(JudgedLists):
    """All pairs of each list of checkpoints/shapes-sd/lists/train.parquet whose scores differ; `gap` is by how much.

    Dimensions are the judge's scores; `partial` is the share of a caption's parts that the image has right.
    """

    dimensions, known, has_ties = {"partial": 1.0}, SCORES, False

    def __init__(self, path: str = JudgedLists.smoke_file, **kwargs):
        super().__init__(path=path, **kwargs)

    def lists(self, split: str) -> Iterator[dict]:
        for i, row in enumerate(self.table_rows(split, ("images",))):
            scores = {name: row[name] for name in self.dimensions}
            yield {"prompt": row["prompt"], "images": row["images"], "scores": scores} | {
                "index": i,
                "file": self.path,
                "columns": {},
            }
