"""VisionPrefer (arXiv 2404.15100): four images of a prompt, judged by GPT-4V in four aspects."""

import os

from lit_align.data.judged_lists import JudgedLists
from lit_align.data.mhp import in_place, require, undecoded
from lit_align.data.tables import read_table
from lit_align.paths import find

ASPECTS = ("prompt_following", "aesthetic", "fidelity", "harmlessness")


class VisionPrefer(JudgedLists):
    """VisionPrefer as a table: prompt, images (a list), and for each aspect a list of scores from 1 to 5.

    We found no release of the data, so the layout is ours. The paper pairs images by each aspect alone
    (`--data.dimensions '{aesthetic: 1}'`); by default the four scores are added. Further columns are kept.

    Args:
        path: a .parquet or .jsonl file, or a folder or hub id of a dataset. Images are encoded bytes, or paths relative
            to the file.
    """

    home = (
        "We found no release of VisionPrefer: set --data.path to your copy, a table with the columns prompt, images "
        "and one for each aspect."
    )
    dimensions = dict.fromkeys(ASPECTS, 1.0)

    def lists(self, split: str):
        table = read_table(self.path, self.splits[split], self.revision)
        require(table, self.path, ("prompt", "images", *self.dimensions), self.home)
        folder = os.path.dirname(find(self.path))
        for i, row in enumerate(undecoded(table)):
            scores = {name: row.pop(name) for name in ASPECTS if name in row}
            images = [in_place(cell, folder) for cell in row.pop("images")]
            one = {"prompt": row.pop("prompt"), "images": images, "scores": scores}
            yield one | {"index": i, "file": self.path, "columns": row}
