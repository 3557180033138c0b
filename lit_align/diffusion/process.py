"""The noising process x_t = alpha(t) x_0 + sigma(t) eps, for variance-preserving diffusion and for flow matching."""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

TimestepSampling = Literal["uniform", "logit_normal", "mode"]
Grid = Literal["ends", "inverse", "unipc", "dpm_solver", "scm"]
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


def append_dims(a: Tensor, x: Tensor) -> Tensor:
    """Appends axes to a (B,) so that it multiplies x (B, ...)."""
    return a.view(-1, *[1] * (x.ndim - 1))


class Process(nn.Module):
    """A pair of functions alpha(t), sigma(t), and what the network predicts; every formula below is generic in them.

    Args:
        prediction: what the network outputs: epsilon (eps), v_prediction (alpha eps - sigma x_0, Salimans & Ho 2022,
            arXiv 2202.00512), sample (x_0), or flow (eps - x_0, the velocity of a straight path, arXiv 2209.03003).
    """

    num_train_timesteps: int
    consistency = False  # whether every prediction of x_0 is a sample, as a consistency model's is

    def __init__(self, prediction: str):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction type {prediction!r} is unknown; use one of {', '.join(PREDICTIONS)}.")
        self.prediction = prediction

    @staticmethod
    def from_scheduler(config: dict, tokens: int | None = None, grid: Grid | None = None, mu=None) -> "Process":
        """The process of a diffusers scheduler, from its config (scheduler_config.json) and `_class_name`. ValueError
        for a scheduler, or an option of one, that is not read here.

        Args:
            tokens: tokens of an image in the denoiser, by which a flow's dynamic shift is computed.
            grid: the flow's sampling grid, where the pipeline has one of its own (see Flow).
            mu: function of tokens and sampling steps: the flow's dynamic shift, where the pipeline has its own formula.
        """
        from lit_align.diffusion.consistency import Consistency
        from lit_align.diffusion.scheduler_config import is_consistency, is_flow

        if is_flow(config):
            return Flow.from_scheduler(config, tokens, grid, mu)
        return (Consistency if is_consistency(config) else VP).from_scheduler(config)

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of x_0 at times t: same shape, float32."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of eps at times t: same shape, float32."""

    @abstractmethod
    def timesteps(self, n: int) -> Tensor:
        """The sampling grid of n steps: (n + 1,) times, the noisiest first, the end point included."""

    @abstractmethod
    def sample_timesteps(self, n: int, sampling: TimestepSampling = "uniform", device=None, generator=None) -> Tensor:
        """n random training times."""

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2."""
        return (self.alpha(t) / self.sigma(t)).square()

    def coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t) of t (B,), shaped to multiply x (B, ...)."""
        return append_dims(self.alpha(t), x), append_dims(self.sigma(t), x)

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t from x_0 and eps (B, ...) at times t (B,)."""
        a, s = self.coefficients(t, x_0)
        return a * x_0.float() + s * eps.float()

    def renoise(self, x_s: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """x_t from x_s (B, ...) at a less noisy time s < t (B,): a draw from q(x_t | x_s)."""
        (a_t, s_t), (a_s, s_s) = self.coefficients(t, x_s), self.coefficients(s, x_s)
        scale = a_t / a_s
        return scale * x_s.float() + (s_t.square() - (scale * s_s).square()).clamp(min=0).sqrt() * noise.float()

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a perfect network would output for this x_0, eps and t."""
        a, s = self.coefficients(t, x_0)
        x_0, eps = x_0.float(), eps.float()
        return {
            "epsilon": lambda: eps,
            "v_prediction": lambda: a * eps - s * x_0,
            "sample": lambda: x_0,
            "flow": lambda: eps - x_0,
        }[self.prediction]()

    def to_x0(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 that a prediction at x_t stands for (solves x_t = alpha x_0 + sigma eps)."""
        a, s = self.coefficients(t, x_t)
        pred, x_t = pred.float(), x_t.float()
        return {
            "epsilon": lambda: (x_t - s * pred) / a,
            "v_prediction": lambda: (a * x_t - s * pred) / (a * a + s * s),
            "sample": lambda: pred,
            "flow": lambda: (x_t - s * pred) / (a + s),
        }[self.prediction]()

    def to_eps(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of eps from a prediction at x_t."""
        a, s = self.coefficients(t, x_t)
        pred, x_t = pred.float(), x_t.float()
        return {
            "epsilon": lambda: pred,
            "v_prediction": lambda: (s * x_t + a * pred) / (a * a + s * s),
            "sample": lambda: (x_t - a * pred) / s,
            "flow": lambda: (x_t + a * pred) / (a + s),
        }[self.prediction]()


class VP(Process):
    """Variance preserving: alpha^2 + sigma^2 = 1 (DDPM, arXiv 2006.11239). A time is an integer training timestep.

    The time -1 stands for clean data (alpha 1, sigma 0).

    Args:
        alphas_cumprod: alpha^2 at timesteps 0 .. T-1.
        timestep_spacing, steps_offset: how `timesteps` spreads over them (diffusers' meaning).
        set_alpha_to_one: whether sampling ends in clean data, or at timestep 0.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        prediction: str = "epsilon",
        timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading",
        steps_offset: int = 1,
        set_alpha_to_one: bool = False,
    ):
        super().__init__(prediction)
        self.num_train_timesteps = len(alphas_cumprod)
        table = torch.cat([alphas_cumprod.double(), torch.ones(1, dtype=torch.float64)])  # index -1 is clean data
        self.register_buffer("alphas", table.sqrt().float(), persistent=False)
        self.register_buffer("sigmas", (1 - table).sqrt().float(), persistent=False)
        self.timestep_spacing, self.steps_offset = timestep_spacing, steps_offset
        self.set_alpha_to_one = set_alpha_to_one

    @classmethod
    def from_scheduler(cls, config: dict) -> "VP":
        from diffusers import CogVideoXDDIMScheduler, DDIMScheduler

        from lit_align.diffusion.scheduler_config import ends_in_clean_data

        config = {k: v for k, v in config.items() if k != "_use_default_values"}  # else DDIM's defaults would win
        tables = (CogVideoXDDIMScheduler if "snr_shift_scale" in config else DDIMScheduler).from_config(config)
        c = tables.config
        if c.prediction_type == "epsilon" and tables.alphas_cumprod[-1] == 0:
            raise ValueError(
                "the scheduler has zero SNR at its end: epsilon prediction says nothing at zero SNR; use v_prediction."
            )
        clean = ends_in_clean_data(config)
        return cls(tables.alphas_cumprod, c.prediction_type, c.timestep_spacing, c.steps_offset, clean)

    def alpha(self, t: Tensor) -> Tensor:
        return self.alphas[t.long()]

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigmas[t.long()]

    def timesteps(self, n: int) -> Tensor:
        total, device = self.num_train_timesteps, self.alphas.device
        if not 1 <= n <= total:
            raise ValueError(f"{n} sampling steps asked for; this process has between 1 and {total}.")
        if self.timestep_spacing == "leading":
            t = torch.arange(n - 1, -1, -1) * (total // n) + self.steps_offset
        elif self.timestep_spacing == "trailing":
            t = torch.arange(total, 0, -total / n, dtype=torch.float64)[:n].round().long() - 1
        else:
            t = torch.linspace(total - 1, 0, n, dtype=torch.float64).round().long()
        end = torch.tensor([-1 if self.set_alpha_to_one or t[-1] == 0 else 0])
        return torch.cat([t, end]).to(device)

    def sample_timesteps(self, n: int, sampling: TimestepSampling = "uniform", device=None, generator=None) -> Tensor:
        """n random timesteps; distributions other than uniform are over t / T in [0, 1]."""
        total = self.num_train_timesteps
        if sampling == "uniform":
            return torch.randint(total, (n,), device=device, generator=generator)
        return (_fractions(n, sampling, device, generator) * total).long().clamp(max=total - 1)


class Flow(Process):
    """The straight path: alpha = 1 - t, sigma = t, with t in [0, 1] (rectified flow; SD3, arXiv 2403.03206).

    Args:
        shift: moves times towards noise, t -> shift t / (1 + (shift - 1) t) (SD3, eq. 23); a number, or a function of
            the number of sampling steps (training times then take that of 50 steps).
        grid: times of n steps before the shift, the noisiest first: `ends`, from 1 to the shifted 1/T (diffusers'
            FlowMatchEuler); `inverse`, from 1 to 1/n (FLUX, Qwen-Image, Z-Image); `unipc`, n + 1 from 1 to 1/T without
            the last; `dpm_solver`, n + 1 from 1 - 1/T to 0 without the last; `scm`, the angles of Sana-Sprint, 1.5708
            and 1.3 in two steps, else n + 1 from 1.5708 to 0 without the last, as sin / (sin + cos).
        terminal: the last time before 0; the grid is stretched to end there.
        shift_ends: whether `ends` shifts 1/T before it spaces the times (diffusers: where the shift is static).
    """

    def __init__(
        self,
        shift: float | Callable[[int], float] = 1.0,
        num_train_timesteps: int = 1000,
        grid: Grid = "ends",
        terminal: float | None = None,
        shift_ends: bool = True,
    ):
        super().__init__("flow")
        self.shift, self.num_train_timesteps = shift, num_train_timesteps
        self.grid, self.terminal, self.shift_ends = grid, terminal, shift_ends
        self.consistency = grid == "scm"
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # knows the device

    @classmethod
    def from_scheduler(cls, config: dict, tokens: int | None = None, grid: Grid | None = None, mu=None) -> "Flow":
        from lit_align.diffusion.scheduler_config import flow_shift, own_grid

        shift, total = flow_shift(config, tokens, mu), config.get("num_train_timesteps", 1000)
        grid, dynamic = grid or own_grid(config), config.get("use_dynamic_shifting", False)
        return cls(shift, total, grid, config.get("shift_terminal"), shift_ends=not dynamic)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.float()

    def sigma(self, t: Tensor) -> Tensor:
        return t.float()

    def shifted(self, u: Tensor, steps: int = 50) -> Tensor:
        shift = self.shift(steps) if callable(self.shift) else self.shift
        return shift * u / (1 + (shift - 1) * u)

    def timesteps(self, n: int) -> Tensor:
        total, linspace = self.num_train_timesteps, partial(torch.linspace, dtype=torch.float64)
        if self.grid == "ends":
            low = torch.tensor(1 / total, dtype=torch.float64)
            u = linspace(1, (self.shifted(low, n) if self.shift_ends else low).item(), n)
        elif self.grid == "inverse":
            u = linspace(1, 1 / n, n)
        elif self.grid == "scm":
            angles = torch.tensor([1.5708, 1.3], dtype=torch.float64) if n == 2 else linspace(1.5708, 0, n + 1)[:-1]
            u = (angles.sin() / (angles.sin() + angles.cos())).clamp(max=1)  # 1.5708 is a little more than pi / 2
        else:
            u = linspace(1, 1 / total, n + 1)[:-1] if self.grid == "unipc" else linspace(1 - 1 / total, 0, n + 1)[:-1]
        t = self.shifted(u, n)
        if self.terminal:
            t = 1 - (1 - t) * (1 - self.terminal) / (1 - t[-1])
        return torch.cat([t, torch.zeros(1, dtype=torch.float64)]).float().to(self.anchor.device)

    def sample_timesteps(self, n: int, sampling: TimestepSampling = "uniform", device=None, generator=None) -> Tensor:
        return self.shifted(_fractions(n, sampling, device, generator))


def _fractions(n: int, sampling: TimestepSampling, device, generator) -> Tensor:
    """n random u in [0, 1]; logit_normal(0, 1) and mode with s = 1.29 are SD3's (arXiv 2403.03206, section 3.1)."""
    if sampling == "logit_normal":
        return torch.randn(n, device=device, generator=generator).sigmoid()
    u = torch.rand(n, device=device, generator=generator)
    return 1 - u - 1.29 * (torch.cos(math.pi / 2 * u).square() - 1 + u) if sampling == "mode" else u
