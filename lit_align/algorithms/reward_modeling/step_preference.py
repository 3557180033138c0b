"""Bradley-Terry at every noise level: trains step-aware preference models and latent reward models."""

import torch
from torch import Tensor

from lit_align.algorithms.reward_modeling.reward_modeling import RewardModeling
from lit_align.rewards.step_reward import StepReward


class StepPreference(RewardModeling):
    """Trains a StepReward on pairs: -log sigmoid(r(c, x_t^w, t) - r(c, x_t^l, t)), both images noised with the same
    noise to the same t (SPO, arXiv 2406.04314, section 3.2; LPO, arXiv 2502.01051, section 4.1). With `label` in the
    batch it is PickScore's cross-entropy, in which a tie counts half for each.

    The frozen policy encodes and, if the reward needs x_0, estimates it in one guided step. Logs `train/accuracy` and,
    on validation pairs, `val/accuracy`. Writes the reward to `<run>/reward`.

    Args:
        reward: the reward model to train.
        guidance_scale: of the estimates of x_0.
    """

    def __init__(self, reward: StepReward, guidance_scale: float = 5.0, **kwargs):
        super().__init__(**kwargs)
        self.reward, self.guidance_scale = reward, guidance_scale

    def loss(self, batch: dict, stage: str) -> Tensor:
        return self.ranking(self.margin(batch), batch, stage)

    def margin(self, batch: dict) -> Tensor:
        """r(x_t^w) - r(x_t^l), (B,)."""
        policy, process = self.policy, self.policy.process
        x_0 = torch.cat([self.latents(batch, "win"), self.latents(batch, "lose")])  # (2B, C, h, w)
        t = process.sample_timesteps(len(x_0) // 2, device=x_0.device).repeat(2)
        eps = torch.randn_like(x_0[: len(x_0) // 2]).repeat(2, 1, 1, 1)
        x_t, estimate = process.add_noise(x_0, eps, t), None
        if self.reward.needs_x0:
            cond = {k: torch.cat([v, v]) for k, v in self.cond(batch).items()}
            with torch.no_grad():
                estimate = process.to_x0(policy.denoise(x_t, t, cond, self.guidance_scale), x_t, t)
        win, lose = self.reward(policy, x_t, estimate, t, batch["prompt"] * 2).chunk(2)
        return win - lose
