"""ImageRewardDB, the data of ImageReward (arXiv 2304.05977): 4 to 9 ranked and rated images of a prompt."""

from pathlib import Path
from typing import Literal

from lit_align.data.archives import local_folder, read_records, unpacked
from lit_align.data.judged_lists import JudgedLists

PARTS = {"train": 32, "validation": 2, "test": 2}  # archives of a split; `size` takes fewer of train
RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating")


class ImageRewardDB(JudgedLists):
    """ImageRewardDB as published: images/train/train_1.zip, ..., each with its images and train_1.json.

    Dimensions are `rank` (1 the best, equal ranks are ties; taken with a minus sign) and three ratings.

    Args:
        path: a hub id, or a folder of the published files; the archives may be unpacked there.
        split: train, validation or test.
        size: of the training split: 4 archives and 1,000 prompts, up to 32 archives and 8,000 prompts.
    """

    home = (
        "ImageRewardDB is zai-org/ImageRewardDB, before THUDM/ImageRewardDB: set --data.path to it, or to a folder "
        "with images/train/train_1.zip and the others."
    )
    dimensions, known = {"rank": 1.0}, ("rank", *RATINGS)
    names = {"images": "image_path", "image_0": "image_path", "image_1": "image_path"}

    def __init__(self, path: str = "zai-org/ImageRewardDB", size: Literal["1k", "2k", "4k", "8k"] = "8k", **kwargs):
        super().__init__(path=path, **kwargs)
        self.size = size

    def lists(self, split: str):
        name = self.splits[split]
        if name not in PARTS:
            raise ValueError(f"data.split is {name}; ImageRewardDB has {', '.join(PARTS)}.")
        parts = 4 * int(self.size[0]) if name == "train" else PARTS[name]
        names = [f"{name}_{i}" for i in range(1, parts + 1)]
        wanted = [f"images/{name}/{part}.zip" for part in names]
        folder = local_folder(self.path, wanted, self.revision, self.home)
        for part in names:
            file = self.part(folder / "images" / name, part)
            groups: dict[str, list[tuple[int, dict]]] = {}
            for i, item in enumerate(read_records(file, "prompt_id", "prompt", "image_path")):
                groups.setdefault(item["prompt_id"], []).append((i, item))
            for prompt_id, group in groups.items():
                items = [item for _, item in group]
                scores = {key: [item.get(key) for item in items] for key in RATINGS}
                scores["rank"] = [None if item.get("rank") is None else -item["rank"] for item in items]
                one = {"prompt": items[0]["prompt"], "scores": scores, "index": group[0][0], "file": str(file)}
                one["images"] = [str(file.parent / Path(item["image_path"]).name) for item in items]
                yield one | {"columns": {"prompt_id": prompt_id, "classification": items[0].get("classification")}}

    def part(self, folder: Path, name: str) -> Path:
        """The JSON file of a part, which lies beside its images."""
        if (folder / name / f"{name}.json").is_file():
            return folder / name / f"{name}.json"
        if not (folder / f"{name}.zip").is_file():
            raise FileNotFoundError(f"{folder} has neither {name}.zip nor {name}/{name}.json. {self.home}")
        return next(unpacked([folder / f"{name}.zip"]).rglob(f"{name}.json"))
