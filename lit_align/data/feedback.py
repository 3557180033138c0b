"""Converts feedback: scores to pairs, pairs to good and bad images, many dimensions to one, and weights of pairs."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Two images of a list by their positions, the better one first. gap: how much better, 0 in a tie."""

    win: int
    lose: int
    gap: float


def total(scores: dict[str, Sequence[float | None]], weights: dict[str, float]) -> list[float]:
    """sum_d w_d s_d of each of K images from the scores of several dimensions, K each; nan where one is None."""
    columns = [np.array(scores[name], float) * weight for name, weight in weights.items()]
    return np.sum(columns, 0).tolist()


def pairs(scores: Sequence[float], margin: float = 0.0) -> list[Pair]:
    """All pairs of K scored images, in their order. Scores that differ by `margin` or less are tied (gap 0). An image
    whose score is nan is not compared."""
    found = []
    for i, j in combinations(range(len(scores)), 2):
        gap = scores[i] - scores[j]
        if abs(gap) <= margin:
            found.append(Pair(i, j, 0.0))
        elif gap == gap:
            found.append(Pair(i, j, gap) if gap > 0 else Pair(j, i, -gap))
    return found


def good_images(
    compared: Iterable[tuple[Hashable, Hashable]], mixed: Literal["good", "bad", "drop"] = "good"
) -> dict[Hashable, float]:
    """Pairs (better, worse) of image ids as {id: label}: 1 for an image that was preferred, 0 for one that only lost.

    `mixed` says what an image is that won in one pair and lost in another. Diffusion-KTO (arXiv 2404.04465) takes it as
    good.
    """
    won, lost = {}, {}
    for better, worse in compared:
        won[better] = lost[worse] = True
    labels = {}
    for image in won | lost:
        if image in won and image in lost:
            if mixed != "drop":
                labels[image] = float(mixed == "good")
        else:
            labels[image] = float(image in won)
    return labels


def even_weights(groups: Sequence[Hashable]) -> np.ndarray:
    """A weight for each row so that every group (prompt) counts the same: 1 / rows of the group, scaled to mean 1."""
    _, group, size = np.unique(np.array(groups, dtype=object), return_inverse=True, return_counts=True)
    return scaled(1.0 / size[group])


def scaled(weights: Sequence[float]) -> np.ndarray:
    """The weights over their mean, so that the loss keeps its unit."""
    weights = np.asarray(weights, float)
    return weights / weights.mean()
