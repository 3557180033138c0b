"""DDE: the weight of a pair depends on the denoising step and peaks at the middle ones."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class DDE(Preference):
    """After Shi et al. 2024, arXiv 2411.14871 (direct distributional estimation): -log sigmoid(beta w(t) D).

    The paper's credit of step t peaks in the middle of the trajectory. Its coefficients are not public, so w is our
    reconstruction, not a reproduction. An error at step t moves the estimate of x_0 by sigma / alpha (the single-shot
    estimator); of this change the fraction alpha survives the later steps (the stepwise one). In variance the product
    is (sigma / alpha)^2 alpha^4 = sigma^2 alpha^2: unimodal, zero at both ends, scaled to mean 1 over t.

    Args:
        beta: coefficient of D where w = 1.
    """

    def __init__(self, beta: float = 2500.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def weight(self, t: Tensor) -> Tensor:
        """w (B,) at times t (B,)."""
        process = self.policy.process
        product = lambda t: (process.sigma(t) * process.alpha(t)).square()
        return product(t) / product(process.timesteps(process.num_train_timesteps)[:-1]).mean()

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * self.weight(e.t) * e.gap)
