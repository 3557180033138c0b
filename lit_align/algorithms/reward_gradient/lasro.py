"""LaSRO: a black-box reward becomes a differentiable one of latents, which learns from the samples it leads to."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.online import Online, tile_rows
from lit_align.algorithms.parts.consistency import consistency_loss
from lit_align.algorithms.parts.estimates import Estimates
from lit_align.algorithms.parts.latent_critic import param_groups
from lit_align.algorithms.parts.replay import Replay, gather_pairs
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.transition import DDIM
from lit_align.rewards.reward import Reward
from lit_align.rewards.step_reward import StepReward


class LaSRO(Online):
    """Jia et al. 2024, arXiv 2411.15247, for samplers of very few steps. z_k is the estimate of x_0 after step k of n,
    z_n the sample. A surrogate R(z, c, k) learns -log sigmoid(R(z^w) - R(z^l)) from the best and the worst of several
    noises of a prompt, as the reward r ranks the decoded z_k of each k; the policy learns

        L = anchor_weight L_LCM - sum_k weights_k S[R(z_k, c, k)],

    its gradient through the whole sampler and no decoder; S subtracts a running mean, divides by a running deviation
    and clips to +- clip. A training step draws, makes `updates` steps of the surrogate on pairs out of the replay
    buffer, and one of the policy; for the first `pretrain` of them the surrogate learns alone.

    No code is public and the coefficients are not at hand. Our reading: the surrogate is told k by the time that step k
    leads to (the paper: one output for each k); L_LCM is `consistency_loss` on the policy's own samples, not on images;
    the running moments are exponential. Logs `train/reward` (of z_n), `train/accuracy` of the surrogate on the pairs it
    is about to learn from, `train/surrogate` (S of z_n) and `train/anchor`.

    Args:
        reward: r, any.
        surrogate: R, of the policy's latents.
        weights: c_k, one for each step of the rollout; where it is 0, z_k is left out of everything.
        anchor_weight: c.
        surrogate_lr: learning rate of R.
        samples_per_prompt: noises of a prompt.
        buffer_size: pairs remembered.
        minibatch: pairs in a step of the surrogate, on each device.
        pretrain: training steps.
        clip: of S.
        momentum: of the running moments.
        updates: surrogate's, in a training step.
    """

    feedback, uses_reference = ("prompt",), True

    def __init__(
        self,
        reward: Reward,
        surrogate: StepReward,
        weights: tuple[float, ...] = (1.0, 1.0),
        anchor_weight: float = 1.0,
        surrogate_lr: float = 1e-4,
        samples_per_prompt: int = 4,
        buffer_size: int = 1024,
        minibatch: int = 32,
        pretrain: int = 100,
        clip: float = 5.0,
        momentum: float = 0.99,
        updates: int = 1,
        rollout: Sampler | None = None,
        **kwargs,
    ):
        super().__init__(
            rollout=rollout or Sampler(2, 1.0, DDIM(eta=1.0)), updates=updates, minibatch=minibatch, **kwargs
        )
        if len(weights) != self.rollout.steps or not weights[-1]:
            steps = self.rollout.steps
            raise ValueError(
                f"weights is {weights}; give one number for each of the rollout's {steps} steps, the last not 0."
            )
        self.reward, self.surrogate = reward.eval().requires_grad_(False), surrogate
        self.used = [k for k, w in enumerate(weights) if w]  # which of the z_k, counted from 0
        self.weights, self.anchor_weight, self.surrogate_lr = weights, anchor_weight, surrogate_lr
        self.uses_reference = anchor_weight > 0
        self.samples_per_prompt, self.pretrain = samples_per_prompt, pretrain
        self.clip, self.momentum, self.replay = clip, momentum, Replay(buffer_size)
        self.moments = torch.zeros(0)  # (U, 2): of R(z_k), once there are some

    def parameter_groups(self) -> list:
        return param_groups(self.policy, self.surrogate, self.surrogate_lr)

    def get_extra_state(self) -> Tensor:
        return self.moments

    def set_extra_state(self, state: Tensor) -> None:
        self.moments = state

    # What the surrogate learns from

    def estimates(self, cond: dict, grad: Tensor | None = None) -> Tensor:
        """Those of z_1 .. z_n that are used, of fresh samples: (U, B, C, h, w)."""
        hook = Estimates()
        state = self.rollout(self.policy, cond=cond, hooks=(hook,), grad=grad)
        return torch.stack([*hook.x_0(state).unbind(1)[:-1], state.x])[self.used]

    @torch.no_grad()
    def collect(self, batch: dict) -> dict:
        """Adds the best and the worst of each prompt's samples at each k to the replay buffer; ties teach nothing."""
        prompts, k = batch["prompt"], self.samples_per_prompt
        cond = self.policy.condition(prompts)
        z = torch.stack([self.estimates(cond) for _ in range(k)])  # (K, U, B, ...)
        rows = tile_rows(batch, k * len(self.used))
        r = self.judge(self.reward, z.flatten(0, 2), rows, len(prompts)).view(z.shape[:3])
        self.log_reward(r[:, -1].flatten(), prompts * k)
        z, r = z.flatten(1, 2).transpose(0, 1), r.flatten(1).T  # (U B, K, ...), (U B, K)
        rows, step = torch.arange(len(r), device=r.device), torch.tensor(self.used, device=r.device)
        pairs = {
            "prompt": prompts * len(step),
            "step": step.repeat_interleave(len(prompts)),
            "win": z[rows, r.argmax(1)],
            "lose": z[rows, r.argmin(1)],
            "told": r.amax(1) > r.amin(1),
        }
        pairs = gather_pairs(self, pairs)
        told = pairs.pop("told")
        texts = [p for p, ok in zip(pairs.pop("prompt"), told.tolist()) if ok]
        self.replay.add({"prompt": texts, **{k: v[told] for k, v in pairs.items()}})
        return {"prompt": prompts, "cond": cond}

    def optimizer_steps(self, collected: dict) -> Iterator[list[dict]]:
        self.frozen = self.policy
        yield from ([{"pairs": self.replay.draw(self.minibatch)}] for _ in range(self.updates))
        if self.batch_number >= self.pretrain:
            self.frozen = self.surrogate
            yield [collected]

    def on_before_optimizer_step(self, optimizer) -> None:
        """The step moves the surrogate or the policy: the optimizer leaves out what has no gradient."""
        for p in self.frozen.parameters():
            p.grad = None
        super().on_before_optimizer_step(optimizer)

    # The two losses

    def batch_loss(self, m: dict) -> Tensor:
        loss = self.ranking(m["pairs"]) if "pairs" in m else self.improvement(m["prompt"], m["cond"])
        return loss + self.zero_loss()

    def score(self, z: Tensor, step: Tensor, prompts: list[str]) -> Tensor:
        """R (N,) of z (N, ...), of which each is z_(step + 1)."""
        s = self.rollout.timesteps(self.policy)[1:].to(z.device)[step]
        return self.surrogate(self.policy, z, z, s, prompts).float()

    def ranking(self, pairs: dict | None) -> Tensor:
        """-log sigmoid(R(z^w) - R(z^l)), mean over pairs."""
        if pairs is None:
            return self.zero_loss()
        both = torch.cat([pairs["win"], pairs["lose"]])
        win, lose = self.score(both, pairs["step"].repeat(2), pairs["prompt"] * 2).chunk(2)
        self.log_mean("train/accuracy", (win > lose).float().mean(), len(win))
        return -F.logsigmoid(win - lose).mean()

    def improvement(self, prompts: list[str], cond: dict) -> Tensor:
        """L of fresh samples of the prompts."""
        z = self.estimates(cond, all_steps(self.rollout.steps))
        step, count = torch.tensor(self.used, device=z.device), len(prompts)
        r = self.score(z.flatten(0, 1), step.repeat_interleave(count), prompts * len(step)).view(-1, count)
        s, weights = self.normalised(r), torch.tensor(self.weights, device=z.device)[step]
        self.log_mean("train/surrogate", s[-1].detach().mean(), count)
        loss = -(weights[:, None] * s).sum(0).mean()
        if not self.anchor_weight:
            return loss
        anchor = consistency_loss(self.policy, self.rollout, z[-1].detach(), cond).mean()
        self.log_mean("train/anchor", anchor.detach(), count)
        return loss + self.anchor_weight * anchor

    def normalised(self, r: Tensor) -> Tensor:
        """S[r], (U, B), by running moments that see it first, on all ranks alike."""
        seen = self.all_gather(r.detach()).view(-1, *r.shape)
        now = torch.stack([seen.mean((0, 2)), seen.var((0, 2), correction=0)], 1)
        old = self.moments.to(now) if len(self.moments) else now
        self.moments = self.momentum * old + (1 - self.momentum) * now
        mean, var = self.moments[..., None].unbind(1)
        return ((r - mean) / (var + 1e-8).sqrt()).clamp(-self.clip, self.clip)
