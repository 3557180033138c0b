"""Attend-and-Excite: each object of the prompt must have a patch that attends to it."""

import torch

from lit_align.steering.attention_loss import AttentionLoss, smoothed


class AttendExcite(AttentionLoss):
    """Chefer et al., SIGGRAPH 2023 (arXiv 2301.13826), algorithm 1: the loss is max over objects s of 1 - max A_s, with
    A_s the smoothed map of s (eq. 1 and 2); x_t <- x_t - alpha_t grad L.

    The published run has 50 steps, guidance 7.5 and 32-bit weights: gradients of these softmaxes underflow in 16 bits.

    Args:
        objects, attributes: words of the prompt, see PhraseHook; only the objects are excited.
        step_size: alpha, scaled by sqrt(l), with l falling from 1 to 1/2 over the run.
        end: the fraction of the run that is steered.
        thresholds: fraction of the run -> the smallest maximum to be reached there (default: 0.05, 0.5 and 0.8 at 0,
            0.2 and 0.4).
        refinements: gradient steps at most, at each of them.
        cell: latents to a side of a map's cell: 4 gives 16 x 16 maps for 64 x 64 latents.
        padding: false leaves padding and special tokens out of the softmax, as released for SD 2.1.
    """

    def __init__(
        self,
        objects: list[str] | None = None,
        attributes: list[str] | None = None,
        step_size: float = 20.0,
        end: float = 0.5,
        thresholds: dict[float, float] | None = None,
        refinements: int = 20,
        cell: int = 4,
        padding: bool = True,
    ):
        thresholds = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8} if thresholds is None else thresholds
        super().__init__(objects, attributes, step_size, end, thresholds, refinements, cell, padding)

    def judge_maps(self, maps, phrases, progress):
        peaks = torch.stack([smoothed(maps[..., phrase.object].mean(-1)).amax() for phrase in phrases])
        return (1 - peaks.amin()).clamp(min=0), peaks.amin()
