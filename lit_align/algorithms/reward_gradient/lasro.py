"""LaSRO: a differentiable surrogate of a black-box reward on latents, trained on the policy's own samples."""

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
    """Jia et al. 2024, arXiv 2411.15247, for samplers of very few steps. z_k is the estimate of x_0 after step k of n;
    z_n is the sample. A surrogate R(z, c, k) learns -log sigmoid(R(z^w) - R(z^l)) on the best and the worst of several
    samples of a prompt, as the reward r ranks the decoded z_k for each k. The policy learns

        L = anchor_weight L_LCM - sum_k weights_k S[R(z_k, c, k)],

    with gradient through the whole sampler and no decoder; S subtracts a running mean, divides by a running standard
    deviation and clips to +- clip. A training step samples, makes `updates` steps of the surrogate on pairs from the
    replay buffer, and one of the policy; in the first `pretrain` training steps only the surrogate learns.

    No code is public and we do not know the coefficients. Our reading: the surrogate gets k as the time that step k
    leads to (the paper: one output per k); L_LCM is `consistency_loss` on the policy's own samples, not on images; the
    running moments are exponential. Logs `train/reward` (of z_n), `train/accuracy` of the surrogate on the pairs of its
    next step, `train/surrogate` (S of z_n) and `train/anchor`.

    Args:
        reward: r, any.
        surrogate: R, on the policy's latents.
        weights: c_k, one per step of the rollout; a z_k with weight 0 is not used at all.
        anchor_weight: c.
        surrogate_lr: learning rate of R.
        samples_per_prompt: samples that are ranked for a prompt.
        buffer_size: pairs in the replay buffer.
        minibatch: pairs per step of the surrogate, on each device.
        pretrain: training steps.
        clip: of S.
        momentum: of the running moments.
        updates: surrogate steps per training step.
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
                f"weights is {weights}; give one number for each of the rollout's {steps} steps, the last one not 0."
            )
        self.reward, self.surrogate = reward.eval().requires_grad_(False), surrogate
        self.used = [k for k, w in enumerate(weights) if w]  # the used z_k, counted from 0
        self.weights, self.anchor_weight, self.surrogate_lr = weights, anchor_weight, surrogate_lr
        self.uses_reference = anchor_weight > 0
        self.samples_per_prompt, self.pretrain = samples_per_prompt, pretrain
        self.clip, self.momentum, self.replay = clip, momentum, Replay(buffer_size)
        self.moments = torch.zeros(0)  # (U, 2) mean and variance of R(z_k); empty at first

    def parameter_groups(self) -> list:
        return param_groups(self.policy, self.surrogate, self.surrogate_lr)

    def get_extra_state(self) -> Tensor:
        return self.moments

    def set_extra_state(self, state: Tensor) -> None:
        self.moments = state

    # The surrogate's training pairs

    def estimates(self, cond: dict, grad: Tensor | None = None) -> Tensor:
        """The used z_k of fresh samples: (U, B, C, h, w)."""
        hook = Estimates()
        state = self.rollout(self.policy, cond=cond, hooks=(hook,), grad=grad)
        return torch.stack([*hook.x_0(state).unbind(1)[:-1], state.x])[self.used]

    @torch.no_grad()
    def collect(self, batch: dict) -> dict:
        """Adds each prompt's best and worst z_k for each k to the replay buffer; ties are left out."""
        prompts, k = batch["prompt"], self.samples_per_prompt
        cond = self.policy.condition(prompts, batch.get("columns"))
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
            "untied": r.amax(1) > r.amin(1),
        }
        pairs = gather_pairs(self, pairs)
        untied = pairs.pop("untied")
        texts = [p for p, ok in zip(pairs.pop("prompt"), untied.tolist()) if ok]
        self.replay.add({"prompt": texts, **{k: v[untied] for k, v in pairs.items()}})
        return {"prompt": prompts, "cond": cond}

    def optimizer_steps(self, collected: dict) -> Iterator[list[dict]]:
        self.frozen = self.policy
        yield from ([{"pairs": self.replay.draw(self.minibatch)}] for _ in range(self.updates))
        if self.batch_number >= self.pretrain:
            self.frozen = self.surrogate
            yield [collected]

    def on_before_optimizer_step(self, optimizer) -> None:
        """A step trains the surrogate or the policy: the optimizer skips parameters without gradient."""
        for p in self.frozen.parameters():
            p.grad = None
        super().on_before_optimizer_step(optimizer)

    # The two losses

    def batch_loss(self, m: dict) -> Tensor:
        loss = self.ranking(m["pairs"]) if "pairs" in m else self.improvement(m["prompt"], m["cond"])
        return loss + self.zero_loss()

    def score(self, z: Tensor, step: Tensor, prompts: list[str]) -> Tensor:
        """R (N,) of z (N, ...), each after step `step` (from 0)."""
        s = self.rollout.timesteps(self.policy)[1:].to(z.device)[step]
        return self.surrogate(self.policy, z, z, s, prompts).float()

    def ranking(self, pairs: dict | None) -> Tensor:
        """Mean of -log sigmoid(R(z^w) - R(z^l)) over pairs."""
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
        """S[r], (U, B), by running moments over all ranks, which include r."""
        gathered = self.all_gather(r.detach()).view(-1, *r.shape)
        moments = torch.stack([gathered.mean((0, 2)), gathered.var((0, 2), correction=0)], 1)
        old = self.moments.to(moments) if len(self.moments) else moments
        self.moments = self.momentum * old + (1 - self.momentum) * moments
        mean, var = self.moments[..., None].unbind(1)
        return ((r - mean) / (var + 1e-8).sqrt()).clamp(-self.clip, self.clip)
