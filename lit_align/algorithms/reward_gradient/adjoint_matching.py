"""Adjoint Matching: regresses each step's shift from the reference onto the adjoint of the reward."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import Trajectory, select_rows
from lit_align.diffusion.transition import DDIM
from lit_align.ranges import COUNT, POSITIVE
from lit_align.rewards.reward import Reward


class AdjointMatching(PolicyGradient):
    """Domingo-Enrich et al. 2024, arXiv 2409.08861, algorithm 2, for steps N(mu(x_t), std^2):

        mean |(mu_theta - mu_ref) / std + std a_s|^2,    a_t = (d mu_ref / d x_t)^T a_s,    a_0 = -scale d r / d x_0.

    a is the lean adjoint: it is propagated through the reference's steps along a sample of the policy, without gradient
    in the parameters. The fixed point is p_ref exp(scale r), if x_0 does not depend on the initial noise: so the
    rollout must be DDIM with eta 1, the discrete form of the paper's memoryless schedule.

    As in the paper, a step trains the last `late` steps of the rollout and as many drawn from the earlier ones.

    Args:
        reward: differentiable.
        rollout: a sampler with DDIM and eta 1 (default: the paper's 40 steps, without guidance).
        scale: lambda, the inverse temperature in 1/reward.
        late: last noisy steps that are always trained; as many earlier ones are drawn.
    """

    uses_reference, uses_advantage = True, False
    ranges = {"scale": POSITIVE, "late": COUNT}

    def __init__(self, reward: Reward, rollout: Sampler | None = None, scale: float = 100.0, late: int = 10, **kwargs):
        super().__init__(reward=reward, rollout=rollout or Sampler(40, 1.0, DDIM(eta=1.0)), **kwargs)
        transition = self.rollout.transition
        if not isinstance(transition, DDIM) or transition.eta != 1:
            raise ValueError(
                f"{type(self).__name__} needs a sampler that forgets its initial noise: give the rollout the "
                "transition DDIM with eta 1."
            )
        if not reward.differentiable:
            raise ValueError(
                f"{type(self).__name__} needs the reward's gradient and {reward.name} has none: "
                "choose a differentiable reward, or a method of the policy_gradient family."
            )
        self.scale, self.late = scale, late

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        """Trajectories and the lean adjoints a_s (N, T, ...) of their steps."""
        rows = repeat_rows(batch, self.samples_per_prompt)
        trajectory, _ = self.draw_trajectories(rows)
        parts = torch.arange(len(trajectory.t)).split(self.minibatch)
        adjoints, rewards = zip(*(self.adjoints(trajectory, part, select_rows(rows, part.tolist())) for part in parts))
        self.log_reward(torch.cat(rewards), rows["prompt"])
        return trajectory, torch.cat(adjoints)

    def adjoints(self, trajectory: Trajectory, part: Tensor, rows: dict) -> tuple[Tensor, Tensor]:
        """a_s (n, T, ...) of some trajectories, and their rewards (n,)."""
        steps, adjoints = trajectory.t.shape[1], []
        with torch.enable_grad(), self.policy.reference():
            x_0 = trajectory.x_s[part, -1].to(self.device).requires_grad_()
            reward = self.judge(self.reward, x_0, rows)
            (a,) = torch.autograd.grad(-self.scale * reward.sum(), x_0)
            for i in reversed(range(steps)):
                adjoints.append(a.cpu())
                m = trajectory.minibatch(part, torch.full_like(part, i))
                m["x_t"].requires_grad_()
                (a,) = torch.autograd.grad(self.gaussian(m).mean, m["x_t"], a)
        return torch.stack(adjoints[::-1], 1), reward.detach()

    def trained_steps(self, trajectory: Trajectory) -> Tensor:
        steps = super().trained_steps(trajectory)
        early, late = steps[: -self.late], steps[-self.late :]
        return torch.cat([early[torch.randperm(len(early))[: self.late]], late])

    def optimizer_steps(self, collected: tuple[Trajectory, Tensor]) -> Iterator[list[dict]]:
        trajectory, adjoint = collected
        groups = torch.arange(len(adjoint)).view(-1, 1)
        for _ in range(self.inner_epochs):
            for part in self.shares(len(groups)):
                yield self.update(trajectory, adjoint, groups[part], self.trained_steps(trajectory))

    def loss(self, step: StepBatch) -> Tensor:
        std = step.gaussian.std
        control = (step.gaussian.mean - step.reference.mean) / std
        self.log_mean("train/control", control.detach().square().mean(), len(control))
        return self.policy.error(control, -std * step.advantage.to(std))
