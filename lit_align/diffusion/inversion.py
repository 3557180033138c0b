"""The deterministic step x_t -> x_s as a linear map, and its exact inverse."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_align.diffusion.hook import Hook, chain
from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM


def direction(process: Process, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """What a step from x_t is linear in: the prediction, or eps of a model that predicts x_0."""
    return process.to_eps(prediction, x_t, t) if process.prediction == "sample" else prediction.float()


def step_coefficients(process: Process, t: Tensor, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of the step x_s = A x_t + B direction (DDIM with eta 0; for a flow, Euler's), shaped to multiply x
    (B, ...); times (B,)."""
    one = torch.ones(len(x), *[1] * (x.ndim - 1), device=x.device)
    (a_t, s_t), (a_s, s_s) = process.coefficients(t, one), process.coefficients(s, one)
    if process.prediction == "sample":
        return a_s / a_t, s_s - a_s * s_t / a_t
    step = lambda x_t, prediction: a_s * process.to_x0(prediction, x_t, t) + s_s * process.to_eps(prediction, x_t, t)
    return step(one, 0 * one), step(0 * one, one)


def step(process: Process, x_t: Tensor, along: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s from x_t (B, ...) and its `direction`."""
    a, b = step_coefficients(process, t, s, x_t)
    return a * x_t + b * along


def invert(process: Process, x_s: Tensor, along: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The x_t (B, ...) that `step` with this direction leads to x_s from."""
    a, b = step_coefficients(process, t, s, x_s)
    return (x_s - b * along) / a


class Predictor:
    """The direction that a sampler's network, guidance and hooks give, as a function of x_t.

    Args:
        sampler: whose steps are deterministic.
        policy: predicts.
        rows: a state that holds the rows' conditioning and prompts.
        hooks: around those of the sampler.
    """

    USED = ("predict", "check", "nfe")  # of a hook

    def __init__(self, sampler: Sampler, policy, rows: State, hooks: Sequence[Hook] = ()):
        self.sampler, self.policy, self.rows = sampler, policy, rows
        self.hooks = chain((*hooks, *sampler.steering), policy, sampler)
        self.grid = sampler.timesteps(policy).to(rows.x.device)

    @staticmethod
    def check(who: str, sampler: Sampler, policy) -> None:
        """Raises ValueError if the sampler has steps that cannot be inverted, or hooks that do more than predict."""
        if sampler.step_std(policy).any():
            raise ValueError(f"{who} inverts steps, and this sampler's have noise: set DDIM's eta to 0.")
        if not isinstance(sampler.transition, DDIM):
            name = type(sampler.transition).__name__
            raise ValueError(f"{who} inverts DDIM's steps, and this sampler's transition is {name}: use DDIM.")
        for hook in sampler.steering:
            more = [m for m in vars(Hook) if not m.startswith("_") and callable(getattr(Hook, m))]
            more = [m for m in more if m not in Predictor.USED and getattr(type(hook), m) is not getattr(Hook, m)]
            if more or hook.needs_start or hook.splits:
                name = type(hook).__name__
                raise ValueError(f"{who} inverts what a sampler predicts, and {name} does more: leave {name} out.")

    def times(self, i: int) -> tuple[Tensor, Tensor]:
        """t and s (B,) of step i."""
        return tuple(self.grid[i + k].expand(len(self.rows.x)) for k in (0, 1))

    def __call__(self, x: Tensor, i: int) -> Tensor:
        """The direction (B, ...) at x and the time of step i."""
        state = copy.copy(self.rows)
        state.x, state.i, state.steps, state.hooks = x, i, self.sampler.steps, self.hooks
        (state.t, state.s), state.needs_grad, state.extras = self.times(i), torch.is_grad_enabled(), {}
        self.sampler.estimate(self.policy, state)
        process = self.policy.process
        return direction(process, process.target(state.x0, state.eps, state.t), x, state.t)

    def recomputed(self, x: Tensor, i: int) -> Tensor:
        """The direction, whose backward pass computes it again in place of keeping the network's activations."""
        return checkpoint(self, x, i, use_reentrant=False) if torch.is_grad_enabled() else self(x, i)


def ddim_inversion(predict: Predictor, x_0: Tensor, iterations: int = 1) -> Tensor:
    """The noise x_T (B, ...) that the predictor's deterministic steps lead to x_0 from: DDIM inversion (arXiv
    2105.05233, appendix F).

    The prediction that a step is inverted with is taken at x_s and the step's own time t. With more `iterations` it is
    taken again at the x_t so found: a fixed point is the exact inverse (AIDI, arXiv 2309.04907).
    """
    x = x_0.float()
    for i in reversed(range(predict.sampler.steps)):
        x_s = x
        for _ in range(iterations):
            x = invert(predict.policy.process, x_s, predict.recomputed(x, i), *predict.times(i))
    return x
