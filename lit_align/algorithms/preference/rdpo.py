"""Robust DPO: an unbiased estimate of the clean labels' loss from noisy labels."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.cdpo import CDPO
from lit_align.algorithms.preference.preference import Errors


class RDPO(CDPO):
    """Robust DPO (Ray Chowdhury et al. 2024, arXiv 2403.00409, eq. 12): an unbiased estimate of the clean labels' loss,
    [-(1 - e) log sigmoid(x) + e log sigmoid(-x)] / (1 - 2 e). Unbounded below. The port to diffusion is ours."""

    def loss(self, e: Errors) -> Tensor:
        x, flip = self.beta * e.gap, self.flip_rate
        return (-(1 - flip) * F.logsigmoid(x) + flip * F.logsigmoid(-x)) / (1 - 2 * flip)
