"""PRO: the likelihood of a ranking under the policy itself, plus SFT on the best image."""

from torch import Tensor

from lit_align.algorithms.preference.ranking import Ranked, Ranking, best, plackett_luce


class PRO(Ranking):
    """Song et al. 2023, arXiv 2306.17492, eq. 7: Plackett-Luce on the policy's own log-probabilities, without a
    reference, plus SFT on the best image. The port to diffusion is ours: log p = -kappa error. (The paper's optional
    temperatures by reward gap are left out.)

    Args:
        kappa: coefficient of the errors.
        sft_weight: weight of the best image's error.
    """

    uses_reference = False

    def __init__(self, kappa: float = 250.0, sft_weight: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.kappa, self.sft_weight = kappa, sft_weight

    def loss(self, r: Ranked) -> Tensor:
        sft = (best(r.score) * r.error).sum(1)
        return plackett_luce(-self.kappa * r.error, r.score) + self.sft_weight * sft
