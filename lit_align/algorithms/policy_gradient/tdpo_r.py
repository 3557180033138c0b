"""TDPO-R: a critic of the image at every denoising step, whose active neurons are reset at intervals."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lit_align.algorithms.parts.image_critic import Critic
from lit_align.algorithms.parts.latent_critic import param_groups
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.diffusion.state import Trajectory


class TDPOR(DDPO):
    """Zhang et al. 2024, arXiv 2402.08552: DDPO with advantage R - C(e_k) at step k, normalised over all steps of the
    rollout. R is the normalised reward; e_k is the reward model's embedding of the decoded x_t at which the step
    starts. There is an optimizer step for each denoising step and each share of the trajectories (steps in the outer
    loop), every trajectory in its own random order of steps. The same optimizer steps fit C to R by

        0.5 max((C - R)^2, (C_old + clip(C - C_old, -e_C, e_C) - R)^2).

    Every `reset_every` training steps the critic's active neurons, those with a score above `dormant`, are reset: they
    carry the primacy bias, dormant ones do not. `reset_every: 0` is TDPO. When resets happen, and what they draw,
    depends on the number of the training step only.

    The port measures activity on the whole rollout (released: on a few samples). `reward.embed` embeds the decoded
    images: a CLIP reward's own features; for a black box the image at 16 x 16 pixels.

    Args:
        value_lr: learning rate of C.
        value_clip_range: e_C, in units of R.
        reset_every: training steps between resets.
        dormant: score up to which a neuron is kept.
        updates: optimizer steps on each denoising step.
    """

    takes_masked_rewards = False  # the critic learns from every sample

    def __init__(
        self,
        value_lr: float = 1e-4,
        value_clip_range: float = 0.2,
        reset_every: int = 10,
        dormant: float = 0.0,
        updates: int = 2,
        **kwargs,
    ):
        super().__init__(updates=updates, **kwargs)
        self.value_lr, self.value_clip_range = value_lr, value_clip_range
        self.reset_every, self.dormant = reset_every, dormant
        with torch.no_grad():
            image = torch.zeros(1, 3, self.policy.height, self.policy.width)
            self.critic = Critic(self.reward.embed(image).shape[1])

    def parameter_groups(self) -> list:
        return param_groups(self.policy, self.critic, self.value_lr)

    @torch.no_grad()
    def embedded(self, x_t: Tensor) -> Tensor:
        """Embeddings (N, T, D) of latents (N, T, ...)."""
        parts = x_t.flatten(0, 1).split(self.minibatch)
        embed = lambda x: self.reward.embed(self.policy.decode(x.to(self.device))).float()
        return torch.cat([embed(x) for x in parts]).unflatten(0, x_t.shape[:2])

    def temporal(self, e: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
        """C(e) of the current critic, and the advantages of all steps, both (N, T)."""
        self.critic.eval()
        with torch.no_grad():
            value = self.critic(e)
        self.critic.train()
        residual = returns[:, None] - value
        gathered = self.all_gather(residual)
        return value, (residual - gathered.mean()) / (gathered.std(correction=0) + 1e-8)

    def value_loss(self, value: Tensor, old: Tensor, returns: Tensor) -> Tensor:
        clipped = old + (value - old).clamp(-self.value_clip_range, self.value_clip_range)
        loss = 0.5 * torch.maximum((value - returns).square(), (clipped - returns).square())
        self.log_mean("train/value_loss", loss.detach().mean(), len(loss))
        return loss

    def optimizer_steps(self, collected: tuple[Trajectory, Tensor]) -> Iterator[list[dict]]:
        """Minibatches of each optimizer step, from trajectories and their normalised rewards (N,)."""
        trajectory, returns = collected
        steps, names = self.trained_steps(trajectory), ("x_t", "x_s", "t", "s", "log_prob", "mean")
        trajectory = replace(trajectory, **{name: getattr(trajectory, name)[:, steps] for name in names})
        e = self.embedded(trajectory.x_t)
        old, advantage = self.temporal(e, returns)
        shared = {"trajectory": trajectory, "advantage": advantage, "e": e, "old": old, "returns": returns}
        for _ in range(self.inner_epochs):
            order = torch.rand(len(e), len(steps)).argsort(1)  # (N, T)
            for step in order.T:
                for part in self.shares(len(e)):
                    yield [
                        shared
                        | {
                            "rows": rows,
                            "steps": step[rows],
                            "share": 1 / len(part),
                            "prompt": self.prompts(trajectory, rows),
                        }
                        for rows in part.split(self.minibatch)
                    ]
        number = self.batch_number + 1
        if self.reset_every and number % self.reset_every == 0:
            self.reset(e.flatten(0, 1), number)

    def batch_loss(self, m: dict) -> Tensor:
        rows, k = m["rows"], m["steps"]
        loss = self.loss(self.evaluate(m["trajectory"], m["advantage"], rows, k))
        loss = loss + self.value_loss(self.critic(m["e"][rows, k]), m["old"][rows, k], m["returns"][rows])
        return loss.sum() * m["share"]

    def reset(self, e: Tensor, number: int) -> None:
        """Resets the neurons that are active on the embeddings e (M, D) of all ranks, the same ones on every rank."""
        self.critic.eval()
        scores = [self.all_gather(score).view(-1, len(score)).mean(0) for score in self.critic.scores(e)]
        self.critic.train()
        masks = [score > self.dormant for score in scores]
        self.log_mean("train/reset", torch.cat(masks).float().mean(), 1)
        self.critic.reset(masks, self.optimizers().optimizer.state, torch.Generator().manual_seed(number))
