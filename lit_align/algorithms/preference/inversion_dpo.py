"""Inversion-DPO: Diffusion-DPO on the steps of a DDIM inversion by the reference."""

import torch
from torch import Tensor

from lit_align.algorithms.preference.inpo import InPO


class InversionDPO(InPO):
    """Li et al. 2025, arXiv 2507.11554: the reference inverts winner and loser to noise, without guidance, on a grid of
    `inversion_steps`. At a grid time t drawn for each pair, the target is the noise with which the inversion's last
    step made x_t: with it DDIM goes back along the same path. The loss is Diffusion-DPO's on these errors.

    (Released: all times of the grid in one step; both networks at the x_s below, where the reference's error and the
    gradient at the start are 0; a weight 1 / (2 alpha^2), guidance 2, and the opposite sign.)

    Args:
        inversion_steps: points of the grid.
        refinements: as in InPO.
    """

    def __init__(self, beta: float = 1000.0, inversion_steps: int = 80, refinements: int = 0, **kwargs):
        super().__init__(beta=beta, inversion_steps=inversion_steps, eta=0.0, refinements=refinements, **kwargs)

    @torch.no_grad()
    def noised(self, x_0: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        with self.policy.reference():
            _, t, clean, eps = self.inverted(x_0, cond)
        return clean, t, eps
