"""VisionPrefer (arXiv 2404.15100): four images of a prompt, judged by GPT-4V in four aspects."""

from lit_align.data.judged_lists import JudgedLists

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
        for i, row in enumerate(self.table_rows(split, ("images",))):
            scores = {name: row.pop(name) for name in ASPECTS if name in row}
            one = {"prompt": row.pop("prompt"), "images": row.pop("images"), "scores": scores}
            yield one | {"index": i, "file": self.path, "columns": row}
