"""SPO: preferences between candidates of one denoising step; LPO with a latent reward."""

import torch
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.trajectory_preference.trajectory_preference import TrajectoryPreference
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import STEP, Sampler
from lit_align.diffusion.state import State, Trajectory, select_rows
from lit_align.diffusion.transition import Gaussian
from lit_align.rewards.step_reward import StepReward


class Candidates(Hook):
    """Draws k candidates x_s from one x_t, scores them and continues from a random one.

    If candidates were scored by their estimates of x_0, the next step reuses the estimate of the chosen one.
    """

    replaces = ("predict", "propose")

    def __init__(self, rollout: Sampler, reward: StepReward, k: int, skip_steps: int):
        self.rollout, self.reward, self.k, self.skip_steps = rollout, reward, k, skip_steps

    def on_init(self, policy, state):
        state.extras[self] = {"steps": {}, "next": None}  # next: x_0 and eps at the current x_t
        super().on_init(policy, state)

    def predict(self, policy, state, sampler):
        predicted = state.extras[self]["next"]
        if predicted is None:
            super().predict(policy, state, sampler)
        else:
            state.x0, state.eps = predicted["x_0"], predicted["eps"]

    def propose(self, policy, state, gaussian):
        record = state.extras[self]
        record["next"] = None
        if state.i < self.skip_steps or not gaussian.std.any():
            return super().propose(policy, state, gaussian)
        n, k = len(state.x), self.k
        repeated = lambda value: select_rows(value, [i for i in range(n) for _ in range(k)])
        x = repeated(gaussian.mean) + gaussian.std[:1] * torch.randn_like(repeated(state.x))  # (n k, ...)
        s, prompts, x_0, eps = repeated(state.s), repeated(state.prompts), x, None
        if self.reward.needs_x0 and state.i < state.steps - 1:
            x_0, eps = self.rollout.predict(policy, x, s, repeated(state.cond), False)
        time = s if self.reward.needs_x0 else repeated(state.t)  # as released: a latent reward is told the step's own t
        score = self.reward(policy, x, x_0, time, prompts).view(n, k)
        rows = torch.arange(n, device=x.device) * k
        win, lose = x[rows + score.argmax(1)], x[rows + score.argmin(1)]
        paired = lambda value: torch.stack([value, value], 1)  # (n, 2, ...)
        record["steps"][state.i] = {
            "x_t": paired(state.x),
            "x_s": torch.stack([win, lose], 1),
            "t": paired(state.t),
            "s": paired(state.s),
            "log_prob": torch.stack([gaussian.log_prob(win), gaussian.log_prob(lose)], 1),
            "mean": paired(gaussian.mean),
            "gap": torch.tanh((score.amax(1) - score.amin(1)) / 2),  # (n,) difference of their softmax scores
            "std": gaussian.std.flatten(1)[:, 0].expand(n),
            "score": score.mean(1),
        }
        chosen = rows + torch.randint(k, (n,), device=x.device)
        if eps is not None:
            record["next"] = {"x_0": x_0[chosen], "eps": eps[chosen]}
        return x[chosen]

    def recorded(self, state: State, key: str) -> Tensor:
        """A quantity of all T scored steps: (T, n), or (T, n, 2, ...) of the best and the worst candidate."""
        return torch.stack([step[key] for step in state.extras[self]["steps"].values()])

    def pairs(self, state: State) -> Trajectory:
        """Trajectories (2 T n, 1) of one step each: the n pairs of the first scored step, then those of the second;
        best and worst candidate alternate."""
        columns = [self.recorded(state, key).flatten(0, 2)[:, None] for key in STEP]
        rows = [i for _ in state.extras[self]["steps"] for i in range(len(state.x)) for _ in range(2)]
        return Trajectory(*columns, select_rows(state.cond, rows), select_rows(state.prompts, rows))


class SPO(TrajectoryPreference):
    """Step-aware preference optimization (Liang et al. 2024, arXiv 2406.04314, eq. 8): at every denoising step,
    TrajectoryPreference's loss on the best and the worst of k candidates x_s of one x_t, as ranked by a step-aware
    reward. Sampling continues from a random candidate, so a step's preference does not depend on the other steps'.

    LPO (Zhang et al. 2025, arXiv 2502.01051) is SPO with LatentReward, which needs no decoding, and a threshold that
    grows with the step's noise.

    Pairs whose softmax scores differ by less than the threshold are ties, with a constant loss (released: they are left
    out). One forward serves both candidates. An optimizer step trains a random share of the pairs of all prompts and
    steps.

    Args:
        reward: scores noisy samples.
        beta: coefficient of the log-ratios.
        candidates: k.
        threshold: smallest difference of softmax scores, at the least and at the most noisy step, in [0, 1]; linear in
            the step's standard deviation in between.
        skip_steps: number of the noisiest steps that are not trained.
    """

    def __init__(
        self,
        reward: StepReward,
        beta: float = 10.0,
        candidates: int = 4,
        threshold: tuple[float, float] = (0.3, 0.3),
        skip_steps: int = 4,
        samples_per_prompt: int = 1,
        **kwargs,
    ):
        super().__init__(reward=reward, beta=beta, samples_per_prompt=samples_per_prompt, **kwargs)
        self.candidates, self.threshold, self.skip_steps = candidates, threshold, skip_steps

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        rows = repeat_rows(batch, self.samples_per_prompt)
        hook = Candidates(self.rollout, self.reward, self.candidates, self.skip_steps)
        state = self.rollout(self.policy, rows["prompt"], columns=rows["columns"], hooks=(hook,))
        if not state.extras[hook]["steps"]:
            raise ValueError("SPO found no step with noise to learn from: give rollout a transition with eta > 0.")
        self.log_reward(hook.recorded(state, "score").mean(0), rows["prompt"])
        gap, std = hook.recorded(state, "gap"), hook.recorded(state, "std")[:, :1]  # (T, n), (T, 1)
        low, high = self.threshold
        kept = (gap > low + (high - low) * (std - std.min()) / (std.max() - std.min()).clamp(min=1e-9)).float()
        self.log_mean("train/pairs_kept", kept.mean(), len(rows["prompt"]))
        return hook.pairs(state), torch.stack([kept, -kept], 2).flatten()

    def gaussian(self, m: dict) -> Gaussian:
        """Both candidates of a pair have the same x_t: one forward."""
        once = super().gaussian(select_rows(m, list(range(0, len(m["t"]), 2))))
        return Gaussian(once.mean.repeat_interleave(2, 0), once.std.repeat_interleave(2, 0))
