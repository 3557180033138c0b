"""Label Studio's JSON export of pairwise choices as a table of preference pairs."""

import json
import os
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.image_files import IMAGES
from lit_align.paths import find

SIDES = (("1", "2"), ("a", "b"), ("A", "B"), ("left", "right"))  # in the names of the two images


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


def read_export(path: str, left: str | None = None, right: str | None = None):
    """One row per choice: `win`, `lose`, and the task's further data under their names, as a datasets.Dataset.

    A choice of the Pairwise tag is `left` or `right`; the export does not say which field of a task's data each image
    came from, so that `left` and `right` name them. Every annotator's choice is a row; cancelled annotations and those
    without a choice are left out and counted in the log. Raises ValueError if no choice is found.
    """
    from datasets import Dataset

    rows, counts = [], Counter()
    for number, task in enumerate(json.loads(Path(find(path)).read_text("utf-8"))):
        for annotation in task["annotations"]:
            choices = [r for r in annotation["result"] if r["type"] == "pairwise" and "selected" in r["value"]]
            kind = "cancelled" if annotation.get("was_cancelled") else "choices" if choices else "without a choice"
            counts[kind] += 1
            if kind == "choices":
                if not (left and right):
                    left, right = sides(task["data"], path)
                rows.append(
                    pair(task["data"], left, right, choices[0]["value"]["selected"], f"task {number} of {path}")
                )
    rank_zero_info(f"{path}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    if not rows:
        raise ValueError(f"{path} holds no pairwise choice: export a project with the Pairwise tag as JSON.")
    rank_zero_info(f"{path}: the left image is `{left}` and the right one `{right}`, as in toName of the Pairwise tag")
    return Dataset.from_list(rows, on_mixed_types="use_json")


def sides(data: dict, path: str) -> tuple[str, str]:
    """The fields of the left and the right image: two that hold images and whose names differ in 1 and 2, a and b, or
    left and right."""
    images = [name for name, cell in data.items() if isinstance(cell, str) and Path(cell).suffix.lower() in IMAGES]
    found = [
        (one, two)
        for one in images
        for a, b in SIDES
        for two in images
        if one != two and b.join(one.rsplit(a, 1)) == two
    ]
    if len(found) != 1:
        raise ValueError(
            f"{path} does not say which field holds the left image and which the right one; its data are "
            f"{', '.join(data)}: set --data.left_column and --data.right_column, in the order of the Pairwise tag's "
            "toName."
        )
    return found[0]


def pair(data: dict, left: str, right: str, selected: str, where: str) -> dict:
    """The row of one choice."""
    if missing := {left, right} - set(data):
        raise ValueError(f"{where} has no {min(missing)}; its data are {', '.join(data)}.")
    images = {"left": local_path(data[left], where), "right": local_path(data[right], where)}
    row = {key: value for key, value in data.items() if key not in (left, right)}
    return row | {"win": images.pop(selected), "lose": images.popitem()[1]}


def local_path(url: str, where: str) -> str:
    """The file that Label Studio serves as `url`: that of `/data/local-files/?d=`, or a path as it is."""
    parts = urlsplit(url)
    if parts.scheme:
        raise ValueError(f"{where} names {url}, which is no local file: download the images and put their paths there.")
    if parts.path.rstrip("/").endswith("/data/local-files"):
        return parse_qs(parts.query)["d"][0]
    return os.path.basename(parts.path) if parts.path.startswith("/data/upload/") else url
