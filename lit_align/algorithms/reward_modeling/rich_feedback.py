"""RAHF's training: scores of an image, maps of its faults, and the words that it misses."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.reward_modeling.image_rewards import ImageRewards
from lit_align.rewards.preprocess import resize
from lit_align.rewards.rahf import DELIMITERS, HEATMAPS, RAHF, SCORES

WORDS = "prompt_misalignment_label"


def marked(prompt: str, shown: list[int], row) -> str:
    """The prompt's words, those that the image misses with "_0" after them. ValueError if there is not one number for
    each word."""
    words = list(filter(None, re.split(DELIMITERS, prompt)))
    if len(words) != len(shown):
        raise ValueError(f"row {row} has {len(words)} words and {len(shown)} labels of words: leave it out.")
    return " ".join(word if good else f"{word}_0" for word, good in zip(words, shown))


class RichFeedback(ImageRewards):
    """Squared errors of four scores and two maps, and the cross-entropy of the prompt with the missed words marked, all
    with weight 1 (Liang et al. 2024, arXiv 2312.10240, section 4; weights of github.com/youweiliang/RichHF).

    Takes RichHF18K's batches, its scores in the order artifact_score, misalignment_score, aesthetics_score,
    overall_score. Logs each part as `train/error/<name>` and `train/words`.

    Args:
        reward: RAHF.
        freeze, policy: see ImageRewards.
    """

    feedback = ("image", "maps", "scores")
    weighs_pairs = False

    def __init__(self, reward: RAHF, **kwargs):
        super().__init__(reward=reward, **kwargs)

    def check(self, batch: dict) -> None:
        super().check(batch)
        if WORDS not in batch["columns"] or batch["scores"].shape[1] != len(SCORES):
            raise ValueError(
                f"RichFeedback learns from four scores and the column {WORDS}: take RichHF18K and set --data.scores to "
                "artifact_score, misalignment_score, aesthetics_score, overall_score."
            )

    def loss(self, batch: dict, stage: str) -> Tensor:
        rows = zip(batch["prompt"], batch["columns"][WORDS], batch["index"])
        scores, maps, words = self.reward.feedback(batch["image"], batch["prompt"], [marked(*row) for row in rows])
        due = resize(batch["maps"].to(maps), tuple(maps.shape[-2:]), "bilinear")
        errors = F.mse_loss(scores, batch["scores"].to(scores), reduction="none").mean(0)  # (4,)
        errors = torch.cat([errors, F.mse_loss(maps, due, reduction="none").mean((0, 2, 3))])  # and of two maps
        for name, error in zip((*SCORES, *HEATMAPS), errors):
            self.log_mean(f"{stage}/error/{name}", error, len(scores))
        self.log_mean(f"{stage}/words", words, len(scores))
        return errors.sum() + words
