"""SEIKO: few queries of a black-box reward, a surrogate that is optimistic where it knows little, and its gradient."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.parts.path_kl import PathKL
from lit_align.algorithms.parts.surrogate import Surrogate
from lit_align.algorithms.reward_gradient.alignprop import AlignProp
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.policy import Policy
from lit_align.rewards.reward import Reward


class SEIKO(AlignProp):
    """Zhao et al. 2024, arXiv 2402.16359, algorithm 1. A training step is one outer loop k: draw from p_k and query the
    reward; fit the surrogate to all queries so far; and make `updates` optimizer steps on AlignProp's loss of the
    optimistic surrogate + kl_weight KL(p_theta || p_k), the path's KL as a mean over the sample. What results is
    p_{k+1}. The KL to the pre-trained model, which the paper has too, is left out, as released.

    (Released: a new optimizer for each loop, noise on the labels, beautified prompts; the surrogate does not see the
    prompt.) Logs the queried rewards as `train/reward`, what the optimistic surrogate says as `train/surrogate`, and
    `train/queries`, of all ranks and so far.

    Args:
        reward: what is queried; no gradient is asked of it. What it says has to keep its scale from loop to loop: a
            WeightedSum has to have `normalise: false`.
        features: a reward of whose image features the surrogate learns (the paper: CLIP's; default: those of `reward`,
            which for a black box are 16 x 16 pixels).
        samples_per_prompt: queries for each prompt of the batch, loop by loop; the last number stays.
        optimism, alpha, ridge, most, epochs: the surrogate's.
        kl_weight: of the KL.
        updates: optimizer steps of a loop.
        minibatch: prompts in one forward, drawn from the batch.
        accumulate: forwards in an optimizer step; as many images are drawn at once for queries as one sees.
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
        most: float = 10.0,
        epochs: int = 300,
        kl_weight: float = 0.01,
        updates: int = 10,
        minibatch: int = 2,
        accumulate: int = 8,
        max_grad_norm: float = 5.0,
        rollout: Sampler | None = None,
        **kwargs,
    ):
        surrogate = Surrogate(reward, policy, features, optimism, alpha, ridge, most, epochs)
        super().__init__(policy=policy, reward=surrogate, rollout=rollout or Sampler(50, 7.5, DDIM(eta=1.0)), **kwargs)
        self.automatic_optimization = False
        self.samples_per_prompt, self.kl_weight, self.updates = tuple(samples_per_prompt), kl_weight, updates
        self.minibatch, self.accumulate, self.max_grad_norm = minibatch, accumulate, max_grad_norm

    def training_step(self, batch: dict, batch_idx: int) -> None:
        self.check(batch)
        self.reward.fit(*self.query(batch["prompt"]))
        optimizer = self.optimizers()
        for _ in range(self.updates):
            optimizer.zero_grad()
            for i in range(1, self.accumulate + 1):
                rows = torch.randint(len(batch["prompt"]), (self.minibatch,)).tolist()
                prompts = [batch["prompt"][row] for row in rows]
                loss = self.require_finite(self.batch_loss({"prompt": prompts}), prompts)
                with self.gradient_sync(last=i == self.accumulate):
                    self.manual_backward(loss / self.accumulate)
                self.log_mean("train/loss", loss.detach(), self.minibatch)
            optimizer.step()
        if scheduler := self.lr_schedulers():
            scheduler.step()
        self.policy.update_reference()

    @torch.no_grad()
    def query(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """New queries of all ranks: what the surrogate sees (N, D), and rewards (N,)."""
        x, y, at_once = [], [], self.minibatch * self.accumulate
        prompts = prompts * self.samples_per_prompt[min(self.batch_number, len(self.samples_per_prompt) - 1)]
        for i in range(0, len(prompts), at_once):
            part = prompts[i : i + at_once]
            image = self.policy.decode(self.rollout(self.policy, part).x)
            x.append(self.reward.describe(image, part))
            y.append(self.reward.queried(image, part).float())
        self.log_reward(torch.cat(y), prompts)
        x, y = (self.all_gather(torch.cat(part)) for part in (x, y))
        self.log_mean("train/queries", torch.tensor(float(len(self.reward.y) + y.numel())), 1)
        return x.reshape(-1, x.shape[-1]), y.flatten()

    def batch_loss(self, batch: dict) -> Tensor:
        x_0 = self.generate(batch["prompt"])
        reward = self.reward(self.policy.decode(x_0), batch["prompt"])
        self.log_mean("train/surrogate", reward.detach().mean(), len(reward))
        loss = self.loss(reward).mean()
        return loss if loss.requires_grad else loss + self.zero_loss()

    def generate(self, prompts: list[str]) -> Tensor:
        self.path = PathKL(self.rollout, "mean")
        keep = self.agreed(self.keep(self.rollout.steps))
        return self.rollout(self.policy, prompts, hook=self.path, grad=keep).x

    def loss(self, reward: Tensor) -> Tensor:
        self.log_mean("train/kl", self.path.kl.detach().mean(), len(reward))
        return super().loss(reward) + self.kl_weight * self.path.kl
