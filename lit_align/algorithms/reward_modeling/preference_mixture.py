"""A mixture of preferences: annotators in groups, a reward for each group, found by expectation-maximisation."""

import json
import os
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.reward_modeling.image_rewards import SeveralRewards


class PreferenceMixture(SeveralRewards):
    """P(pair of annotator h) = sum_u pi_u prod over h's pairs of sigmoid(r_u(x^w) - r_u(x^l)) (MaxMin-RLHF, Chakraborty
    et al. 2024, arXiv 2402.08925, section 4 and algorithm 2, which assigns each annotator to the likeliest group; here
    by its probability). The E-step is made batch by batch: an annotator's log-likelihoods are sums over the pairs seen,
    of which older ones, judged by older rewards, fade. The M-step is a gradient step on the pairs' cross-entropies,
    weighted by their annotator's probabilities of the groups.

    An annotator begins in a random group: rewards that start equal would stay so. Logs `train/group/<name>`, the
    groups' shares of the annotators. Beside the rewards it writes `<run>/reward/annotators.json`: id -> probability of
    each group. MaxMin trains a policy on such rewards.

    Args:
        annotator: the data's column with the annotator's id.
        fade: what an annotator's log-likelihoods are multiplied by before those of the next batch are added.
        rewards: name -> reward model to train, one for each group.
        freeze, policy: see ImageRewards.
    """

    models_ties = False

    def __init__(self, annotator: str = "user_id", fade: float = 0.95, **kwargs):
        super().__init__(**kwargs)
        self.annotator, self.fade = annotator, fade
        self.evidence: dict[str, list[float]] = {}  # annotator -> log-likelihood of each group

    def check(self, batch: dict) -> None:
        super().check(batch)
        if self.annotator not in batch["columns"]:
            found = ", ".join(batch["columns"]) or "none"
            raise ValueError(f"annotator: the data has no column `{self.annotator}`; its columns are {found}.")

    def groups(self, annotators: list) -> Tensor:
        """P(group) of each annotator, (B, R); of one not seen, the groups' shares."""
        shares = self.shares()
        evidence = torch.tensor([self.evidence.get(str(a), [0.0] * len(shares)) for a in annotators])
        return (evidence + shares.log()).softmax(1)

    def shares(self) -> Tensor:
        """pi, (R,): the mean over annotators of P(group), all groups equal before."""
        n = len(self.reward.names)
        known = torch.tensor(list(self.evidence.values())).view(-1, n)
        return (torch.cat([known.softmax(1), torch.full((1, n), 1 / n)])).mean(0)  # one more, so that none is empty

    @torch.no_grad()
    def expect(self, log_p: Tensor, annotators: list) -> None:
        """Adds log-likelihoods (B, R) of pairs to their annotators', of all ranks."""
        found = list(zip(map(str, annotators), log_p.tolist()))
        if self.trainer.world_size > 1:
            parts = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, found)
            found = [pair for part in parts for pair in part]
        for name in dict.fromkeys(name for name, _ in found):
            mine = torch.tensor([values for of, values in found if of == name]).sum(0)
            if name not in self.evidence:
                group = torch.tensor(zlib.crc32(name.encode()) % log_p.shape[1])
                self.evidence[name] = (4.0 * F.one_hot(group, log_p.shape[1])).tolist()
            self.evidence[name] = (self.fade * torch.tensor(self.evidence[name]) + mine).tolist()

    def loss(self, batch: dict, stage: str) -> Tensor:
        win, lose = self.win_and_lose(batch)
        log_p, annotators = F.logsigmoid(win - lose), batch["columns"][self.annotator]  # (B, R)
        if stage == "train":
            self.expect(log_p, annotators)
            for name, share in zip(self.reward.names, self.shares()):
                self.log_mean(f"train/group/{name}", share, len(win))
        group = self.groups(annotators).to(log_p)
        self.log_accuracy((group * log_p.detach().exp()).sum(1) - 0.5, stage)
        return -((group * log_p).sum(1) * self.weights(batch, win)).mean()

    def get_extra_state(self) -> dict:
        return {"evidence": self.evidence}

    def set_extra_state(self, state: dict) -> None:
        self.evidence = dict(state["evidence"])

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.trainer.is_global_zero:
            found = zip(self.evidence, self.groups(list(self.evidence)).tolist())
            table = {name: dict(zip(self.reward.names, row)) for name, row in found}
            with open(os.path.join(self.trainer.default_root_dir, "reward/annotators.json"), "w") as file:
                json.dump(table, file, indent=1)
