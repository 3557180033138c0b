"""MPS's training: one reward for several dimensions of preference, each under its own words."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.reward_modeling.image_rewards import ImageRewards
from lit_align.rewards.mps import MPS, OVERALL

CONDITIONS = {  # the words of the released model's condition, by what they describe
    "overall": OVERALL,
    "aesthetics": "light, color, clarity, tone, style, ambiance, artistry.",
    "alignment": "quantity, attributes, position, number, location, word, things.",
    "detail": "shape, face, hair, hands, limbs, structure, instance, texture.",
}


class ConditionedPreference(ImageRewards):
    """The cross-entropy of the preferences in D dimensions, each scored under the words that say what matters in it
    (MPS, Zhang et al. 2024, arXiv 2405.14705, section 4): mean_d KL(label_d || softmax of the two scores under c_d).

    Takes lists of two images with a score for each dimension (MHP with list_size 2): {"images" (B, 2, 3, H, W),
    "scores" (B, 2, D)}; a difference of the scores of 1 is a sure preference, of 0 a tie. Logs `train/accuracy/<name>`.

    Args:
        reward: MPS.
        conditions: name -> words, in the order of the data's dimensions. Only the words for `overall` are published;
            the default gives the other dimensions their share of them.
        freeze, policy: see ImageRewards.
    """

    feedback = ("images", "scores")
    weighs_pairs = False

    def __init__(self, reward: MPS, conditions: dict[str, str] | None = None, **kwargs):
        super().__init__(reward=reward, **kwargs)
        self.conditions = conditions or CONDITIONS

    def check(self, batch: dict) -> None:
        super().check(batch)
        b, k, d = batch["scores"].shape
        if (k, d) != (2, len(self.conditions)):
            raise ValueError(
                f"ConditionedPreference has the conditions {', '.join(self.conditions)}, and the data has lists of {k} "
                f"images with {d} scores: set --data.list_size 2 and as many --data.dimensions."
            )

    def loss(self, batch: dict, stage: str) -> Tensor:
        images, texts = batch["images"], list(self.conditions.values())
        prompts = [prompt for prompt in batch["prompt"] for _ in range(2)]
        r = self.reward.under(images.flatten(0, 1), prompts, texts).view(len(images), 2, -1)  # (B, 2, D)
        margin, gap = r[:, 0] - r[:, 1], batch["scores"].to(r)[:, 0] - batch["scores"].to(r)[:, 1]
        for name, m, g in zip(self.conditions, margin.T, gap.T):
            if (known := g != 0).any():
                share = (m * g)[known].sign().add(1).mean() / 2
                self.log_mean(f"{stage}/accuracy/{name}", share, int(known.sum()))
        label = (0.5 + 0.5 * gap).clamp(0, 1)
        entropy = F.binary_cross_entropy(label, label)  # what the labels alone leave: a tie ends at 0
        return F.binary_cross_entropy_with_logits(margin, label) - entropy
