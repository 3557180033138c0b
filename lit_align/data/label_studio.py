"""Label Studio's JSON export of pairwise choices as a table of preference pairs."""

import json
import os
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from lightning.pytorch.utilities import rank_zero_info

from lit_align.paths import find


def is_export(path: str) -> bool:
    """Whether a .json file is a list of Label Studio's tasks: objects with `data` and `annotations`."""
    file = Path(find(path))
    if file.suffix != ".json" or not file.is_file():
        return False
    try:
        tasks = json.loads(file.read_text("utf-8"))
    except ValueError:  # not JSON or not UTF-8: `read_table` says what is wrong with it
        return False
    return (
        isinstance(tasks, list)
        and bool(tasks)
        and isinstance(tasks[0], dict)
        and {"data", "annotations"} <= set(tasks[0])
    )


def read_export(path: str):
    """One row per choice: `win`, `lose`, and the task's further data under their names, as a datasets.Dataset.

    The labelling config is `<Pairwise toName="image1,image2"/>` with `<Image name="image1" value="$image1"/>`: the two
    images must have the same names in the task's data. Every annotator's choice is a row; cancelled annotations and
    those without a choice are left out and counted in the log. Raises ValueError if no choice is found.
    """
    from datasets import Dataset

    rows, counts = [], Counter()
    for number, task in enumerate(json.loads(Path(find(path)).read_text("utf-8"))):
        for annotation in task["annotations"]:
            choices = [r for r in annotation["result"] if r["type"] == "pairwise" and "selected" in r["value"]]
            kind = "cancelled" if annotation.get("was_cancelled") else "choices" if choices else "without a choice"
            counts[kind] += 1
            if kind == "choices":
                rows.append(pair(task["data"], choices[0], f"task {number} of {path}"))
    rank_zero_info(f"{path}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    if not rows:
        raise ValueError(f"{path} holds no pairwise choice: export a project with the Pairwise tag as JSON.")
    return Dataset.from_list(rows, on_mixed_types="use_json")


def pair(data: dict, choice: dict, where: str) -> dict:
    """The row of one choice."""
    names = choice["to_name"].split(",")
    if len(names) != 2 or not set(names) <= set(data):
        raise ValueError(
            f"{where} compares {choice['to_name']}, and its data are {', '.join(data)}: "
            'give the images the same names in both, <Image name="image1" value="$image1"/>.'
        )
    left, right = (local_path(data[name], where) for name in names)
    win, lose = (left, right) if choice["value"]["selected"] == "left" else (right, left)
    return {key: value for key, value in data.items() if key not in names} | {"win": win, "lose": lose}


def local_path(url: str, where: str) -> str:
    """The file that Label Studio serves as `url`: that of `/data/local-files/?d=`, or a path as it is."""
    parts = urlsplit(url)
    if parts.scheme:
        raise ValueError(f"{where} names {url}, which is no local file: download the images and put their paths there.")
    if parts.path.rstrip("/").endswith("/data/local-files"):
        return parse_qs(parts.query)["d"][0]
    return os.path.basename(parts.path) if parts.path.startswith("/data/upload/") else url
