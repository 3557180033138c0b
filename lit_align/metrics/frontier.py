"""Reward against distance from the base model."""

import torch
from torch import Tensor

from lit_align.metrics.metric import Measure, cat


class KLRewardFrontier(Measure):
    """Fits how a gold reward rises and falls while a model moves away from its base, by Gao et al. 2022 (arXiv
    2210.10760): with d = sqrt(KL), R(d) = d (alpha - beta d) for best-of-n, and d (alpha - beta log d) for RL.

    `compute` gives alpha and beta by least squares, the share of variance that they explain, and `peak_kl`, the KL at
    which the fitted reward is largest (alpha / 2 beta squared, or exp(alpha / beta - 1) squared; nan if beta is not
    above 0: the reward only rises). `best_kl` and `best` are those of the measured point with the largest reward.

    Args:
        form: bon or rl.
        name: in logs.
    """

    def __init__(self, form: str = "rl", name: str = "frontier"):
        super().__init__()
        if form not in ("bon", "rl"):
            raise ValueError(f"form is {form}: give bon or rl.")
        self.form, self.name = form, name
        self.add_rows("kl")
        self.add_rows("reward")

    def update(self, kl: Tensor, reward: Tensor) -> None:
        """KL from the base model (nats, above 0) and the reward minus the base model's, (N,) each."""
        if not (kl > 0).all():
            raise ValueError("KL must be above 0: leave out the base model itself.")
        self.kl.append(kl.double())
        self.reward.append(reward.double())

    def compute(self) -> dict[str, Tensor]:
        d, reward = cat(self.kl).sqrt(), cat(self.reward)
        if len(d) < 2:
            raise ValueError("two points are needed to fit alpha and beta.")
        bend = d.square() if self.form == "bon" else d * d.log()
        basis = torch.stack([d, -bend], 1)
        alpha, beta = torch.linalg.lstsq(basis, reward[:, None]).solution[:, 0]
        rest = (reward - basis @ torch.stack([alpha, beta])).square().sum()
        peak = (alpha / (2 * beta) if self.form == "bon" else torch.exp(alpha / beta - 1)).square()
        best = torch.where(reward == reward.max(), d, float("inf")).argmin()  # the nearest of several
        found = {"alpha": alpha, "beta": beta, "explained": 1 - rest / (reward - reward.mean()).square().sum()}
        found |= {"peak_kl": peak if beta > 0 else peak.new_tensor(float("nan"))}
        found |= {"best_kl": d[best].square(), "best": reward[best]}
        return {f"{self.name}/{k}": v.float() for k, v in found.items()}


def best_of_n_kl(n: int) -> float:
    """An upper bound of the KL of best-of-n from its base: log n - (n - 1) / n."""
    return torch.log(torch.tensor(float(n))).item() - (n - 1) / n
