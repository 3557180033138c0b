"""SPIN-Diffusion: good images against the previous iterate's own."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.online_preference import OnlinePreference
from lit_align.algorithms.preference.preference import Errors


class SPINDiffusion(OnlinePreference):
    """Yuan et al. 2024, arXiv 2402.10210, eq. 10: Diffusion-DPO's loss with a data image as winner and, as loser, a
    sample of the reference for the same caption; every `refresh_every` steps the policy becomes the next reference.

    Needs good images only: the winners of a pair set, or images. (The paper draws all losers of an iteration beforehand
    and starts its optimizer anew; here losers are drawn as batches come, and the optimizer goes on.)

    Args:
        beta: coefficient of D.
        learns_from: the batch key of the good images.
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
