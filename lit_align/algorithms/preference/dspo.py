"""DSPO: score matching on winners, with the target shifted by the preference's score."""

import torch
from torch import Tensor

from lit_align.algorithms.preference.preference import Errors, Preference


class DSPO(Preference):
    """Zhu et al., ICLR 2025 (the SD 1.5 code): mean ||(eps_w - e) - lambda w (eps_w - eps_ref,w)||^2, w = 1 -
    sigmoid(beta D).

    eps_w is the policy's prediction on x^w, e the target. The reference's prediction has no gradient; w has one.

    Args:
        beta: coefficient of D in w (the paper's 0.001 times its 1/2).
        weight: lambda (the paper's beta, 0.001).
    """

    def __init__(self, beta: float = 0.0005, weight: float = 0.001, **kwargs):
        super().__init__(**kwargs)
        self.beta, self.weight = beta, weight

    def loss(self, e: Errors) -> Tensor:
        (prediction, _), (reference, _), (target, _) = e.prediction.chunk(2), e.reference.chunk(2), e.target.chunk(2)
        w = torch.sigmoid(-self.beta * e.gap).view(-1, *[1] * (target.ndim - 1))
        return self.policy.error(prediction, target + self.weight * w * (prediction - reference))
