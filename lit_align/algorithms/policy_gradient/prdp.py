"""PRDP: fits the difference of two trajectories' log-ratios to the difference of their rewards."""

import torch
from torch import Tensor

from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.diffusion.state import Trajectory


class PRDP(PolicyGradient):
    """Deng et al. 2024, arXiv 2402.08714: (beta (R_a - R_b) - (r_a - r_b))^2 of two trajectories of a prompt, R = sum_t
    log p_theta / p_ref, minimised by the optimum of reward - beta KL. Proximal: the larger of this and the same with
    each log p_theta clamped to log p_old +- e.

    The square of a sum over steps takes two passes: the sums without gradient, then one step at a time, weighted by the
    square's derivative. Together they give the exact gradient in one step's memory. Log-probabilities are means over
    the sample, so beta is the paper's times C H W (the paper's convention: unverified). Rewards are not normalised.

    Args:
        beta: strength of the KL.
        clip_range: e.
        samples_per_prompt: even; successive samples form pairs.
    """

    uses_reference, uses_advantage = True, False
    group_size = 2

    def __init__(self, beta: float = 100.0, clip_range: float = 1e-4, samples_per_prompt: int = 2, **kwargs):
        super().__init__(samples_per_prompt=samples_per_prompt, **kwargs)
        self.beta, self.clip_range = beta, clip_range

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return reward

    def update(self, trajectory: Trajectory, advantage: Tensor, groups: Tensor, steps: Tensor) -> list[dict]:
        """Runs the first pass; returns the minibatches of the second, with the first one's weights."""
        functions = lambda s: s.log_prob, lambda s: s.reference.log_prob(s.x_s)
        log_prob, log_ref = self.every_step(trajectory, groups, steps, *functions)  # (N, T)
        old, e, log_prob = trajectory.log_prob, self.clip_range, log_prob.requires_grad_()
        gap = lambda x: x[groups[:, 0]] - x[groups[:, 1]]
        residual = lambda x: self.beta * gap((x - log_ref)[:, steps].sum(1)) - gap(advantage[:, 0])  # (G,)
        clamped = log_prob.clamp(old - e, old + e)
        regression = torch.maximum(residual(log_prob).square(), residual(clamped).square())
        self.log_mean("train/regression", regression.mean(), len(groups))
        (weight,) = torch.autograd.grad(regression.sum(), log_prob)
        return super().update(trajectory, weight * len(steps), groups, steps, reference=False)

    def loss(self, step: StepBatch) -> Tensor:
        return (step.advantage * step.log_prob).view(-1, 2).sum(1)
