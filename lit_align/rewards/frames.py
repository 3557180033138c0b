"""A video's reward from a reward of images."""

import math
from typing import Literal

import torch
from torch import Tensor

from lit_align.rewards.multi_reward import Combination, score_of
from lit_align.rewards.reward import Reward


class Frames(Reward):
    """The mean, or the least, of a reward over chosen frames of a video: (N,) from videos (N, F, 3, H, W). It sees
    every frame alone, and no motion.

    Args:
        reward: scores images.
        frames: how many, at equal distances from the first to the last; or their numbers, from 0, where -1 is the last.
        over: what of the frames' scores is the video's.
        random: draw a frame from each of `frames` equal segments, anew in every call.
        attenuation: lambda; frame i of F counts exp(-lambda |i - F / 2|) in the mean, whose weights do not sum to 1
            (InstructVideo, arXiv 2312.12490: 1, with random frames).
    """

    artefact = scale = "its rewards'"
    blind_to = "motion, and whatever happens between the chosen frames"
    videos = True

    def __init__(
        self,
        reward: Reward,
        frames: int | list[int] = 4,
        over: Literal["mean", "min"] = "mean",
        random: bool = False,
        attenuation: float = 0.0,
    ):
        super().__init__()
        self.reward, self.frames, self.over = reward, frames, over
        self.random, self.attenuation = random, attenuation
        self.name, self.differentiable = reward.name, reward.differentiable
        self.masks, self.together = reward.masks, reward.together
        if isinstance(frames, int) and frames < 1:
            raise ValueError(f"frames of Frames is {frames}: give 1 or more.")
        if attenuation and over == "min":
            raise ValueError(
                "Frames weights a mean and not the least score: leave attenuation out, or set over to mean."
            )
        if random and not isinstance(frames, int):
            raise ValueError("Frames draws one frame from each of a number of segments: give frames as that number.")
        if any(isinstance(part, Combination) and part.normalise for part in reward.modules()):
            raise ValueError("a reward inside Frames has statistics over all images: set its normalise to false.")

    @property
    def columns(self) -> dict[str, bool]:
        return self.reward.columns

    def chosen(self, n: int) -> list[int]:
        """The numbers of the frames that are scored, of a video of n frames."""
        if isinstance(self.frames, int):
            k = min(self.frames, n)
            if self.random:
                return ((torch.arange(k) + torch.rand(k)) * n / k).long().tolist()
            return [n // 2] if k == 1 else [round(i * (n - 1) / (k - 1)) for i in range(k)]
        if outside := [i for i in self.frames if not -n <= i < n]:
            raise ValueError(f"Frames asks for frame {outside[0]}, and the videos have {n}.")
        return [i % n for i in self.frames]

    def forward(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        if images.ndim != 5:
            raise ValueError(f"Frames scores videos (N, F, 3, H, W); it was given a tensor {tuple(images.shape)}.")
        chosen = self.chosen(images.shape[1])
        scores = torch.stack([score_of(self.reward, images[:, i], prompts, columns) for i in chosen], 1)  # (N, K)
        if self.over == "min":
            return scores.amin(1)
        middle = images.shape[1] / 2
        weights = [math.exp(-self.attenuation * abs(i - middle)) for i in chosen]
        return (scores * scores.new_tensor(weights)).mean(1)

    def embed(self, images: Tensor) -> Tensor:
        """The mean of the chosen frames' features."""
        return torch.stack([self.reward.embed(images[:, i]) for i in self.chosen(images.shape[1])]).mean(0)
