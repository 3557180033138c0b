"""SDPO: a step's reward is that of the image it foresees; two trajectories learn from their difference."""

import zlib

import torch
from torch import Tensor

from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, Step
from lit_align.diffusion.sampler import Hook, Trajectory


class Estimates(Hook):
    """Keeps the estimate of x_0 of every step."""

    def __init__(self):
        self.x_0: list[Tensor] = []

    def after_step(self, policy, state):
        self.x_0.append(state.x0)


def interpolated(x_0: Tensor, exact) -> Tensor:
    """Rewards (N, T) of all estimates x_0 (N, T, ...) of which three are asked for, `exact(latents, rows)`: the first,
    the last and the one least like both. The others lie between their exact neighbours a and b in the proportion of
    their cosines with the two."""
    n, steps = x_0.shape[:2]
    flat = torch.nn.functional.normalize(x_0.flatten(2), dim=2)
    cosine = (flat @ flat.transpose(1, 2)).clamp(min=1e-6)  # (N, T, T)
    rows = torch.arange(n, device=x_0.device)
    anchor = (cosine[:, 0] + cosine[:, -1])[:, 1:-1].argmin(1) + 1 if steps > 2 else torch.zeros_like(rows)
    places = torch.stack([torch.zeros_like(anchor), anchor, torch.full_like(anchor, steps - 1)], 1)  # (N, 3)
    known = torch.stack([exact(x_0[rows, place]) for place in places.T], 1)  # (N, 3)
    k = torch.arange(steps, device=x_0.device)
    after = (k > anchor[:, None]).long()  # (N, T): between 0 and the anchor, or between it and the end
    a, b = places.gather(1, after), places.gather(1, after + 1)
    like_a, like_b = (cosine[rows[:, None], k, place] for place in (a, b))
    share = torch.where(k == b, 0.0, torch.where(k == a, 1.0, like_a / (like_a + like_b)))
    return share * known.gather(1, after) + (1 - share) * known.gather(1, after + 1)


class SDPO(PolicyGradient):
    """Zhang et al. 2024, arXiv 2411.11727 (stepwise diffusion policy optimization): (lambda^k (l_a - l_b) - (A_a -
    A_b))^2 at step k of two trajectories from one noise, l the log-ratio to the policy that drew them, or the same
    with l clamped to +- e where that is larger. A is the discounted sum of the rewards of the step's and all later
    estimates of x_0, normalised by prompt and step.

    Three estimates of a trajectory are scored, the others interpolated. (Released: an optimizer step for each
    denoising step; here one for all.)

    Args:
        clip_range: e.
        discount: gamma, of later rewards.
        decay: lambda.
    """

    together = 2

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

    def start(self, n: int) -> Tensor:
        return torch.randn(n // 2, *self.policy.latent_shape, device=self.policy.device).repeat_interleave(2, 0)

    @torch.no_grad()
    def collect(self, prompts: list[str]) -> tuple[Trajectory, Tensor]:
        hook = Estimates()
        state = self.rollout(self.policy, prompts, x=self.start(len(prompts)), hook=hook, record=True)
        score = lambda x_0: self.reward(self.policy.decode(x_0), prompts).float()
        returns = interpolated(torch.stack(hook.x_0, 1), score)  # (N, T)
        self.rated(returns[:, -1], prompts)
        for k in reversed(range(returns.shape[1] - 1)):
            returns[:, k] += self.discount * returns[:, k + 1]
        prompt_id = torch.tensor([zlib.crc32(p.encode()) for p in prompts], device=returns.device)
        step_id = prompt_id[:, None] * returns.shape[1] + torch.arange(returns.shape[1], device=returns.device)
        gathered = self.advantage(*(self.all_gather(x.contiguous()).flatten() for x in (step_id, returns)))
        mine = gathered.view(-1, *returns.shape)[self.global_rank if self.trainer.world_size > 1 else 0]
        return state.trajectory, mine.clamp(-self.max_advantage, self.max_advantage)

    def loss(self, step: Step) -> Tensor:
        pairs = lambda x: x.view(-1, 2)[:, 0] - x.view(-1, 2)[:, 1]
        grid = self.rollout.timesteps(self.policy).to(step.t.device)[:-1]
        k = (grid[None] - step.t.view(-1, 2)[:, :1]).abs().argmin(1)
        log_rho = step.log_prob - step.old_log_prob
        square = lambda x: (self.decay**k * pairs(x) - pairs(step.advantage)).square()
        return torch.maximum(square(log_rho), square(log_rho.clamp(-self.clip_range, self.clip_range)))
