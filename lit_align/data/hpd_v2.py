"""HPD v2 (arXiv 2306.09341): 645,090 pairs for training, and rankings of nine models for testing."""

from lit_align.data.archives import file_in, image_folder, local_folder, read_records
from lit_align.data.judged_lists import JudgedLists


class HPDv2(JudgedLists):
    """HPD v2 as published: train.json and test.json beside train.tar.gz and test.tar.gz, or what they hold.

    A training record has two images and `human_preference` [1, 0] or [0, 1]. A test record has the mean rank of each
    image, 1 the best; images of the same rank are tied.

    Args:
        path: a hub id, or a folder of the published files.
        split: train or test.
    """

    home = (
        "HPD v2 is ymhao/HPDv2; zhwang/HPDv2 has the test split alone: set --data.path to one of them, or to a folder "
        "with train.json and train.tar.gz."
    )
    dimensions = {"preference": 1.0}
    names = {"images": "file_path", "image_0": "file_path", "image_1": "file_path"}

    def __init__(self, path: str = "ymhao/HPDv2", **kwargs):
        super().__init__(path=path, **kwargs)

    def lists(self, split: str):
        name = self.splits[split]
        folder = local_folder(self.path, (f"{name}.json", f"{name}.tar.gz*"), self.revision, self.home)
        file = file_in(folder, f"{name}.json", self.home)
        items = read_records(file, "prompt")
        some = [path for item in items[:100] for path in paths(item)]
        images = image_folder(file.parent, some, (name,), f"{name}.tar.gz*")
        for i, item in enumerate(items):
            one = {"prompt": item["prompt"], "images": [str(images / path) for path in paths(item)]}
            columns = {"raw_annotations": item["raw_annotations"]} if "raw_annotations" in item else {}
            scores = {"preference": preference(item, i, str(file))}
            yield one | {"scores": scores, "index": i, "file": str(file), "columns": columns}


def paths(item: dict) -> list[str]:
    return item.get("file_path") or item.get("image_path") or []


def preference(item: dict, index: int, file: str) -> list[float | None]:
    """A score of each image: 1 for the chosen one of two, or minus the mean rank; None without a judgement."""
    if "rank" in item:
        return [-float(rank) for rank in item["rank"]]
    if "human_preference" not in item:
        raise ValueError(f"record {index} of {file} has neither human_preference nor rank: download the file again.")
    chosen = item["human_preference"]
    return [float(k) for k in chosen] if sorted(chosen) == [0, 1] else [None] * len(chosen)
