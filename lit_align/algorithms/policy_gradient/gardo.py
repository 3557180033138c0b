"""GARDO: the KL holds back only samples whose reward is in doubt, from a reference that follows the policy; and good
samples count more, the further they are from the prompt's others."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.diffusion.state import Trajectory
from lit_align.ranges import POSITIVE, SHARE
from lit_align.rewards.reward import Reward


class GARDO(FlowGRPO):
    """He et al. 2025, arXiv 2512.24138: Flow-GRPO with three changes.

    Gated: a sample's doubt is its win rate over all samples by the reward, less its mean win rate by the `judges`; the
    KL applies to the `gated` samples of most doubt. (Released: ranks that count from the best, which turns the sign.)
    Adaptive: the reference becomes the policy every `refresh_every` training steps, and after a step whose mean KL of
    the gated samples exceeds `max_kl`.
    Diverse: A = r - mean of the prompt's samples, without a standard deviation, as released; positive ones times d /
    mean d, d the distance 1 - cos to the prompt's nearest other sample in the features.

    Logs `train/gated_kl`.

    Args:
        judges: other rewards than the one that is maximised.
        features: a reward whose `embed` tells images apart (the paper: DINOv3).
        gated: share of the samples to which the KL applies.
        max_kl: of a step, in nats per dimension of the sample; none: the reference moves by `refresh_every` alone.
    """

    uses_advantage = takes_masked_rewards = False
    ranges = FlowGRPO.ranges | {"gated": SHARE, "max_kl": POSITIVE}
    moves_reference = True

    def __init__(
        self,
        judges: list[Reward],
        features: Reward,
        gated: float = 0.1,
        max_kl: float | None = None,
        refresh_every: int = 15,
        **kwargs,
    ):
        super().__init__(refresh_every=refresh_every, **kwargs)
        if not self.beta or not judges:
            raise ValueError("GARDO gates the KL by other rewards: set beta above 0 and name one of model.judges.")
        self.judges = torch.nn.ModuleList(judges).eval().requires_grad_(False)
        self.features = features.eval().requires_grad_(False)
        self.gated, self.max_kl, self._kl = gated, max_kl, []

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        rows = repeat_rows(batch, self.samples_per_prompt)
        trajectory, states = self.draw_trajectories(rows)
        x_0, reward = torch.cat([state.x for state in states]), self.rewards_of(states, rows)
        others = [self.judge(judge, x_0, rows, self.minibatch) for judge in self.judges]
        doubt = self.win_rate(reward) - torch.stack([self.win_rate(r) for r in others]).mean(0)
        self._gate = doubt >= self.all_gather(doubt).flatten().quantile(1 - self.gated)
        embed = [self.features.embed(self.policy.decode(part).float()).float() for part in x_0.split(self.minibatch)]
        shaped = self.shaped(reward.view(-1, self.samples_per_prompt), torch.cat(embed))
        return trajectory, shaped.clamp(-self.max_advantage, self.max_advantage)

    def win_rate(self, reward: Tensor) -> Tensor:
        """(N,) share of all ranks' samples that a sample's reward beats; ties count half."""
        everyone = self.all_gather(reward).flatten()
        beats = (reward[:, None] > everyone).float() + 0.5 * (reward[:, None] == everyone).float()
        return beats.mean(1)

    def shaped(self, reward: Tensor, features: Tensor) -> Tensor:
        """Advantages (N,) from rewards (prompts, K) and features (N, D)."""
        k = reward.shape[1]
        f = F.normalize(features, dim=1).view(-1, k, features.shape[1])
        distance = (1 - f @ f.transpose(1, 2)).clamp(min=0)
        nearest = distance.masked_fill(torch.eye(k, dtype=torch.bool, device=f.device), torch.inf).amin(2)
        centred = reward - reward.mean(1, keepdim=True)
        centred = centred.masked_fill((reward == reward[:, :1]).all(1, keepdim=True), 0.0)
        weight = nearest / nearest.mean(1, keepdim=True).clamp(min=1e-6)
        return torch.where(centred > 0, centred * weight, centred).flatten()

    def regularised(self, step: StepBatch) -> Tensor:
        gate = self._gate[step.rows.to(self._gate.device)]
        self._kl += step.gaussian.kl(step.reference).detach()[gate].tolist()
        return gate

    def training_step(self, batch: dict, batch_idx: int) -> None:
        self._kl = []
        super().training_step(batch, batch_idx)
        total = self.all_gather(torch.tensor([sum(self._kl), float(len(self._kl))], device=self.device)).view(-1, 2)
        kl = total[:, 0].sum() / total[:, 1].sum().clamp(min=1)
        self.log_mean("train/gated_kl", kl, 1)
        if self.max_kl is not None and kl > self.max_kl:
            self.policy.update_reference()
