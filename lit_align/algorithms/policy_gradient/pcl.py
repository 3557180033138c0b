"""PCL: policy and value function agree along every path."""

import torch
from torch import Tensor

from lit_align.algorithms.parts.latent_critic import Value, groups
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.diffusion.state import Trajectory


class PCL(PolicyGradient):
    """Path-consistency learning (Nachum et al. 2017, arXiv 1702.08892; for diffusion, Uehara et al. 2024, arXiv
    2407.13734): the squared residual of every path of d steps,

        V(x_{k+d}) - V(x_k) - alpha sum_{k <= i < k+d} log p_theta / p_ref(x_{i+1} | x_i),

    with the reward for V beyond the last noisy step, where paths end. The soft-optimal policy and its value, those of
    reward - alpha KL(p_theta || p_ref), make it 0 on every path, whoever drew it. Log-probabilities are means over the
    sample: alpha is the tutorial's times C H W. (The tutorial's paths have one step: the reward then takes as many
    updates to reach the first step as there are steps.)

    Two passes, as PRDP's: the residuals without gradient, then single steps with the square's derivatives as weights.

    Args:
        alpha: strength of the KL.
        length: d, steps of a path; none: to the end.
        value_lr: learning rate of V.
    """

    uses_reference = True

    def __init__(self, alpha: float = 10.0, length: int | None = None, value_lr: float = 1e-4, **kwargs):
        super().__init__(**kwargs)
        self.alpha, self.length, self.value_lr = alpha, length or self.rollout.steps, value_lr
        self.value = Value(self.policy, self.rollout.timesteps(self.policy)[:-1])

    def parameter_groups(self) -> list:
        return groups(self.policy, self.value, self.value_lr)

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return reward

    def residual(self, log_ratio: Tensor, value: Tensor, reward: Tensor) -> Tensor:
        """Of the paths from each of n steps: (N, n) from log p_theta / p_ref, V (N, n) and rewards (N,)."""
        n, d = value.shape[1], self.length
        after = torch.cat([value, reward[:, None].expand(-1, d)], 1)[:, d : d + n]
        total = torch.nn.functional.pad(log_ratio, (1, d - 1)).cumsum(1)  # (N, n + d) before each step
        return after - value - self.alpha * (total[:, d : d + n] - total[:, :n])

    def update(self, trajectory: Trajectory, advantage: Tensor, groups: Tensor, steps: Tensor) -> list[dict]:
        """The first pass, and the second with the weights it gives."""
        found = self.every_step(trajectory, groups, steps, lambda s: s.log_ref_ratio, self.value_of)
        log_ratio, value = (x.requires_grad_() for x in found)  # (N, T)
        rows = groups.flatten()
        square = self.residual(log_ratio[rows][:, steps], value[rows][:, steps], advantage[rows, 0]).square()
        self.log_mean("train/consistency", square.mean(), len(rows))
        weight = torch.stack(torch.autograd.grad(square.sum(), (log_ratio, value)), -1)  # (N, T, 2)
        return super().update(trajectory, weight, groups, steps, reference=False)

    def value_of(self, step: StepBatch) -> Tensor:
        return self.value(step.x_t, self.policy.summary(step.cond), step.t)

    def loss(self, step: StepBatch) -> Tensor:
        policy, value = step.advantage.unbind(1)
        return policy * step.log_prob + value * self.value_of(step)
