"""PCL: policy and value function agree on every step of a path."""

import torch
from torch import Tensor

from lit_align.algorithms.policy_gradient.critic import Value, groups
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, Step
from lit_align.diffusion.sampler import Trajectory


class PCL(PolicyGradient):
    """Path-consistency learning (Nachum et al. 2017, arXiv 1702.08892; for diffusion, Uehara et al. 2024, arXiv
    2407.13734): (V(x_s) - V(x_t) - alpha log p_theta / p_ref(x_s | x_t))^2, with V the reward at the end.

    The soft-optimal policy and its value, those of reward - alpha KL(p_theta || p_ref), make this 0 on every step,
    whoever drew it; after the last noisy step the sample is certain, and so is its reward. The log-probability is a
    mean over the sample: alpha is the tutorial's times C H W.

    Args:
        alpha: strength of the KL.
        value_lr: learning rate of V.
    """

    uses_reference = True

    def __init__(self, alpha: float = 10.0, value_lr: float = 1e-4, **kwargs):
        super().__init__(**kwargs)
        self.alpha, self.value_lr = alpha, value_lr
        self.value = Value(self.policy, self.rollout.timesteps(self.policy)[:-1])

    def parameter_groups(self) -> list:
        return groups(self.policy, self.value, self.value_lr)

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return reward

    def trained_steps(self, trajectory: Trajectory) -> Tensor:
        steps = super().trained_steps(trajectory)
        self.end = trajectory.s[0, steps[-1]]
        return steps

    def loss(self, step: Step) -> Tensor:
        text = step.cond["text"]
        after = torch.where(step.s == self.end, step.advantage, self.value(step.x_s, text, step.s))
        residual = after - self.value(step.x_t, text, step.t) - self.alpha * step.log_ref_ratio
        return residual.square()
