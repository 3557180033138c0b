"""ELEGANT: entropy-regularised control of the denoising and of the initial noise."""

import math

import torch
from torch import Tensor, nn

from lit_align.algorithms.online import tile_rows
from lit_align.algorithms.parts.initial_distribution import InitialDistribution
from lit_align.algorithms.parts.latent_critic import Value, param_groups
from lit_align.algorithms.parts.path_kl import PathKL
from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM


class ELEGANT(RewardGradient):
    """Uehara et al. 2024, arXiv 2402.15194: min E[-r(x_0, c) + alpha sum_t |mu_theta - mu_pre|^2 / (2 sigma_t^2)], by
    back-propagation through a stochastic rollout. Samples then follow exp(r / alpha) p_pre, but only if x_T is drawn
    from nu(x_T | c) ~ exp(v_0(x_T, c) / alpha) N(0, I), with

        v_0(x_T, c) = alpha log E_pre[exp(r(x_0, c) / alpha) | x_T, c].

    v_0 is fitted to alpha log mean exp(r / alpha) over `rollouts` pre-trained rollouts from one x_T (biased low if they
    are few). nu maximises E[v_0] - alpha KL and needs no rewards. The paper learns v_0, nu and theta in turn; here
    every step trains all three, as each depends only on those before it.

    With `learn_initial: false`, and wherever the exported policy is sampled (nu is not exported), x_T is N(0, I) and
    samples follow E_{x_T}[exp((r - v_0(x_T, c)) / alpha) p_pre(x_0 | x_T, c)]: biased towards p_pre, unless x_0 does
    not depend on x_T. There is no released code; architectures and default numbers are ours (unverified).

    Args:
        alpha: strength of the KL, in units of the reward per nat; the KL is a sum over the sample.
        learn_initial: learn nu.
        rollouts: pre-trained rollouts per target of v_0.
        value_lr: learning rate of v_0 and nu.
    """

    uses_reference = True

    def __init__(
        self,
        alpha: float = 0.1,
        learn_initial: bool = True,
        rollouts: int = 4,
        value_lr: float = 1e-4,
        rollout: Sampler | None = None,
        **kwargs,
    ):
        super().__init__(rollout=rollout or Sampler(50, 7.5, DDIM(eta=1.0)), **kwargs)
        self.alpha, self.rollouts, self.value_lr = alpha, rollouts, value_lr
        self.initial: nn.ModuleDict | None = None
        if learn_initial:
            value = Value(self.policy, self.rollout.timesteps(self.policy)[:1])
            self.initial = nn.ModuleDict({"value": value, "nu": InitialDistribution(self.policy)})

    def parameter_groups(self) -> list:
        return param_groups(self.policy, self.initial, self.value_lr) if self.initial else super().parameter_groups()

    def noise(self, n: int) -> Tensor:
        return torch.randn(n, *self.policy.latent_shape, device=self.policy.device)

    def v_0(self, x: Tensor, text: Tensor) -> Tensor:
        t = self.rollout.timesteps(self.policy)[0].to(x.device)
        return self.initial["value"](x, text, t.expand(len(x)))

    def generate(self, batch: dict) -> Tensor:
        cond = self.policy.condition(batch["prompt"], batch.get("columns"))
        x, path = self.noise(len(batch["prompt"])), PathKL(self.rollout)
        if self.initial:
            with torch.no_grad():
                x, _ = self.initial["nu"](x, self.policy.summary(cond))
        grad = self.grad_steps(self.rollout.steps)
        state = self.rollout(self.policy, cond=cond, x=x, hooks=(path,), grad=grad)
        self.path_kl = path.kl(state)  # (B,) in nats
        return state.x

    def loss(self, reward: Tensor) -> Tensor:
        self.log_mean("train/kl_path", self.path_kl.detach().mean(), len(reward))
        return self.alpha * self.path_kl - reward

    def batch_loss(self, batch: dict) -> Tensor:
        loss = super().batch_loss(batch)
        return loss + self.initial_loss(batch) if self.initial else loss

    @torch.no_grad()
    def soft_value(self, x: Tensor, cond: dict, batch: dict) -> Tensor:
        """alpha log mean exp(r / alpha) over pre-trained rollouts from x (B, ...): (B,)."""
        with self.policy.reference():
            draws = [self.rollout(self.policy, cond=cond, x=x).x for _ in range(self.rollouts)]
        rows = tile_rows(batch, self.rollouts)
        r = self.judge(self.reward, torch.cat(draws), rows, len(x)).view(self.rollouts, -1)
        return self.alpha * ((r / self.alpha).logsumexp(0) - math.log(self.rollouts))

    def initial_loss(self, batch: dict) -> Tensor:
        """(v_0 - target)^2 + alpha KL(nu) - v_0(x_T), x_T ~ nu; each term has gradient in its own network only."""
        prompts = batch["prompt"]
        cond, x = self.policy.condition(prompts, batch.get("columns")), self.noise(len(prompts))
        text = self.policy.summary(cond).detach()
        value_loss = (self.v_0(x, text) - self.soft_value(x, cond, batch)).square().mean()
        x_T, kl = self.initial["nu"](self.noise(len(prompts)), text)
        self.initial["value"].requires_grad_(False)
        nu_loss = (self.alpha * kl - self.v_0(x_T, text)).mean()
        self.initial["value"].requires_grad_(True)
        self.log_mean("train/value_loss", value_loss.detach(), len(prompts))
        self.log_mean("train/initial_kl", kl.detach().mean(), len(prompts))
        return value_loss + nu_loss

    def draw(self, batch: dict, sampler: Sampler | None = None) -> State:
        sampler = sampler or self.sampler
        hooks = () if not self.initial or self.policy.in_reference else (self.initial["nu"],)
        return sampler(self.policy, batch["prompt"], columns=batch.get("columns"), seeds=batch["seed"], hooks=hooks)
