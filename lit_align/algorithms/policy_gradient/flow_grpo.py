"""Flow-GRPO; with other windows, transitions and numbers Flow-GRPO-Fast, Flow-CPS, DanceGRPO, MixGRPO, GRPO-Guard."""

import copy

import torch
from torch import Tensor

from lit_align.algorithms.parts.advantages import Advantage, Group
from lit_align.algorithms.parts.clipping import clipped_surrogate
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch
from lit_align.diffusion.state import State, Trajectory
from lit_align.diffusion.transition import FlowSDE, Windowed
from lit_align.ranges import NOT_NEGATIVE


class FlowGRPO(PolicyGradient):
    """Liu et al. 2025, arXiv 2505.05470, eq. 5: the clipped ratio with group advantages, + beta KL(p_theta || p_ref) of
    each step. Under FlowSDE the KL is the exact one times t - s, as in the released code, for which the betas were
    published; under other transitions it is exact.

    As released, an optimizer step's loss is the mean over the samples whose advantage is not 0 (the others still run,
    so that all ranks run the same forwards), and the last step is not trained. With a `window` only its steps are noisy
    and trained: drawn for each rollout (Flow-GRPO-Fast) or sliding (MixGRPO, arXiv 2507.21802). DanceGRPO (arXiv
    2505.07818) is DanceSDE, one initial noise for a prompt's samples, the group's own standard deviation, a fraction of
    the steps and no KL. GRPO-Guard (arXiv 2510.22319) is `guard`; its equation numbers are those of its port in
    TeleBoost.

    Args:
        beta: coefficient of the KL; 0: no reference.
        clip_range: half-width of the ratio's clipping interval.
        window: noisy steps in a rollout (default: all).
        window_range: first step and end (exclusive) of where the window can be (default: all but the last step).
        slide_every: training steps after which the window moves by one step; 0: it is drawn at random.
        shared_noise: one initial noise for all samples of a prompt.
        fraction: of the noisy steps, drawn for each rollout, that is trained.
        guard: replaces the ratio exp(delta) by exp(std (delta + |mu - mu_old|^2 / (2 std^2))) (eq. 8), which has mean 1
            and the same scale at every step, and divides a step's loss by t - s (eq. 12), so the velocity gets as much
            gradient at every step. For FlowSDE.
    """

    uses_reference, takes_masked_rewards, ranges = True, True, {"beta": NOT_NEGATIVE}

    def __init__(
        self,
        beta: float = 0.04,
        clip_range: float = 1e-4,
        window: int | None = None,
        window_range: tuple[int, int] | None = None,
        slide_every: int = 0,
        shared_noise: bool = False,
        samples_per_prompt: int = 24,
        fraction: float = 1.0,
        guard: bool = False,
        advantage: Advantage | None = None,
        **kwargs,
    ):
        default = Group() if self.uses_advantage else None
        super().__init__(advantage=advantage or default, samples_per_prompt=samples_per_prompt, **kwargs)
        self.beta, self.uses_reference, self.clip_range = beta, beta > 0, clip_range
        self.window, self.slide_every = window, slide_every
        self.fraction, self.guard = fraction, guard
        if guard and not isinstance(self.rollout.transition, FlowSDE):
            raise ValueError(
                f"guard balances the steps of FlowSDE; the rollout has {type(self.rollout.transition).__name__}: "
                "give it FlowSDE, or leave guard out."
            )
        if shared_noise:
            self.noise_group_size = self.samples_per_prompt
        self.window_range = first, end = window_range or (0, self.rollout.steps - 1)
        if window and not (0 <= first <= end - window and end < self.rollout.steps):
            raise ValueError(
                f"a window of {window} does not fit into steps {first} to {end - 1} of {self.rollout.steps}, "
                "the last of which is not trained: change window or window_range."
            )
        self.kl_times_dt = isinstance(self.rollout.transition, FlowSDE)
        if window:
            self.rollout = copy.copy(self.rollout)  # the given one may be shared
            self.rollout.transition = Windowed(self.rollout.transition)

    def draw_trajectories(self, *args, **kwargs) -> tuple[Trajectory, list[State]]:
        if self.window:
            first, end = self.window_range
            offsets = end - first - self.window + 1
            offset = self.batch_number // self.slide_every if self.slide_every else torch.randint(offsets, ()).item()
            times = self.rollout.timesteps(self.policy)[first + offset % offsets :][: self.window]
            self.rollout.transition.low, self.rollout.transition.high = times[-1].item(), times[0].item()
        return super().draw_trajectories(*args, **kwargs)

    def trained_steps(self, trajectory: Trajectory) -> Tensor:
        steps = super().trained_steps(trajectory)
        steps = steps[steps < self.rollout.steps - 1]
        return steps[torch.randperm(len(steps))[: max(1, round(self.fraction * len(steps)))]]

    def update(self, trajectory: Trajectory, advantage: Tensor, groups: Tensor, steps: Tensor) -> list[dict]:
        parts = super().update(trajectory, advantage, groups, steps)
        learnt = (advantage[groups.flatten()] != 0).float().mean().item()
        return [m | {"share": m["share"] / learnt if learnt else 0.0} for m in parts]

    def ratio(self, step: StepBatch) -> Tensor:
        if not self.guard:
            return step.ratio
        std = step.gaussian.std.flatten(1)[:, 0]
        distance = (step.gaussian.mean - step.old_mean).square().flatten(1).mean(1)
        return ((step.log_prob - step.old_log_prob + distance / (2 * std.square())) * std).exp()

    def surrogate(self, step: StepBatch) -> Tensor:
        """The policy's loss without the KL, (M,)."""
        rho, e = self.ratio(step), self.clip_range
        self.log_mean("train/clip_fraction", ((rho - 1).abs() > e).float().mean(), len(rho))
        return clipped_surrogate(rho, step.advantage, e)

    def loss(self, step: StepBatch) -> Tensor:
        loss = self.surrogate(step)
        if self.guard:
            loss = loss / (step.t - step.s)
        if not self.beta:
            return loss
        kl = step.gaussian.kl(step.reference)
        self.log_mean("train/kl_step", kl.detach().mean(), len(kl))
        if self.kl_times_dt:
            kl = kl * (step.t - step.s)
        return loss + self.beta * kl * self.regularised(step)

    def regularised(self, step: StepBatch) -> Tensor:
        """(M,) bool: the steps that the KL holds back."""
        return step.advantage != 0
