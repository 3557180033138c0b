"""Reading what a judge writes: strictly, for a guess would be a score that nobody gave."""

import re
from collections.abc import Callable

import torch
from torch import Tensor


class Unreadable(ValueError):
    """An answer that does not say what it was asked for. The message names the answer."""


def read_all(read: Callable[[str], float], answers: list[str], on_failure: str) -> Tensor:
    """read(answer) of each (N,), float32. One that raises Unreadable raises it on, or is NaN where on_failure is
    "mask"."""
    numbers = []
    for answer in answers:
        try:
            numbers.append(read(answer))
        except Unreadable:
            if on_failure == "stop":
                raise
            numbers.append(float("nan"))
    return torch.tensor(numbers)


def the_number(answer: str, label: str, low: float, high: float) -> float:
    """The number after `label` in an answer. Unreadable unless it stands there exactly once and lies in [low, high]."""
    found = re.findall(re.escape(label) + r"\s*(-?\d+(?:\.\d+)?)(?![\d/%]|\.\d)", answer)
    if len(found) != 1 or answer.count(label) != 1 or not low <= float(found[0]) <= high:
        raise Unreadable(
            f"the judge must say `{label}` and a number from {low:g} to {high:g} once; it said {answer!r}."
        )
    return float(found[0])
