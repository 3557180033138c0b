"""People's choices: what is shown to them, the log of their votes, and the datasets that are made of it."""

import hashlib
import itertools
import json
import os
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.data.pick_a_pic import row, write_rows
from lit_align.data.tables import read_prompts, write_parquet

Task = Literal["pairs", "ranks", "ratings"]


class Item(NamedTuple):
    """What is shown at once: images of one prompt."""

    prompt: str
    images: tuple[Path, ...]

    @property
    def id(self) -> str:
        """Tells items apart by the prompt and the images' paths, as they were given."""
        return hashlib.sha256(json.dumps([self.prompt, *map(str, self.images)]).encode()).hexdigest()[:16]


def read_samples(folder: str) -> dict[str, list[Path]]:
    """The images of each prompt in a folder with metadata.jsonl or metadata.csv, columns `file_name` and the prompt, as
    `predict` writes it."""
    tables = sorted(file for kind in ("jsonl", "csv") for file in Path(folder).glob(f"metadata*.{kind}"))
    if not tables:
        raise FileNotFoundError(f"{folder} has no metadata.jsonl or metadata.csv: give a folder that predict wrote.")
    found = defaultdict(list)
    for table in tables:
        rows = read_prompts(str(table))
        if "columns.file_name" not in rows.column_names:
            raise ValueError(f"column `file_name` not found in {table}: it names each row's image.")
        for prompt, name in zip(rows["prompt"][:], rows["columns.file_name"][:]):
            image = Path(folder, str(name))
            if not image.is_file():
                raise FileNotFoundError(f"{table} names the image {name}, which {folder} does not have.")
            found[prompt].append(image)
    return found


def make_items(folders: list[str], task: Task, size: int | None = None, per_prompt: int | None = None) -> list[Item]:
    """What is shown of the images in some folders.

    pairs: every two images of a prompt; of several folders the first images of a prompt in each, then the second, and
    so on. ranks: the first `size` images of a prompt. ratings: every image. At most `per_prompt` items of a prompt, by
    chance. Says how many images are in no item. Raises ValueError if nothing is left.
    """
    if twice := [folder for folder, n in Counter(folders).items() if n > 1]:
        raise ValueError(f"images names {twice[0]} twice: give it once.")
    samples = [read_samples(folder) for folder in folders]
    items = []
    for prompt in dict.fromkeys(prompt for found in samples for prompt in found):
        mine = [found.get(prompt, []) for found in samples]
        images = [image for several in mine for image in several]
        if task == "ratings":
            sets = [(image,) for image in images]
        elif task == "ranks":
            sets = [tuple(images[:size])] if size and len(images) >= size else []
        elif len(folders) == 1:
            sets = list(itertools.combinations(images, 2))
        else:
            sets = [pair for together in zip(*mine) for pair in itertools.combinations(together, 2)]
        if per_prompt and len(sets) > per_prompt:
            sets = random.Random(prompt).sample(sets, per_prompt)
        items += [Item(prompt, several) for several in sets]
    if not items:
        need = f"{size} images" if task == "ranks" else "two images, or one in each of two folders,"
        raise ValueError(f"no prompt in {' and '.join(folders)} has {need} to compare.")
    total = sum(len(images) for found in samples for images in found.values())
    if left := total - len({image for item in items for image in item.images}):
        rank_zero_warn(
            f"{left} of {total} images are not shown: no others of their prompt stand beside them, or the "
            "options leave them out"
        )
    return items


class Votes:
    """The votes on some items, kept in a file that only grows: a line of JSON for each, on the disk before `add`
    returns. The last vote of an annotator on an item counts.

    A vote is {"item", "annotator", "choice", "reasons", "shown", "at"}. `choice` counts images in their order in the
    item: for pairs the better one, 0 or 1, or 0.5 for a tie; for ranks the images from the best to the worst; for
    ratings 1 to `scale`. None: skipped. `shown`: the order in which the annotator saw them.
    """

    def __init__(self, file: Path, items: list[Item], task: Task, scale: int = 2):
        self.file, self.task, self.scale = file, task, scale
        self.items = {item.id: item for item in items}
        self.last: dict[tuple[str, str], dict] = {}  # (annotator, item) -> vote
        self.lock = threading.Lock()
        self.read()

    def read(self) -> None:
        """Reads the votes that the file holds; a last line that was not written to its end is cut off."""
        if not self.file.exists():
            return
        text = self.file.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            rank_zero_warn(f"{self.file}: its last line is not whole and is left out")
            os.truncate(self.file, whole)
        for number, line in enumerate(text[:whole].splitlines(), 1):
            try:
                vote = json.loads(line)
                if vote["item"] in self.items:
                    self.check(vote["item"], vote["choice"])
                self.last[vote["annotator"], vote["item"]] = vote
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"line {number} of {self.file} is no vote on {self.task} with these options ({error}): choose "
                    "another --out, or take the line out."
                ) from error
        if gone := {item for _, item in self.last if item not in self.items}:
            rank_zero_warn(
                f"{self.file}: {len(gone)} items with votes are not among the images and stay in the file alone"
            )

    def check(self, item: str, choice) -> None:
        """Raises ValueError unless `choice` is one of the task's."""
        if item not in self.items:
            raise ValueError("there is no such item.")
        images = len(self.items[item].images)
        valid = {
            "pairs": choice in (0, 0.5, 1),
            "ranks": isinstance(choice, list) and sorted(map(str, choice)) == sorted(map(str, range(images))),
            "ratings": isinstance(choice, int) and 1 <= choice <= self.scale,
        }
        if choice is not None and (isinstance(choice, bool) or not valid[self.task]):
            raise ValueError(f"{choice!r} is no choice of {self.task}.")

    def add(self, annotator: str, item: str, choice, reasons: list[str], shown: list[int]) -> None:
        """Writes a vote to the disk."""
        self.check(item, choice)
        vote = {"item": item, "annotator": annotator, "choice": choice, "reasons": reasons, "shown": shown}
        vote["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        with self.lock:
            with open(self.file, "a") as file:
                file.write(json.dumps(vote) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.last[annotator, item] = vote

    def counts(self) -> Counter:
        """How many annotators have voted on each item."""
        return Counter(item for _, item in list(self.last))

    def next(self, annotator: str, wanted: int) -> str | None:
        """An item with fewer than `wanted` votes and none of this annotator, the one with the fewest; None: no more."""
        counts = self.counts()
        left = [i for i in self.items if (annotator, i) not in self.last and counts[i] < wanted]
        return min(left, key=lambda i: counts[i], default=None)

    def progress(self, annotator: str, wanted: int) -> tuple[int, int]:
        """Items that an annotator has voted on, and those with the ones left for him."""
        counts = self.counts()
        done = sum((annotator, i) in self.last for i in self.items)
        return done, done + sum((annotator, i) not in self.last and counts[i] < wanted for i in self.items)

    def chosen(self) -> Iterator[tuple[Item, dict, int]]:
        """Every vote that is not skipped: its item, itself, and the annotator's number."""
        users = {name: k for k, name in enumerate(dict.fromkeys(name for name, _ in self.last))}
        for (annotator, item), vote in self.last.items():
            if item in self.items and vote["choice"] is not None:
                yield self.items[item], vote, users[annotator]

    def export(self, folder: Path) -> int:
        """Writes the votes as `train.parquet`, which is replaced at once, and returns the number of its rows.

        pairs: Pick-a-Pic's schema, a row for each vote, for `PickAPic`. ranks: prompt, images and scores (the best has
        K - 1, the worst 0), a row for each vote, for `Rankings`. ratings: text, image, the mean rating, and label, 1
        where it is above the middle of the scale and 0 where it is below, for `CaptionedImages`; images with neither
        are left out. Images are in the file, names of annotators are not.
        """
        if not any(self.chosen()):
            return 0
        return {"pairs": self.export_pairs, "ranks": self.export_ranks, "ratings": self.export_ratings}[self.task](
            folder / "train.parquet"
        )

    def export_pairs(self, file: Path) -> int:
        numbers, shown = {item: k for k, item in enumerate(self.items)}, Counter(i.prompt for i, *_ in self.chosen())

        def rows():
            for item, vote, user in self.chosen():
                images, models = [i.read_bytes() for i in item.images], [str(i.parent) for i in item.images]
                one = row(item.prompt, *images, 1.0 - vote["choice"], models[0], numbers[item.id], user, models[1])
                at = datetime.fromisoformat(vote["at"]).replace(tzinfo=None)
                yield one | {"created_at": at, "num_example_per_prompt": shown[item.prompt]}

        return write_rows(rows(), [], file)

    def export_ranks(self, file: Path) -> int:
        def rows():
            for item, vote, user in self.chosen():
                k = len(item.images)
                scores = [float(k - 1 - vote["choice"].index(i)) for i in range(k)]
                images = [image.read_bytes() for image in item.images]
                yield {"prompt": item.prompt, "images": images, "scores": scores, "user_id": user}

        return write_parquet(
            rows(), {"prompt": "string", "images": ["binary"], "scores": ["float64"], "user_id": "int64"}, file
        )

    def export_ratings(self, file: Path) -> int:
        given = defaultdict(list)
        for item, vote, _ in self.chosen():
            given[item].append(vote["choice"])

        def rows():
            for item, ratings in given.items():
                rating = sum(ratings) / len(ratings)
                if rating != (1 + self.scale) / 2:
                    label = float(rating > (1 + self.scale) / 2)
                    one = {"text": item.prompt, "image": item.images[0].read_bytes(), "label": label}
                    yield one | {"rating": rating, "ratings": len(ratings)}

        kinds = {"text": "string", "image": "binary", "label": "float64", "rating": "float64", "ratings": "int64"}
        return write_parquet(rows(), kinds, file)
