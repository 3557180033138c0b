"""HPD v1, the data of HPS v1 (arXiv 2303.14420): one choice among the images of a prompt on a Discord server."""

from lit_align.data.archives import file_in, image_folder, local_folder, read_records
from lit_align.data.judged_lists import JudgedLists


class HPDv1(JudgedLists):
    """HPD v1 as published: preference_train.json, preference_test.json and preference_images/ (or archives of it).

    One image of 2 to 4 was chosen (`human_preference`): it is better than each of the others, which are not compared.

    Args:
        path: the folder, or the downloaded archive.
        split: train or test.
    """

    home = "HPD v1 is not on the hub: download it from the links in github.com/tgxs002/align_sd and set --data.path."
    dimensions, has_ties = {"choice": 1.0}, False
    names = {"images": "file_path", "image_0": "file_path", "image_1": "file_path"}

    def lists(self, split: str):
        folder = local_folder(self.path, (), self.revision, self.home)
        file = file_in(folder, f"preference_{self.splits[split]}.json", self.home)
        items = read_records(file, "prompt", "file_path", "human_preference")
        some = [name for item in items[:100] for name in item["file_path"]]
        images = image_folder(file.parent, some, ("preference_images",), "*images*.*")
        for i, item in enumerate(items):
            chosen, paths = item["human_preference"], [str(images / name) for name in item["file_path"]]
            judged = isinstance(chosen, int) and 0 <= chosen < len(paths)
            scores = [float(k == chosen) if judged else None for k in range(len(paths))]
            columns = {name: item.get(name) for name in ("id", "user_hash", "contain_name")}
            one = {"prompt": item["prompt"], "images": paths, "scores": {"choice": scores}}
            yield one | {"index": i, "file": str(file), "columns": columns}
