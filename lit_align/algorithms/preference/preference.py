"""The preference family: pairs -> encode -> one (t, eps) per pair -> one forward for both images -> `loss(errors)`."""

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm


class Errors(NamedTuple):
    """Denoising errors of a pair, each (B,): mean over the sample of (prediction - target)^2, in float32.

    `ref_win` and `ref_lose` are the reference's, without gradient; zeros for a method without a reference.
    """

    win: Tensor
    lose: Tensor
    ref_win: Tensor
    ref_lose: Tensor

    @property
    def gap(self) -> Tensor:
        """D = (ref_win - win) - (ref_lose - lose): positive where the policy improved more on x^w than on x^l."""
        return (self.ref_win - self.win) - (self.ref_lose - self.lose)


class Preference(Algorithm):
    """Base of the methods that learn from pairs (x^w, x^l, c). A method overrides `loss`.

    One timestep and one noise per pair, shared by both images and by the reference: what they have in common cancels
    in D. Errors are *means* over the sample, so a method's beta is the coefficient that multiplies D in these units
    (a paper that sums over C H W has beta / CHW; one that writes beta / 2 has half of its beta).

    Logs `train/implicit_accuracy` (share of pairs with D > 0, ties count half), `train/margin` (mean D) and the four
    mean errors `train/error/{win,lose,ref_win,ref_lose}`; the same under `val/` when the data has validation pairs.

    Args:
        timestep_law: how t is drawn: uniform, logit_normal or mode (the last two for flow matching, arXiv 2403.03206).
    """

    feedback = ("win", "lose")
    uses_reference = True

    def __init__(self, timestep_law: Literal["uniform", "logit_normal", "mode"] = "uniform", **kwargs):
        super().__init__(**kwargs)
        self.timestep_law = timestep_law

    @abstractmethod
    def loss(self, e: Errors) -> Tensor:
        """The method's equation: (B,) from errors of shape (B,) each."""

    def errors(self, batch: dict) -> Errors:
        win, lose = self.latents(batch, "win"), self.latents(batch, "lose")
        process, n = self.policy.process, len(win)
        t = process.sample_timesteps(n, self.timestep_law, device=win.device).repeat(2)
        eps = torch.randn_like(win).repeat(2, 1, 1, 1)
        x_0 = torch.cat([win, lose])  # (2B, C, h, w)
        x_t, target = process.add_noise(x_0, eps, t), process.target(x_0, eps, t)
        cond = {k: torch.cat([v, v]) for k, v in self.cond(batch).items()}
        error = self.policy.error(self.policy.denoise(x_t, t, cond), target)
        reference = torch.zeros_like(error)
        if self.uses_reference:
            with torch.no_grad(), self.policy.reference():
                reference = self.policy.error(self.policy.denoise(x_t, t, cond), target)
        return Errors(*error.chunk(2), *reference.chunk(2))

    def step(self, batch: dict) -> Tensor:
        return self.measure(batch, "train")

    def measure(self, batch: dict, stage: str) -> Tensor:
        """The mean loss of a batch, its errors logged under `<stage>/`."""
        e = self.errors(batch)
        with torch.no_grad():
            gap = e.gap
            self.log_mean(f"{stage}/implicit_accuracy", (gap > 0).float().mean() + 0.5 * (gap == 0).float().mean(), len(gap))
            self.log_mean(f"{stage}/margin", gap.mean(), len(gap))
            for name, error in e._asdict().items():
                self.log_mean(f"{stage}/error/{name}", error.mean(), len(gap))
        return self.loss(e).mean()

    def on_validation_start(self) -> None:
        torch.manual_seed(0)  # the same timesteps and noises at every validation

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict | None:
        if "win" not in batch and "win_latents" not in batch:
            return super().validation_step(batch, batch_idx, dataloader_idx)
        self.log_mean("val/loss", self.measure(batch, "val"), len(batch["prompt"]))
