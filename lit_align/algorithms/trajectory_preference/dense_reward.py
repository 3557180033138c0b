"""Dense reward: a ranking of whole trajectories, spread over their steps with most weight on the early ones."""

import torch
from torch import Tensor

from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.algorithms.preference.ranking import plackett_luce


class DenseReward(PolicyGradient):
    """Yang et al. 2024, arXiv 2402.08265, eq. 8: the ranking likelihood of K trajectories under e = C E_{step ~
    w}[clip(log p_theta / p_ref, -c, c)], w proportional to gamma^i from the noisiest step i = 0.

    The expectation is outside the likelihood: each term compares a prompt's trajectories at one step (the paper's
    multi-prompt setting draws the step; here every step is visited and weighted). With two trajectories the likelihood
    is Bradley-Terry. Trajectories with equal rewards are not compared.

    Args:
        scale: C.
        clip_range: c, the trust region of a step's log-ratio (a mean over the sample).
        gamma: discount per step.
        samples_per_prompt: K.
    """

    uses_reference, uses_advantage = True, False

    def __init__(
        self, scale: float = 12.5, clip_range: float = 5e-4, gamma: float = 0.9, samples_per_prompt: int = 2, **kwargs
    ):
        super().__init__(samples_per_prompt=samples_per_prompt, **kwargs)
        self.group_size, self.scale, self.clip_range, self.gamma = samples_per_prompt, scale, clip_range, gamma

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return reward

    def weight(self, t: Tensor) -> Tensor:
        """(M,) gamma^i of the steps at times t, scaled to mean 1 over the rollout's steps."""
        grid = self.rollout.timesteps(self.policy).to(t.device)[:-1]
        index = (grid[None] - t[:, None]).abs().argmin(1)
        weights = self.gamma ** torch.arange(len(grid), device=t.device)
        return (weights / weights.mean())[index]

    def loss(self, step: StepBatch) -> Tensor:
        k = self.group_size
        e = self.scale * step.log_ref_ratio.clamp(-self.clip_range, self.clip_range)
        return self.weight(step.t).view(-1, k)[:, 0] * plackett_luce(e.view(-1, k), step.advantage.view(-1, k))
