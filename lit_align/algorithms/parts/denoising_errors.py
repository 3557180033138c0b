"""Denoising errors, from which all preference losses are computed."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.policies.policy import Policy


class Denoised(NamedTuple):
    """Predictions of the policy and its reference on N noised images."""

    error: Tensor  # (N,) mean over the sample of (prediction - target)^2, float32
    ref_error: Tensor  # (N,) of the reference, without gradient; zeros if there is none
    prediction: Tensor  # (N, ...)
    target: Tensor  # (N, ...)
    reference: Tensor | None  # (N, ...) the reference's prediction


def denoised(
    policy: Policy, x_0: Tensor, t: Tensor, eps: Tensor, cond: dict[str, Tensor], reference: bool = True
) -> Denoised:
    """Noises x_0 (N, C, h, w) with eps to times t (N,) and evaluates the policy and, if `reference`, the reference."""
    x_t, target = policy.process.add_noise(x_0, eps, t), policy.process.target(x_0, eps, t)
    prediction, ref_prediction = policy.denoise(x_t, t, cond), None
    error = policy.error(prediction, target)
    ref_error = torch.zeros_like(error)
    if reference:
        with torch.no_grad(), policy.reference():
            ref_prediction = policy.denoise(x_t, t, cond)
        ref_error = policy.error(ref_prediction, target)
    return Denoised(error, ref_error, prediction, target, ref_prediction)
