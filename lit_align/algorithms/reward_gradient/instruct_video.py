"""InstructVideo: the reward's gradient through the last step of a partial chain that starts from a noised clip."""

import torch
from torch import Tensor

from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.diffusion.state import State


class InstructVideo(RewardGradient):
    """Yuan et al. 2023, arXiv 2312.12490: reward fine-tuning as editing. A clip of the data with its caption is noised
    to the time that lies `share` of the rollout before its end, and only those steps are sampled, the last one with
    gradient. Its rewards are Frames of an image reward with random frames and an attenuation of 1.

    The noise has a part that is the same in all pixels of a frame and channel: eps + offset eps_f (the released code).

    Args:
        share: of the rollout's steps that are sampled.
        offset: of the noise of whole frames.
    """

    feedback = ("prompt", "image")

    def __init__(self, share: float = 0.6, offset: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        self.share, self.offset = share, offset
        self.first = self.rollout.steps - max(1, round(share * self.rollout.steps))  # the first step that is sampled
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}: give a part of the rollout in (0, 1].")

    def noise(self, x_0: Tensor) -> Tensor:
        """eps (B, ...), a part of which is that of its frame."""
        return torch.randn_like(x_0) + self.offset * torch.randn_like(x_0[..., :1, :1])

    def generate(self, batch: dict) -> Tensor:
        x_0, steps = self.latents(batch, "image"), self.rollout.steps
        t = self.rollout.timesteps(self.policy)[self.first].to(x_0.device).expand(len(x_0))
        x_t = self.policy.process.add_noise(x_0, self.noise(x_0), t)
        state = State(x_t, self.cond(batch), batch["prompt"], batch.get("columns", {}))
        grad = torch.arange(steps) == steps - 1
        return self.rollout.run(self.policy, state, grad=grad, first=self.first).x
