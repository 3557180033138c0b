"""ReFL: backpropagates the reward of the estimate of x_0 at a random late step, through one denoiser call."""

import torch
from torch import Tensor

from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM


class StopAfter(Hook):
    """Ends the loop after step `last`."""

    def __init__(self, last: int):
        self.last = last

    def control(self, policy, state) -> int:
        return super().control(policy, state) if state.i < self.last else state.steps


class ReFL(RewardGradient):
    """Xu et al. 2023, arXiv 2304.05977, section 4.1: weight relu(threshold - r(x_0-hat, c)), x_0-hat at a step drawn
    from the last ones; earlier steps have no gradient. With `pretrain_weight`, plus the denoising loss on the batch's
    images (the paper's L_pre, which alternates with the reward; here the two are added).

    Args:
        min_step: earliest step that may be drawn, counted from 0.
        threshold: rewards above it give no gradient; in units of the reward (2 for ImageReward).
        weight: lambda.
        pretrain_weight: of L_pre; the released code for SD 1.4 leaves it out.
    """

    def __init__(
        self,
        min_step: int = 30,
        threshold: float = 2.0,
        weight: float = 1e-3,
        pretrain_weight: float = 0.0,
        rollout: Sampler | None = None,
        **kwargs,
    ):
        super().__init__(rollout=rollout or Sampler(40, 1.0, DDIM(eta=1.0)), **kwargs)
        if not 0 <= min_step < self.rollout.steps:
            raise ValueError(
                f"min_step is {min_step}; the rollout has steps 0 to {self.rollout.steps - 1}: choose one of them."
            )
        self.min_step, self.threshold, self.weight, self.pretrain_weight = min_step, threshold, weight, pretrain_weight
        self.feedback = ("prompt", "image") if pretrain_weight else ("prompt",)

    def generate(self, batch: dict) -> Tensor:
        steps = self.rollout.steps
        i = self.rank_zero(torch.randint(self.min_step, steps, ()).item())
        return self.roll(batch, hooks=(StopAfter(i),), grad=torch.arange(steps) == i).x0

    def loss(self, reward: Tensor) -> Tensor:
        return self.weight * (self.threshold - reward).relu()

    def batch_loss(self, batch: dict) -> Tensor:
        loss = super().batch_loss(batch)
        return loss + self.pretrain_weight * self.pretrain(batch) if self.pretrain_weight else loss

    def pretrain(self, batch: dict) -> Tensor:
        """L_pre = E ||prediction - target||^2 on the batch's images, t uniform."""
        process, x_0 = self.policy.process, self.latents(batch, "image")
        t, eps = process.sample_timesteps(len(x_0), device=x_0.device), torch.randn_like(x_0)
        prediction = self.policy.denoise(process.add_noise(x_0, eps, t), t, self.cond(batch))
        return self.policy.error(prediction, process.target(x_0, eps, t)).mean()
