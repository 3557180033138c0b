"""Diffusion-DPO: a logistic loss on how much more the policy than the reference prefers x^w to x^l."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class DiffusionDPO(Preference):
    """Wallace et al. 2023, arXiv 2311.12908, eq. 14: loss = -log sigmoid(beta D), with D the gap of `Errors`.

    At the start policy and reference agree, D = 0 and the loss is ln 2; it stays near there while the model learns:
    judge by implicit accuracy and by samples.

    Args:
        beta: coefficient of D. The paper's and the official code's beta is twice this: 2500 here is their 5000.
    """

    def __init__(self, beta: float = 2500.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
