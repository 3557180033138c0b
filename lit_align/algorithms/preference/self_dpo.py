"""Self-Supervised DPO: a pair is an image and another image of the batch, which does not belong to the caption."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class SelfDPO(Preference):
    """Peng et al. 2025, Self-Supervised DPO (NeurIPS 2025; first arXiv 2504.14534): Diffusion-DPO in which a caption's
    image wins against a degraded one, without labels. The paper's best degradation, as released, is another image of
    the batch. (Released: a random permutation, which leaves some images in place; here the batch moves on by a random
    number of places, so that every loser is another image.)

    Validation pairs keep their own losers.

    Args:
        beta: coefficient of D.
        learns_from: batch key of the images.
    """

    def __init__(self, beta: float = 2500.0, learns_from: Literal["win", "image"] = "image", **kwargs):
        super().__init__(**kwargs)
        self.beta, self.feedback = beta, (learns_from,)

    def batch_loss(self, batch: dict) -> Tensor:
        win = self.latents(batch, self.feedback[0])
        if len(win) < 2:
            raise ValueError(
                "SelfDPO takes another image of the batch as the loser: set --data.batch_size to 2 or more."
            )
        shift = int(torch.randint(1, len(win), ()))
        return super().batch_loss(batch | {"win_latents": win, "lose_latents": win.roll(shift, 0)})

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
