"""DPO-Kernels: DPO with a kernel in place of the squared error between prediction and target."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.fdpo import Divergence, link
from lit_align.algorithms.preference.preference import Errors, Preference


class DPOKernels(Preference):
    """After Das et al. 2025, arXiv 2501.03271: the log-ratio is a difference of log-kernels; the divergence is f-DPO's.

    The port to diffusion is ours. For a prediction p and its target e, both of N elements, log k(p, e) is:
    - rbf: -||p - e||^2 / N (Diffusion-DPO);
    - polynomial: degree x log(1 + <p, e> / N);
    - mahalanobis: rbf, each coordinate's squared error relative to the reference's, averaged over the batch.
    u = beta (log k(p, e) - log k(p_ref, e)), and the loss is f-DPO's on u. The spectral kernel is left out: we found no
    source that names its eigenfunctions.

    Args:
        beta: coefficient of the log-kernels.
        kernel: rbf, polynomial or mahalanobis.
        degree: of the polynomial kernel.
        divergence, alpha: as in FDPO.
    """

    refuses = {"safeguard": "its loss is not one of the two errors"}

    def __init__(
        self,
        beta: float = 2500.0,
        kernel: Literal["rbf", "polynomial", "mahalanobis"] = "polynomial",
        degree: int = 2,
        divergence: Divergence = "reverse_kl",
        alpha: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.beta, self.kernel, self.degree = beta, kernel, degree
        self.divergence, self.alpha = divergence, alpha

    def log_kernel(self, prediction: Tensor, e: Errors) -> Tensor:
        """log k of predictions and e.target, both (2B, ...): (2B,)."""
        if self.kernel == "polynomial":
            return self.degree * (prediction * e.target).flatten(1).mean(1).clamp(min=-0.99).log1p()
        residual = prediction - e.target
        if self.kernel == "mahalanobis":
            variance = (e.reference - e.target).square().mean(0)
            residual = residual * (variance.mean() / variance.clamp(min=1e-8)).sqrt()
        return -residual.square().flatten(1).mean(1)

    def loss(self, e: Errors) -> Tensor:
        u = self.beta * (self.log_kernel(e.prediction, e) - self.log_kernel(e.reference, e))
        u_w, u_l = link(u, self.divergence, self.alpha).chunk(2)
        return -F.logsigmoid(u_w - u_l)
