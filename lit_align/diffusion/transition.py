"""One reverse step as a Gaussian: the distribution of x_s given x_t, for s the next, less noisy time."""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_align.diffusion.process import Process, append_dims

Reduction = Literal["mean", "sum"]


def _reduce(x: Tensor, reduction: Reduction) -> Tensor:
    return getattr(x.flatten(1), reduction)(1)


class Gaussian(NamedTuple):
    """N(mean, std^2 I): mean (B, ...), std broadcastable to it, float32.

    Reductions are over the sample's own axes: the mean, as policy-gradient codes for diffusion do (a ratio of two such
    log-probabilities is the C H W-th root of the true one), or the sum, the true density (importance weights need it).
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Log density of x (B, ...): (B,). Raises ValueError if the step is deterministic."""
        if (self.std <= 0).any():
            raise ValueError(
                "a deterministic step has no likelihood: use eta > 0, and leave out the last step if its noise is 0."
            )
        z = (x.detach().float() - self.mean) / self.std
        return _reduce(-0.5 * z.square() - self.std.log() - 0.5 * math.log(2 * math.pi), reduction)

    def kl(self, other: "Gaussian", reduction: Reduction = "mean") -> Tensor:
        """KL(self || other): (B,)."""
        ratio = self.std / other.std
        z = (self.mean - other.mean) / other.std
        return _reduce(0.5 * (ratio.square() + z.square() - 1) - ratio.log(), reduction)


class Transition(ABC):
    """A rule for one reverse step. Its inputs are estimates of x_0 and eps, so guidance and prediction type stay
    outside."""

    @abstractmethod
    def __call__(self, process: Process, x_t: Tensor, x_0: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """The distribution of x_s given x_t and the estimates x_0 and eps (B, ...), for times t > s (B,)."""


class DDIM(Transition):
    """Song et al. 2021, arXiv 2010.02502, eq. 12: eta 0 is deterministic (for a flow: the Euler step), 1 has the
    variance of q(x_s | x_t, x_0), as in DDPM. Sigma is eq. 16's, for any (alpha, sigma)."""

    def __init__(self, eta: float = 0.0):
        self.eta = eta

    def __call__(self, process, x_t, x_0, eps, t, s):
        (a_t, s_t), (a_s, s_s) = process.coefficients(t, x_t), process.coefficients(s, x_t)
        std = self.eta * s_s * (1 - (a_t * s_s / (a_s * s_t)).square()).clamp(min=0).sqrt()
        return Gaussian(a_s * x_0 + (s_s.square() - std.square()).clamp(min=0).sqrt() * eps, std)


class FlowSDE(Transition):
    """Flow-GRPO's marginal-preserving SDE (arXiv 2505.05470, eq. 9): noise level a sqrt(t / (1 - t)); at t = 1 the
    denominator takes the next time, so that the first step's std is a exactly."""

    def __init__(self, a: float = 0.7):
        self.a = a

    def __call__(self, process, x_t, x_0, eps, t, s):
        v, dt = eps - x_0, append_dims((s - t).float(), x_t)
        below = append_dims(torch.where(t == 1, s, t).float(), x_t)
        t = append_dims(t.float(), x_t)
        level = self.a * (t / (1 - below)).sqrt()
        drift = v + level.square() / (2 * t) * (x_t + (1 - t) * v)
        return Gaussian(x_t + drift * dt, level * (-dt).sqrt())


class DanceSDE(Transition):
    """DanceGRPO's SDE with a constant noise level eta (arXiv 2505.07818)."""

    def __init__(self, eta: float = 0.3):
        self.eta = eta

    def __call__(self, process, x_t, x_0, eps, t, s):
        v, dt = eps - x_0, append_dims((s - t).float(), x_t)
        t = append_dims(t.float(), x_t)
        score = -(x_t - (1 - t) * x_0) / t.square()
        return Gaussian(x_t + (v - 0.5 * self.eta**2 * score) * dt, self.eta * (-dt).sqrt())


class CPS(Transition):
    """Coefficients-preserving sampling (arXiv 2509.05952): the noise after the step is sigma(s) exactly, a fraction
    sin(a pi / 2) of it fresh. With a = 1 all of it is: the step of consistency models (LCM, arXiv 2310.04378, and
    Sana-Sprint).

    The official code takes -mean (x_s - mean)^2 for the log-probability, without 1 / (2 std^2): rescale its clip range.
    """

    def __init__(self, a: float = 0.8):
        self.a = a

    def __call__(self, process, x_t, x_0, eps, t, s):
        a_s, s_s = process.coefficients(s, x_t)
        std = s_s * math.sin(self.a * math.pi / 2)
        return Gaussian(a_s * x_0 + (s_s.square() - std.square()).sqrt() * eps, std)


class TCD(Transition):
    """Strategic stochastic sampling (Zheng et al. 2024, arXiv 2402.19159, algorithm 4): DDIM's step to (1 - gamma) s,
    then noise up to s."""

    def __init__(self, gamma: float = 0.3):
        self.gamma = gamma

    def __call__(self, process, x_t, x_0, eps, t, s):
        below = (1 - self.gamma) * s.float()
        below = below if process.prediction == "flow" else below.floor()  # a timestep
        (a_s, s_s), (a_b, s_b) = process.coefficients(s, x_t), process.coefficients(below, x_t)
        kept = a_s / a_b * s_b
        return Gaussian(a_s * x_0 + kept * eps, (s_s.square() - kept.square()).clamp(min=0).sqrt())


class Windowed(Transition):
    """Noise on the steps whose time is in a window, deterministic steps elsewhere (MixGRPO, arXiv 2507.21802).

    Args:
        sde: the transition in the window, which is everything until `low` and `high` are set.
    """

    def __init__(self, sde: Transition):
        self.sde, self.low, self.high = sde, -math.inf, math.inf

    def __call__(self, process, x_t, x_0, eps, t, s):
        noisy, ode = (rule(process, x_t, x_0, eps, t, s) for rule in (self.sde, DDIM(0.0)))
        inside = append_dims((t >= self.low) & (t <= self.high), x_t)
        return Gaussian(torch.where(inside, noisy.mean, ode.mean), torch.where(inside, noisy.std, 0.0))
