"""SDPO: a step's reward is that of its estimate of x_0; two trajectories are compared step by step."""

import torch
from torch import Tensor

from lit_align.algorithms.online import repeat_rows, tile_rows
from lit_align.algorithms.parts.advantages import local_advantages
from lit_align.algorithms.parts.estimates import Estimates
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.diffusion.state import Trajectory


def interpolated(x_0: Tensor, exact) -> Tensor:
    """Rewards (N, T) of all estimates x_0 (N, T, ...). `exact(latents)` (3 N,) scores three per trajectory: the first,
    the last, and the one least similar to both. The others get the mean of the three, weighted by cosine similarity."""
    n, steps = x_0.shape[:2]
    flat = torch.nn.functional.normalize(x_0.flatten(2), dim=2)
    cosine = (flat @ flat.transpose(1, 2)).clamp(min=1e-6)  # (N, T, T)
    rows = torch.arange(n, device=x_0.device)
    anchor = (cosine[:, 0] + cosine[:, -1])[:, 1:-1].argmin(1) + 1 if steps > 2 else torch.zeros_like(rows)
    scored = torch.stack([torch.zeros_like(anchor), anchor, torch.full_like(anchor, steps - 1)], 1)  # (N, 3)
    rewards = exact(x_0[rows, scored.T].flatten(0, 1)).view(3, n).T  # (N, 3)
    similarity = cosine[rows[:, None], scored].transpose(1, 2)  # (N, T, 3)
    mean = (similarity * rewards[:, None]).sum(2) / similarity.sum(2)
    return mean.scatter(1, scored, rewards)


class SDPO(PolicyGradient):
    """Zhang et al. 2024, arXiv 2411.11727 (stepwise diffusion policy optimization): at step k of two trajectories from
    one noise, the larger of (lambda^k (l_a - l_b) - (A_a - A_b))^2 and the same with l clamped to +- e. l is the
    log-ratio to the behaviour policy. A is the discounted sum of the rewards of this and all later estimates of x_0,
    normalised per prompt and step.

    Three estimates of a trajectory are scored, the others interpolated. (Released: one optimizer step per denoising
    step; here one for all.)

    Args:
        clip_range: e.
        discount: gamma, of later rewards.
        decay: lambda.
    """

    group_size = noise_group_size = 2

    def __init__(
        self,
        clip_range: float = 1e-4,
        discount: float = 0.99,
        decay: float = 0.99,
        samples_per_prompt: int = 2,
        **kwargs,
    ):
        super().__init__(samples_per_prompt=samples_per_prompt, **kwargs)
        self.clip_range, self.discount, self.decay = clip_range, discount, decay
        if self.takes_several_rewards:
            raise ValueError("SDPO interpolates one reward between estimates: put several into a WeightedSum.")

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        rows, hook = repeat_rows(batch, self.samples_per_prompt), Estimates()
        trajectory, states = self.draw_trajectories(rows, (hook,))
        x_0 = torch.cat([hook.x_0(state) for state in states])  # (N, T, ...)
        returns = interpolated(x_0, lambda x: self.judge(self.reward, x, tile_rows(rows, 3), self.minibatch))  # (N, T)
        prompts, keys = rows["prompt"], self.policy.keys(rows["prompt"], rows["columns"])
        self.log_reward(returns[:, -1], prompts)
        for k in reversed(range(returns.shape[1] - 1)):
            returns[:, k] += self.discount * returns[:, k + 1]
        steps = enumerate(returns.unbind(1))
        return trajectory, torch.stack([local_advantages(self, [f"{key} {k}" for key in keys], r) for k, r in steps], 1)

    def loss(self, step: StepBatch) -> Tensor:
        pairs = lambda x: x.view(-1, 2)[:, 0] - x.view(-1, 2)[:, 1]
        grid = self.rollout.timesteps(self.policy).to(step.t.device)[:-1]
        k = (grid[None] - step.t.view(-1, 2)[:, :1]).abs().argmin(1)
        log_rho = step.log_prob - step.old_log_prob
        square = lambda x: (self.decay**k * pairs(x) - pairs(step.advantage)).square()
        return torch.maximum(square(log_rho), square(log_rho.clamp(-self.clip_range, self.clip_range)))
