"""Diffusion-IPO: squared distance of the gap from a target margin, which limits how far a pair pushes."""

from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class DiffusionIPO(Preference):
    """Azar et al. 2023, arXiv 2310.12036, eq. 17: (h - 1 / (2 tau))^2, h the difference of log-ratios. The port to
    diffusion is ours: h is the error gap D, tau = beta / 2, and the loss is scaled to (beta D - 1)^2, without units.

    Args:
        beta: coefficient of D; the target margin of D is 1 / beta.
    """

    def __init__(self, beta: float = 2500.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def loss(self, e: Errors) -> Tensor:
        return (self.beta * e.gap - 1).square()
