"""The mean of a reward."""

import torch
from torch import Tensor

from lit_align.metrics.metric import ImageMetric, Z, cat, group_means, ids_of
from lit_align.rewards.reward import Reward, components, refuse_masks


class MeanReward(ImageMetric):
    """Mean of any reward over the samples, with its 95 % interval over prompts: CLIPScore, AestheticScore, VQAScore ...

    A prompt with several samples counts once, by the median of its samples with `median` (Diffusion-DPO's tables), else
    by their mean. It keeps a number for each image.

    Args:
        reward: the reward; the further columns that it needs are taken from the prompts' file.
        median: take the median of a prompt's samples, not their mean.
    """

    def __init__(self, reward: Reward, median: bool = False):
        super().__init__()
        refuse_masks(reward, "MeanReward")
        if reward.together:
            raise ValueError(
                f"{reward.name} compares the images of a batch: their mean says nothing; name another reward."
            )
        self.reward, self.median = reward.requires_grad_(False).eval(), median
        self.name, self.artefact, self.blind_to = reward.name, reward.artefact, reward.blind_to
        self.add_rows("ids", dtype=torch.int64)
        self.add_rows("scores", dtype=torch.float32)
        self.seen: list[dict] = []

    @property
    def columns(self) -> dict[str, bool]:
        return self.reward.columns

    @torch.no_grad()
    def update(self, images: Tensor, prompts: list[str], **columns: list) -> None:
        score = self.reward.combine(components(self.reward, images, {"prompt": prompts, "columns": columns}))
        if score.ndim > 1:
            raise ValueError(f"the reward {self.name} gives several numbers; name one reward for each.")
        self.ids.append(ids_of(prompts, score.device))
        self.scores.append(score)
        self.seen += [{self.name: value} for value in score.tolist()]

    def per_prompt(self) -> Tensor:
        """A number for each prompt, float64."""
        ids, scores = cat(self.ids), cat(self.scores).double()
        if not self.median:
            return group_means(ids, scores)
        return torch.stack([scores[ids == one].quantile(0.5) for one in ids.unique()])

    def compute(self) -> dict[str, Tensor]:
        x = self.per_prompt()
        found = {self.name: x.mean().float()}
        return found | ({f"{self.name}/half_interval": (Z * x.std() / len(x) ** 0.5).float()} if len(x) > 1 else {})

    def records(self) -> list[dict]:
        return self.seen

    def reset(self) -> None:
        super().reset()
        self.seen = []
