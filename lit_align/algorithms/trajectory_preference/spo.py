"""SPO: preferences between candidates of one denoising step; with a latent reward it is LPO."""

import torch
from torch import Tensor

from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.algorithms.trajectory_preference.d3po import clipped_dpo
from lit_align.diffusion.sampler import Hook, Sampler, Trajectory, select_rows
from lit_align.diffusion.transition import Gaussian
from lit_align.rewards.step_reward import StepReward


class Candidates(Hook):
    """Draws k candidates x_s from one x_t, has them scored, and goes on from one of them at random.

    A candidate that was scored by its estimate of x_0 is not predicted again when it goes on.
    """

    def __init__(self, rollout: Sampler, reward: StepReward, k: int, first: int):
        self.rollout, self.reward, self.k, self.first = rollout, reward, k, first
        self.seen: tuple[Tensor, Tensor] | None = None  # estimates at the present x_t
        self.steps: list[dict] = []

    def predict(self, policy, state, sampler):
        if self.seen is None:
            super().predict(policy, state, sampler)
        else:
            state.x0, state.eps = self.seen

    def propose(self, policy, state, gaussian):
        self.seen = None
        if state.i < self.first or not gaussian.std.any():
            return super().propose(policy, state, gaussian)
        n, k = len(state.x), self.k
        repeated = lambda value: select_rows(value, [i for i in range(n) for _ in range(k)])
        x = repeated(gaussian.mean) + gaussian.std[:1] * torch.randn_like(repeated(state.x))  # (n k, ...)
        s, prompts, x_0, eps = state.s.expand(n * k), repeated(state.prompts), x, None
        if self.reward.needs_x0 and state.i < self.rollout.steps - 1:
            x_0, eps = self.rollout.predict(policy, x, s, repeated(state.cond), False)
        score = self.reward(policy, x, x_0, s, prompts).view(n, k)
        rows = torch.arange(n, device=x.device) * k
        pick = lambda which: x[rows + which]
        win, lose = pick(score.argmax(1)), pick(score.argmin(1))
        self.steps.append(
            {
                "x_t": torch.stack([state.x, state.x], 1),  # (n, 2, ...)
                "x_s": torch.stack([win, lose], 1),
                "t": state.t.expand(n, 2),
                "s": state.s.expand(n, 2),
                "log_prob": torch.stack([gaussian.log_prob(win), gaussian.log_prob(lose)], 1),
                "mean": torch.stack([gaussian.mean, gaussian.mean], 1),
                "gap": torch.tanh((score.amax(1) - score.amin(1)) / 2),  # (n,) difference of their softmax
                "std": gaussian.std.flatten()[0],
                "score": score.mean(1),
            }
        )
        on = rows + torch.randint(k, (n,), device=x.device)
        if eps is not None:
            self.seen = x_0[on], eps[on]
        return x[on]

    def pairs(self, cond: dict, prompts: list[str]) -> Trajectory:
        """The steps (N, T) of best and worst candidates, in turn: N = 2n."""
        column = lambda key: torch.stack([step[key] for step in self.steps], 2).flatten(0, 1)
        twice = [i for i in range(len(prompts)) for _ in range(2)]
        columns = map(column, ("x_t", "x_s", "t", "s", "log_prob", "mean"))
        return Trajectory(*columns, select_rows(cond, twice), select_rows(prompts, twice))


class SPO(PolicyGradient):
    """Step-aware preference optimization (Liang et al. 2024, arXiv 2406.04314, eq. 8): at every denoising step, D3PO's
    loss on the best and the worst of k candidates x_s of one x_t, as a step-aware reward sees them. Sampling goes on
    from a random candidate, so that no step inherits the verdict on another.

    With LatentReward, which needs no decoding, and a threshold that grows with the step's noise this is LPO (Zhang et
    al. 2025, arXiv 2502.01051).

    Pairs whose softmax-ed scores differ by less than the threshold teach nothing. One forward serves both candidates.

    Args:
        reward: scores noisy samples.
        beta: coefficient of the log-ratios.
        clip_range: half the width of the ratio's band.
        candidates: k.
        threshold: of the difference in preference, at the least and at the most noisy step; linear in the step's
            standard deviation between.
        first: steps at the noisy end that are not learnt from.
    """

    uses_reference = True
    group_size = 2

    def __init__(
        self,
        reward: StepReward,
        beta: float = 10.0,
        clip_range: float = 0.1,
        candidates: int = 4,
        threshold: tuple[float, float] = (0.3, 0.3),
        first: int = 4,
        **kwargs,
    ):
        super().__init__(reward=reward, **kwargs)
        self.beta, self.clip_range, self.candidates = beta, clip_range, candidates
        self.threshold, self.first = threshold, first

    @torch.no_grad()
    def collect(self, prompts: list[str]) -> tuple[Trajectory, Tensor]:
        hook = Candidates(self.rollout, self.reward, self.candidates, self.first)
        state = self.rollout(self.policy, prompts, hook=hook)
        if not hook.steps:
            raise ValueError("SPO found no step with noise to learn from: give rollout a transition with eta > 0.")
        self.log_reward(torch.stack([step["score"] for step in hook.steps], 1).mean(1), prompts)
        std, gap = (torch.stack([step[key] for step in hook.steps], -1) for key in ("std", "gap"))  # (T,), (n, T)
        low, high = self.threshold
        kept = (gap > low + (high - low) * (std - std.min()) / (std.max() - std.min()).clamp(min=1e-9)).float()
        self.log_mean("train/pairs_kept", kept.mean(), len(kept))
        return hook.pairs(state.cond, prompts), torch.stack([kept, -kept], 1).flatten(0, 1)

    def gaussian(self, m: dict) -> Gaussian:
        """Both candidates of a pair have one x_t: one forward."""
        once = super().gaussian(select_rows(m, list(range(0, len(m["t"]), 2))))
        return Gaussian(once.mean.repeat_interleave(2, 0), once.std.repeat_interleave(2, 0))

    def loss(self, step: StepBatch) -> Tensor:
        return clipped_dpo(step, self.beta, self.clip_range)
