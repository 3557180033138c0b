"""HPD v3 (arXiv 2508.03789): 1.17 million pairs of images from GANs to FLUX, and of photographs."""

from lit_align.data.archives import file_in, image_folder, local_folder, read_records
from lit_align.data.judged_lists import JudgedLists


class HPDv3(JudgedLists):
    """HPD v3 as published: train.json, test.json, ... beside images.tar.gz.*, or what they hold.

    `path1` is always the better image. The columns `model1`, `model2`, `confidence` and `choice_dist` are kept. A third
    party found prompts and images of the test split in the training split: `val_share` splits by prompt instead.

    Args:
        path: a hub id, or a folder of the published files.
        split: train, test, or another file of pairs (all, pickapic, imagereward).
        min_confidence: pairs below are left out, as in the training of HPSv3. A pair without a confidence (Midjourney,
            HPD v2, the test split) is kept.
    """

    home = (
        "HPD v3 is MizzenAI/HPDv3, 141 GB: set --data.path to it, or to a folder with train.json and images.tar.gz.*."
    )
    dimensions, has_ties = {"preference": 1.0}, False
    names = {"image_0": "path1", "image_1": "path2"}

    def __init__(self, path: str = "MizzenAI/HPDv3", min_confidence: float = 0.95, **kwargs):
        super().__init__(path=path, **kwargs)
        self.min_confidence = min_confidence

    def lists(self, split: str):
        name = self.splits[split]
        folder = local_folder(self.path, (f"{name}.json", "images.tar.gz*"), self.revision, self.home)
        file = file_in(folder, f"{name}.json", self.home)
        items = read_records(file, "prompt", "path1", "path2")
        some = [path for item in items[:100] for path in (item["path1"], item["path2"])]
        images = image_folder(file.parent, some, ("images",), "images.tar.gz*")
        for i, item in enumerate(items):
            confidence = item.get("confidence")
            if confidence is not None and confidence < self.min_confidence:
                self.count(split, "records", 1)
                self.count(split, f"below confidence {self.min_confidence}", 1)
                continue
            one = {"prompt": item["prompt"], "images": [str(images / item["path1"]), str(images / item["path2"])]}
            columns = {k: v for k, v in item.items() if k not in ("prompt", "path1", "path2")}
            yield one | {"scores": {"preference": [1.0, 0.0]}, "index": i, "file": str(file), "columns": columns}
