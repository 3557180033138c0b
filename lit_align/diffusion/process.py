"""The noising process x_t = alpha(t) x_0 + sigma(t) eps, for variance-preserving diffusion and for flow matching."""

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

TimestepSampling = Literal["uniform", "logit_normal", "mode"]
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

    def __init__(self, prediction: str):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction type {prediction!r} is unknown; use one of {', '.join(PREDICTIONS)}.")
        self.prediction = prediction

    @staticmethod
    def from_scheduler(config: dict) -> "Process":
        """The process of a diffusers scheduler, from its config (scheduler_config.json)."""
        return Flow.from_scheduler(config) if "FlowMatch" in config["_class_name"] else VP.from_scheduler(config)

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
    def sample_timesteps(self, n: int, law: TimestepSampling = "uniform", device=None, generator=None) -> Tensor:
        """n training times drawn from a law."""

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
        """The estimate of eps that a prediction at x_t stands for."""
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
        self.timestep_spacing, self.steps_offset, self.set_alpha_to_one = (
            timestep_spacing,
            steps_offset,
            set_alpha_to_one,
        )

    @classmethod
    def from_scheduler(cls, config: dict) -> "VP":
        from diffusers import DDIMScheduler

        tables = DDIMScheduler.from_config(config)  # reads every beta schedule diffusers knows
        c = tables.config
        return cls(tables.alphas_cumprod, c.prediction_type, c.timestep_spacing, c.steps_offset, c.set_alpha_to_one)

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

    def sample_timesteps(self, n: int, law: TimestepSampling = "uniform", device=None, generator=None) -> Tensor:
        """n timesteps; laws over u in [0, 1] are read as fractions of T."""
        if law == "uniform":
            return torch.randint(self.num_train_timesteps, (n,), device=device, generator=generator)
        return (
            (_fractions(n, law, device, generator) * self.num_train_timesteps)
            .long()
            .clamp(max=self.num_train_timesteps - 1)
        )


class Flow(Process):
    """The straight path: alpha = 1 - t, sigma = t, with t in [0, 1] (rectified flow; SD3, arXiv 2403.03206).

    Args:
        shift: moves times towards noise, t -> shift t / (1 + (shift - 1) t) (SD3, eq. 23).
    """

    def __init__(self, shift: float = 1.0, num_train_timesteps: int = 1000):
        super().__init__("flow")
        self.shift, self.num_train_timesteps = shift, num_train_timesteps
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # knows the device

    @classmethod
    def from_scheduler(cls, config: dict) -> "Flow":
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                "this scheduler shifts by resolution (use_dynamic_shifting); set it to false and give `shift`."
            )
        return cls(config.get("shift", 1.0), config.get("num_train_timesteps", 1000))

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.float()

    def sigma(self, t: Tensor) -> Tensor:
        return t.float()

    def shifted(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def timesteps(self, n: int) -> Tensor:
        """diffusers' grid: evenly spaced from the shifted 1 to the shifted 1/T, shifted again, then 0."""
        low = self.shifted(torch.tensor(1 / self.num_train_timesteps, dtype=torch.float64)).item()
        grid = self.shifted(torch.linspace(1, low, n, dtype=torch.float64))
        return torch.cat([grid, torch.zeros(1, dtype=torch.float64)]).float().to(self.anchor.device)

    def sample_timesteps(self, n: int, law: TimestepSampling = "uniform", device=None, generator=None) -> Tensor:
        return self.shifted(_fractions(n, law, device, generator))


def _fractions(n: int, law: str, device, generator) -> Tensor:
    """u in [0, 1] by law; logit_normal(0, 1) and mode with s = 1.29 are SD3's (arXiv 2403.03206, section 3.1)."""
    if law == "logit_normal":
        return torch.randn(n, device=device, generator=generator).sigmoid()
    u = torch.rand(n, device=device, generator=generator)
    return 1 - u - 1.29 * (torch.cos(math.pi / 2 * u).square() - 1 + u) if law == "mode" else u
