"""The base of the benchmarks that judge each image by itself."""

from abc import abstractmethod
from inspect import Parameter, signature

import torch
from torch import Tensor

from lit_align.metrics.metric import ImageMetric, cat, group_means, ids_of

LETTERS = 64  # bytes of a group's name


class Benchmark(ImageMetric):
    """Base of the benchmarks that judge each image by itself. A subclass gives `judge` in place of `update`.

    `compute` gives `<name>/<group>`, a mean over the scores of each group, and `<name>`: that of the group "", or where
    nothing is in it, the mean of the groups' means.
    """

    def __init__(self):
        super().__init__()
        self.add_rows("ids", dtype=torch.int64)
        self.add_rows("groups", LETTERS, dtype=torch.uint8)
        self.add_rows("scores")
        self.seen: list[dict] = []

    @abstractmethod
    def judge(self, images: Tensor, prompts: list[str], **columns: list) -> list[dict]:
        """A record for each of N images: {"scores": [(group, number), ...], ...}; what it holds besides is written by
        `evaluate`. A subclass names its columns as keyword arguments."""

    @property
    def columns(self) -> dict[str, bool]:
        parameters = list(signature(self.judge).parameters.values())[2:]
        return {p.name: p.default is Parameter.empty for p in parameters}

    @torch.no_grad()
    def update(self, images: Tensor, prompts: list[str], **columns: list) -> None:
        for prompt, record in zip(prompts, self.judge(images, prompts, **columns), strict=True):
            scores = record.pop("scores")
            self.groups.append(torch.stack([encoded(group) for group, _ in scores]).to(self.device))
            self.scores.append(
                torch.tensor([float(score) for _, score in scores], dtype=torch.float64, device=self.device)
            )
            self.ids.append(ids_of([prompt] * len(scores), self.device))
            self.seen.append(record)

    def by_group(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Group -> (prompt ids, scores), sorted by name."""
        ids, groups, scores = cat(self.ids), cat(self.groups), cat(self.scores)
        kinds, place = groups.unique(dim=0, return_inverse=True)
        found = {decoded(kind): (ids[place == i], scores[place == i]) for i, kind in enumerate(kinds)}
        return dict(sorted(found.items()))

    def compute(self) -> dict[str, Tensor]:
        means = {group: scores.mean() for group, (_, scores) in self.by_group().items()}
        overall = means.pop("", None)
        overall = torch.stack(list(means.values())).mean() if overall is None else overall
        return {self.name: overall.float()} | {f"{self.name}/{group}": mean.float() for group, mean in means.items()}

    def records(self) -> list[dict]:
        return self.seen

    def reset(self) -> None:
        super().reset()
        self.seen = []


def encoded(name: str) -> Tensor:
    """A group's name as a state: (LETTERS,) uint8. ValueError if it is longer."""
    code = name.encode()
    if len(code) > LETTERS:
        raise ValueError(f"the group {name!r} has a name of more than {LETTERS} bytes.")
    return torch.tensor([*code, *[0] * (LETTERS - len(code))], dtype=torch.uint8)


def decoded(code: Tensor) -> str:
    return bytes(code.tolist()).rstrip(b"\0").decode()


def share_of_prompts(ids: Tensor, scores: Tensor) -> Tensor:
    """The share of prompts with a score above 0."""
    return (group_means(ids, (scores > 0).double()) > 0).double().mean()
