"""SEIKO: few queries of a black-box reward, and the gradient of a surrogate that is optimistic where uncertain."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.online import Online, tile_rows
from lit_align.algorithms.parts.path_kl import PathKL
from lit_align.algorithms.parts.surrogate import Surrogate
from lit_align.algorithms.reward_gradient.alignprop import AlignProp
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import select_rows
from lit_align.diffusion.transition import DDIM
from lit_align.policies.policy import Policy
from lit_align.rewards.reward import Reward, components


class SEIKO(Online, AlignProp):
    """Zhao et al. 2024, arXiv 2402.16359, algorithm 1. A training step is one outer iteration k: sample from p_k and
    query the reward; fit the surrogate to all queries so far; make `updates` optimizer steps on AlignProp's loss of the
    optimistic surrogate + kl_weight KL(p_theta || p_k), the path's KL as a mean over the sample. The result is p_{k+1}.
    The paper's further KL to the pre-trained model is left out, as released.

    (Released: a new optimizer per iteration, noisy labels, beautified prompts, a surrogate that does not see the
    prompt.) Logs the queried rewards as `train/reward`, the optimistic surrogate's as `train/surrogate`, and
    `train/queries`, the number of queries of all ranks so far.

    Args:
        reward: is queried; needs no gradient. Its scale must not change: a WeightedSum needs `normalise: false`.
        features: its `embed` gives the surrogate's image features (the paper: CLIP; default: `reward`, which for a
            black box gives 16 x 16 pixels).
        samples_per_prompt: queries per prompt of the batch, one number per iteration; the last one stays.
        optimism, alpha, ridge, max_bonus, epochs: of the surrogate; see Surrogate.
        kl_weight: of the KL.
        updates: optimizer steps per iteration.
        minibatch: prompts per forward, drawn from the batch.
        accumulate: forwards per optimizer step; queries are sampled minibatch x accumulate images at a time.
        max_grad_norm: gradient clipping (here, not in the Trainer: optimization is manual).
        target: AlignProp's, out of reach of the optimistic surrogate.
    """

    uses_reference = moves_reference = True

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        features: Reward | None = None,
        samples_per_prompt: tuple[int, ...] = (1, 2, 4, 8),
        optimism: Literal["ucb", "bootstrap"] = "ucb",
        alpha: float = 1e-2,
        ridge: float = 1e-3,
        max_bonus: float = 10.0,
        epochs: int = 300,
        kl_weight: float = 0.01,
        updates: int = 10,
        minibatch: int = 2,
        accumulate: int = 8,
        max_grad_norm: float = 5.0,
        rollout: Sampler | None = None,
        **kwargs,
    ):
        surrogate = Surrogate(reward, policy, features, optimism, alpha, ridge, max_bonus, epochs)
        super().__init__(
            policy=policy,
            reward=surrogate,
            rollout=rollout or Sampler(50, 7.5, DDIM(eta=1.0)),
            updates=updates,
            minibatch=minibatch,
            max_grad_norm=max_grad_norm,
            **kwargs,
        )
        self.samples_per_prompt, self.kl_weight = tuple(samples_per_prompt), kl_weight
        self.accumulate = accumulate

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.check_columns([self.reward.queried], "train")

    @torch.no_grad()
    def collect(self, batch: dict) -> dict:
        """Queries the reward for fresh samples, and fits the surrogate to all queries of all ranks so far."""
        batch_size = self.minibatch * self.accumulate
        k = self.samples_per_prompt[min(self.batch_number, len(self.samples_per_prompt) - 1)]
        rows, x, y = tile_rows(batch, k), [], []
        for part in torch.arange(len(rows["prompt"])).split(batch_size):
            part_rows = select_rows(rows, part.tolist())
            image = self.policy.decode(self.roll(part_rows).x)
            x.append(self.reward.describe(image, part_rows["prompt"]))
            y.append(components(self.reward.queried, image, part_rows))
        y = self.log_reward(self.reward.queried.combine(torch.cat(y)), rows["prompt"])
        x, y = (self.all_gather(part) for part in (torch.cat(x), y))
        self.log_mean("train/queries", torch.tensor(float(len(self.reward.y) + y.numel())), 1)
        self.reward.fit(x.reshape(-1, x.shape[-1]), y.flatten())
        return batch

    def optimizer_steps(self, collected: dict) -> Iterator[list[dict]]:
        return ([collected] * self.accumulate for _ in range(self.updates))

    def batch_loss(self, batch: dict) -> Tensor:
        """A minibatch's share of the loss; its prompts are drawn from the batch."""
        drawn = torch.randint(len(batch["prompt"]), (self.minibatch,)).tolist()
        rows = select_rows({"prompt": batch["prompt"], "columns": batch.get("columns", {})}, drawn)
        reward = self.reward(self.policy.decode(self.generate(rows)), rows["prompt"])
        self.log_mean("train/surrogate", reward.detach().mean(), len(reward))
        return self.connected(self.loss(reward).mean()) / self.accumulate

    def training_step(self, batch: dict, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.policy.update_reference()

    def generate(self, batch: dict) -> Tensor:
        path, grad = PathKL(self.rollout, "mean"), self.rank_zero(self.grad_steps(self.rollout.steps))
        state = self.roll(batch, hooks=(path,), grad=grad)
        self.path_kl = path.kl(state)  # (B,), a mean over the sample's axes
        return state.x

    def loss(self, reward: Tensor) -> Tensor:
        self.log_mean("train/kl_path_mean", self.path_kl.detach().mean(), len(reward))
        return super().loss(reward) + self.kl_weight * self.path_kl
