"""Elo ratings of models, and how two judges' ratings agree."""

import math

import torch
from torch import Tensor
from torchmetrics.functional import kendall_rank_corrcoef, spearman_corrcoef

from lit_align.metrics.metric import Measure


class Elo(Measure):
    """Elo ratings from pairwise outcomes: the maximum likelihood of P(i beats j) = 1 / (1 + 10^((R_j - R_i) / 400))
    (Bradley-Terry), mean 1000; a tie is half a win for each. It streams, and the order of games does not matter, as it
    does for Elo's running update.

    Raises ValueError where the maximum is at infinity: the models fall into two groups one of which never won.

    Args:
        models: their names, which `compute` rates.
        name: in logs.
    """

    def __init__(self, models: list[str], name: str = "elo"):
        super().__init__()
        if len(set(models)) < 2 or len(set(models)) < len(models):
            raise ValueError(f"models is {models}: give two or more, each once.")
        self.models, self.name = list(models), name
        self.add_sum("wins", len(models), len(models))

    def update(self, first: Tensor, second: Tensor, outcome: Tensor) -> None:
        """Games: the models' places in `models`, (N,) each, and (N,) 1 if the first won, 0 if the second did, 0.5."""
        first, second = (x.long().to(self.wins.device) for x in (first, second))
        outcome = outcome.double().to(self.wins.device)
        self.wins = self.wins.index_put((first, second), outcome, accumulate=True)
        self.wins = self.wins.index_put((second, first), 1 - outcome, accumulate=True)

    def ratings(self) -> Tensor:
        """(M,) float64."""
        wins, n = self.wins, len(self.models)
        reach = (wins > 0) | torch.eye(n, dtype=torch.bool, device=wins.device)
        for _ in range(n.bit_length()):
            reach = (reach.double() @ reach.double()) > 0  # who beat whom, directly or through others
        if not reach.all():
            i, j = (~reach).nonzero()[0].tolist()
            raise ValueError(
                f"{self.models[i]} beat {self.models[j]} neither directly nor through others: their ratings are not "
                "finite; compare more pairs."
            )
        r, games = torch.zeros(n, dtype=torch.float64, device=wins.device), wins + wins.T
        for _ in range(100):  # Newton's method; the likelihood is concave
            p = torch.sigmoid(r[:, None] - r[None])
            gradient, weight = (wins - games * p).sum(1), games * p * (1 - p)
            hessian = torch.diag(weight.sum(1)) - weight
            step = torch.linalg.solve(hessian + 1 / n, gradient)  # the mean of r does not matter: it stays 0
            r = r + step * min(1.0, 4 / step.abs().max().item()) if step.abs().max() > 0 else r
            if step.abs().max() < 1e-12:
                break
        return 1000 + 400 / math.log(10) * (r - r.mean())

    def compute(self) -> dict[str, Tensor]:
        return {f"{self.name}/{model}": r.float() for model, r in zip(self.models, self.ratings())}


class EloCorrelation(Measure):
    """How far a scorer rates models as people do: Spearman's rank correlation of the two Elo ratings, and Kendall's
    tau-b, which is better of few models (Kirstain et al. 2023, arXiv 2305.01569, section 5). It streams.

    Args:
        models: their names.
    """

    name = "elo_correlation"

    def __init__(self, models: list[str]):
        super().__init__()
        self.human, self.scorer = Elo(models), Elo(models)

    def update(self, first: Tensor, second: Tensor, human: Tensor, scorer: Tensor) -> None:
        """Games as Elo takes them, with the outcome by people and by the scorer, (N,) each."""
        self.human.update(first, second, human)
        self.scorer.update(first, second, scorer)

    def compute(self) -> dict[str, Tensor]:
        for part in (self.human, self.scorer):
            part.compute()  # also gathers the games of all processes
        a, b = (torch.stack(list(part.compute().values())) for part in (self.human, self.scorer))
        return {f"{self.name}/spearman": spearman_corrcoef(a, b), f"{self.name}/kendall": kendall_rank_corrcoef(a, b)}

    def reset(self) -> None:
        super().reset()
        self.human.reset()
        self.scorer.reset()
