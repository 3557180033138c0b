"""The preference family: pairs -> encode -> one (t, eps) per pair -> one forward for both images -> `loss(errors)`."""

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm
from lit_align.algorithms.parts.denoising_errors import denoised


class Errors(NamedTuple):
    """Denoising errors of B pairs, each (B,): mean over the sample of (prediction - target)^2, in float32.

    `ref_win` and `ref_lose` are the reference's, without gradient; zeros for a method without a reference.
    """

    win: Tensor
    lose: Tensor
    ref_win: Tensor
    ref_lose: Tensor
    # read by a few methods only
    t: Tensor | None = None  # (B,) the pair's timestep
    prediction: Tensor | None = None  # (2B, ...) of the policy, winners first
    target: Tensor | None = None  # (2B, ...)
    reference: Tensor | None = None  # (2B, ...) prediction of the reference
    batch: dict | None = None

    @property
    def gap(self) -> Tensor:
        """D = (ref_win - win) - (ref_lose - lose): positive where the policy improved more on x^w than on x^l."""
        return (self.ref_win - self.win) - (self.ref_lose - self.lose)


def safeguarded(e: Errors, mu: float) -> Errors:
    """Diffusion-SDPO (arXiv 2511.03317): scales each loser's gradient by lambda = (1 - mu) |g_w|^2 / <g_l, g_w>,
    clipped to [0, 1] (1 if the product is not positive); g_w and g_l are the gradients of the errors in the
    predictions. To first order the winner's error then falls by at least mu |g_w|^2. Values do not change."""
    (g,) = torch.autograd.grad((e.win + e.lose).sum(), e.prediction, retain_graph=True)
    g_w, g_l = g.flatten(1).chunk(2)  # (B, CHW)
    dot = (g_l * g_w).sum(1)
    scale = ((1 - mu) * g_w.square().sum(1) / (dot + 1e-9)).clamp(0, 1).where(dot > 0, 1.0)
    return e._replace(lose=e.lose.detach() + scale * (e.lose - e.lose.detach()))


class Preference(Algorithm):
    """Base of the methods that learn from pairs (x^w, x^l, c). A method overrides `loss`.

    Both images and the reference share one timestep and one noise per pair, so what they have in common cancels in D.
    Errors are *means* over the sample, and beta multiplies D in these units (it is CHW times the beta of a paper that
    sums over C H W, and half the beta of a paper that writes beta / 2).

    Logs `train/implicit_accuracy` (fraction of pairs with D > 0, ties count half), `train/margin` (mean D) and the four
    mean errors `train/error/{win,lose,ref_win,ref_lose}`; the same under `val/` when the data has validation pairs.

    Args:
        timestep_sampling: distribution of t: uniform, or logit_normal or mode for flow matching (arXiv 2403.03206).
        safeguard: mu of Diffusion-SDPO in [0, 1], which keeps the winner's error from rising; none: off.
    """

    feedback = ("win", "lose")
    uses_reference = weighs_pairs = True
    refuses: dict[str, str] = {}  # arguments below that a method cannot use, and why

    def __init__(
        self,
        timestep_sampling: Literal["uniform", "logit_normal", "mode"] = "uniform",
        safeguard: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.timestep_sampling, self.safeguard = timestep_sampling, safeguard
        for name, unset in (("timestep_sampling", "uniform"), ("safeguard", None)):
            if name in self.refuses and getattr(self, name) != unset:
                raise ValueError(f"{type(self).__name__} has no {name}, as {self.refuses[name]}: leave it out.")

    @abstractmethod
    def loss(self, e: Errors) -> Tensor:
        """The method's equation: (B,) from errors of shape (B,) each."""

    def noise(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Timesteps (2B,) and noises (2B, ...) for images x_0 (2B, ...), winners first; one draw per pair."""
        n = len(x_0) // 2
        t = self.policy.process.sample_timesteps(n, self.timestep_sampling, device=x_0.device)
        eps = torch.randn_like(x_0[:n])
        return torch.cat([t, t]), torch.cat([eps, eps])

    def noised(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x_0, t and eps whose x_t the networks see and whose target they are compared with: the images x_0 (2B, ...)
        themselves, with `noise`."""
        return x_0, *self.noise(x_0, cond)

    def errors(self, batch: dict) -> Errors:
        x_0 = torch.cat([self.latents(batch, "win"), self.latents(batch, "lose")])  # (2B, C, h, w)
        cond = {k: torch.cat([v, v]) for k, v in self.cond(batch).items()}
        x_0, t, eps = self.noised(x_0, cond)
        d = denoised(self.policy, x_0, t, eps, cond, self.uses_reference)
        t = t[: len(t) // 2]
        return Errors(*d.error.chunk(2), *d.ref_error.chunk(2), t, d.prediction, d.target, d.reference, batch)

    def batch_loss(self, batch: dict) -> Tensor:
        return self.logged_loss(batch, "train")

    def logged_loss(self, batch: dict, stage: str) -> Tensor:
        """Mean loss of a batch; logs its errors under `<stage>/`."""
        e = self.errors(batch)
        with torch.no_grad():
            gap = e.gap
            self.log_mean(
                f"{stage}/implicit_accuracy", (gap > 0).float().mean() + 0.5 * (gap == 0).float().mean(), len(gap)
            )
            self.log_mean(f"{stage}/margin", gap.mean(), len(gap))
            for name in ("win", "lose", "ref_win", "ref_lose"):
                self.log_mean(f"{stage}/error/{name}", getattr(e, name).mean(), len(gap))
        if self.safeguard is not None and torch.is_grad_enabled():
            e = safeguarded(e, self.safeguard)
        return (self.loss(e) * batch["weight"].to(e.win)).mean() if "weight" in batch else self.loss(e).mean()

    def on_validation_start(self) -> None:
        torch.manual_seed(0)  # the same timesteps and noises at every validation

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict | None:
        if "win" not in batch and "win_latents" not in batch:
            return super().validation_step(batch, batch_idx, dataloader_idx)
        self.log_mean("val/loss", self.logged_loss(batch, "val"), len(batch["prompt"]))
