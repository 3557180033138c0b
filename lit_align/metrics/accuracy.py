"""How often scores order two images as people do."""

import torch
from torch import Tensor

from lit_align.metrics.metric import Measure, cat


class PairwiseAccuracy(Measure):
    """Agreement of scores with people's judgements of the images of a prompt, by the counts that papers quote.

    C, D: pairs in the same and in the opposite order; T_m, T_h, T: pairs tied by the scores alone, by people alone, by
    both; N all pairs.

    - `strict`: C / (C + D + T_m): people's ties are left out, ties of the scores are wrong (ImageReward's test.py).
    - `half`: (C + T_m / 2) / (C + D + T_m): ties of the scores are half right.
    - `per_prompt`: `strict` of each prompt, then the mean over prompts that have a pair (HPS v2's on ImageRewardDB).
    - `not_inverted`: 1 - D / pairs of each prompt, then the mean: every tie is right (HPS v2's on HPD v2).
    - `with_ties`: (C + T) / N where scores that differ by at most epsilon are tied, at the best epsilon (Deutsch et al.
      2023, arXiv 2305.14324), and `tau_23` = (C + T - D - T_h - T_m) / N there.
    - `pairs`, `ties`: N, and people's ties.

    Only margins are kept, a number for each pair.
    """

    name = "accuracy"

    def __init__(self):
        super().__init__()
        self.add_rows("margin")
        self.add_rows("label")
        for state in ("strict", "strict_n", "kept", "kept_n"):
            self.add_sum(state)

    def update(self, scores: Tensor, human: Tensor) -> None:
        """The scores and the judgements, both (K,) and higher is better, of the K images of one prompt."""
        scores, human = scores.double().flatten(), human.double().flatten().to(scores.device)
        if len(scores) != len(human):
            raise ValueError(f"{len(scores)} scores and {len(human)} judgements were given: one each per image.")
        i, j = torch.triu_indices(len(scores), len(scores), 1, device=scores.device)
        margin, label = scores[i] - scores[j], (human[i] - human[j]).sign()
        known = ~(human[i] - human[j]).isnan()
        margin, label = margin[known], label[known]
        if margin.isnan().any():
            raise ValueError("a score is NaN: an image that could not be scored has no place in an accuracy.")
        if not len(margin):
            return
        self.margin.append(margin)
        self.label.append(label)
        judged = label != 0
        self.kept, self.kept_n = self.kept + (margin.sign() * label >= 0).double().mean(), self.kept_n + 1
        if judged.any():
            right = (margin.sign() == label)[judged].double().mean()
            self.strict, self.strict_n = self.strict + right, self.strict_n + 1

    def compute(self) -> dict[str, Tensor]:
        margin, label = cat(self.margin), cat(self.label)
        judged = label != 0
        agree = margin.sign() * label
        n, c, tied = judged.sum(), (agree > 0).sum(), (judged & (margin == 0)).sum()
        with_ties, tau = best_with_ties(margin, label)
        found = {"strict": c / n, "half": (c + tied / 2) / n, "per_prompt": self.strict / self.strict_n}
        found |= {"not_inverted": self.kept / self.kept_n, "with_ties": with_ties, "tau_23": tau}
        found |= {"pairs": torch.tensor(len(label)), "ties": (~judged).sum()}
        return {f"{self.name}/{k}": v.float() for k, v in found.items()}


def best_with_ties(margin: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The largest (C + T) / N over epsilon, and tau_23 there, of margins (N,) and labels (N,) in {-1, 0, 1}."""
    size, order = margin.abs().sort()
    label, right = label[order], (margin.sign() == label)[order] & (label[order] != 0)
    zero = torch.zeros(1, device=margin.device, dtype=torch.long)
    both = torch.cat([zero, (label == 0).cumsum(0)])  # tied by both, if the first k are tied by epsilon
    c = right.sum() - torch.cat([zero, right.cumsum(0)])
    cuts = torch.cat([size[:-1] < size[1:], torch.ones(1, dtype=torch.bool, device=margin.device)])  # not within equals
    ends = torch.cat([(size[:1] > 0), cuts])  # epsilon 0 ties margins of 0
    share = torch.where(ends, both + c, -1)
    best = share.argmax()
    return share[best] / len(label), (2 * share[best] - len(label)) / len(label)
