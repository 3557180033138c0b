"""Divide & Bind: objects' maps vary over the image, and attributes' maps lie on their objects."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.steering.attention_loss import AttentionLoss, smoothed


def total_variation(maps: Tensor, legacy: bool = False) -> Tensor:
    """Mean |difference| of neighbouring rows, plus of neighbouring columns, of a map (h, w). The release compares the
    last row with each row but the first in place of neighbouring rows (`legacy`)."""
    above = maps[-1:] if legacy else maps[:-1]
    return (maps[1:] - above).abs().mean() + (maps[:, 1:] - maps[:, :-1]).abs().mean()


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Divergence of two distributions (N,)."""
    m = ((p + q) / 2).log()
    return (F.kl_div(m, p, reduction="sum") + F.kl_div(m, q, reduction="sum")) / 2


class DivideBind(AttentionLoss):
    """Li et al., BMVC 2023 (arXiv 2307.10864): the loss is max over objects s of -(TV(A_s) - c JSD(A_s, A_r)), eq. 4 to
    7, where r are the attributes of s, and JSD is their maps' mean Jensen-Shannon divergence. Otherwise as
    Attend-and-Excite; at the thresholds the smallest TV is refined.

    Attributes' maps are taken at the objects' resolution (the release averages two finer ones down to it), and both are
    made distributions before they are compared (in the release they do not sum to 1).

    Args:
        objects, attributes: words of the prompt, see PhraseHook.
        bind: false leaves the divergence out.
        step_size: of the gradient, scaled by sqrt(l), with l falling from 1 to 1/2 over the run.
        end: the fraction of the run that is steered.
        thresholds: fraction of the run -> the total variation to be reached there (default: 0.05, 0.2 and 0.3 at 0, 0.2
            and 0.4).
        refinements: gradient steps at most, at each of them.
        cell: latents to a side of a map's cell.
        padding: false leaves padding and special tokens out of the softmax.
        legacy_tv: the release's total variation, which the thresholds were tuned with.
    """

    def __init__(
        self,
        objects: list[str] | None = None,
        attributes: list[str] | None = None,
        bind: bool = True,
        step_size: float = 20.0,
        end: float = 0.5,
        thresholds: dict[float, float] | None = None,
        refinements: int = 50,
        cell: int = 4,
        padding: bool = True,
        legacy_tv: bool = False,
    ):
        thresholds = {0.0: 0.05, 0.2: 0.2, 0.4: 0.3} if thresholds is None else thresholds
        super().__init__(objects, attributes, step_size, end, thresholds, refinements, cell, padding)
        self.bind, self.legacy_tv = bind, legacy_tv

    def judge_maps(self, maps, phrases, progress):
        c = 1.0 if progress < 0.2 else 5.0 if progress < 0.4 else 10.0
        losses, scores = [], []
        for phrase in phrases:
            thing = smoothed(maps[..., phrase.object].mean(-1))
            tv = total_variation(thing, self.legacy_tv)
            loss, share = -tv, 0.3 if tv < 0.1 else 0.2
            if self.bind and phrase.attributes:
                gaps = [self.gap(thing, smoothed(maps[..., a].mean(-1)), share) for a in phrase.attributes]
                loss = loss + c * torch.stack(gaps).mean()
            losses.append(loss)
            scores.append(tv)
        return torch.stack(losses).amax(), torch.stack(scores).amin()

    def gap(self, thing: Tensor, attribute: Tensor, share: float) -> Tensor:
        """Divergence of an attribute's map, scaled to the object's maximum, from the object's. Both are softmaxed over
        the image, and what is below `share` of the object's maximum is cut off."""
        maps = torch.stack([thing, attribute / attribute.amax() * thing.amax()]).flatten(1).softmax(1)
        maps = (maps - share * maps[0].amax()).relu() + 1e-5
        return jensen_shannon(*(maps / maps.sum(1, keepdim=True)))
