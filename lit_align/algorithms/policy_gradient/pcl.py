"""PCL: policy and value function satisfy one consistency equation along every path."""

import torch
from torch import Tensor

from lit_align.algorithms.parts.latent_critic import Value, param_groups
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.diffusion.state import Trajectory


class PCL(PolicyGradient):
    """Path-consistency learning (Nachum et al. 2017, arXiv 1702.08892; for diffusion, Uehara et al. 2024, arXiv
    2407.13734): the squared residual of every path of d steps,

        V(x_{k+d}) - V(x_k) - alpha sum_{k <= i < k+d} log p_theta / p_ref(x_{i+1} | x_i).

    Paths end at the last noisy step, where the reward replaces V. For the soft-optimal policy and value, those of
    reward - alpha KL(p_theta || p_ref), the residual is 0 on every path, off-policy too. Log-probabilities are means
    over the sample, so alpha is the tutorial's times C H W. (The tutorial's paths have one step: the reward then needs
    as many updates to reach the first step as there are steps.)

    Two passes, as in PRDP: residuals without gradient, then single steps weighted by the square's derivatives.

    Args:
        alpha: strength of the KL.
        length: d, steps of a path; none: to the end.
        value_lr: learning rate of V.
    """

    uses_reference, uses_advantage = True, False

    def __init__(self, alpha: float = 10.0, length: int | None = None, value_lr: float = 1e-4, **kwargs):
        super().__init__(**kwargs)
        self.alpha, self.length, self.value_lr = alpha, length or self.rollout.steps, value_lr
        self.value = Value(self.policy, self.rollout.timesteps(self.policy)[:-1])

    def parameter_groups(self) -> list:
        return param_groups(self.policy, self.value, self.value_lr)

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        return reward

    def residual(self, log_ratio: Tensor, value: Tensor, reward: Tensor) -> Tensor:
        """Residuals (N, n) of the paths from each of n steps, from log p_theta / p_ref, V (N, n) and rewards (N,)."""
        n, d = value.shape[1], self.length
        end = torch.cat([value, reward[:, None].expand(-1, d)], 1)[:, d : d + n]
        cumulative = torch.nn.functional.pad(log_ratio, (1, d - 1)).cumsum(1)  # (N, n + d) sums before each step
        return end - value - self.alpha * (cumulative[:, d : d + n] - cumulative[:, :n])

    def update(self, trajectory: Trajectory, advantage: Tensor, groups: Tensor, steps: Tensor) -> list[dict]:
        """Runs the first pass; returns the minibatches of the second, with the first one's weights."""
        values = self.every_step(trajectory, groups, steps, lambda s: s.log_ref_ratio, self.value_of)
        log_ratio, value = (x.requires_grad_() for x in values)  # (N, T)
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
