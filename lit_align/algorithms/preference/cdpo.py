"""Conservative DPO: label smoothing for pairs with a known fraction of wrong labels."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class CDPO(Preference):
    """Conservative DPO (Mitchell 2023, a note on DPO, arXiv 2305.18290): label smoothing, -(1 - e) log sigmoid(x) - e
    log sigmoid(-x), x = beta D.

    The minimum is at x = ln((1 - e) / e), so a pair's gradient vanishes there. The port to diffusion is ours.

    Args:
        beta: coefficient of D.
        flip_rate: e, the fraction of wrong labels, in [0, 0.5).
    """

    def __init__(self, beta: float = 2500.0, flip_rate: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= flip_rate < 0.5:
            raise ValueError(f"flip_rate is {flip_rate}; give a fraction in [0, 0.5).")
        self.beta, self.flip_rate = beta, flip_rate

    def loss(self, e: Errors) -> Tensor:
        x, flip = self.beta * e.gap, self.flip_rate
        return -(1 - flip) * F.logsigmoid(x) - flip * F.logsigmoid(-x)
