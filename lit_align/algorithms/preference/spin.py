"""SPIN-Diffusion: good images against samples of the previous iterate."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.online_preference import OnlinePreference
from lit_align.algorithms.preference.preference import Errors


class SPINDiffusion(OnlinePreference):
    """Yuan et al. 2024, arXiv 2402.10210, eq. 10: Diffusion-DPO's loss with a data image as winner and a sample of the
    reference for the same caption as loser. Every `refresh_every` steps the policy becomes the next reference.

    Needs good images only: the winners of a pair set, or images. (The paper samples all losers of an iteration in
    advance and restarts its optimizer; here losers are sampled per batch and the optimizer continues.)

    Args:
        beta: coefficient of D.
        learns_from: batch key of the good images.
    """

    feedback = ("win",)

    def __init__(
        self,
        beta: float = 500.0,
        refresh_every: int = 50,
        learns_from: Literal["win", "image"] = "win",
        **kwargs,
    ):
        super().__init__(refresh_every=refresh_every, **kwargs)
        self.beta, self.feedback = beta, (learns_from,)

    def collect(self, batch: dict) -> dict:
        win = self.latents(batch, self.feedback[0])
        return batch | {"win_latents": win, "lose_latents": self.reference_latents(batch)}

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
