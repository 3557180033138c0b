"""Demon: a step's noise is composed of draws, weighted by how good they turn out to be."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.state import State, randn_like
from lit_align.diffusion.transition import DDIM
from lit_align.rewards.reward import Reward, judge, refuse_masks


class Demon(Hook):
    """Yeh et al., ICLR 2025 (arXiv 2410.05760): of K noises z_k of a step, each rewarded for the x_0 that it leads to,
    the step takes sqrt(d) sum_k b_k z_k / |sum_k b_k z_k| (d: latent dimensions), which keeps the norm of typical
    noise. Weights are b_k = tanh((r_k - mean r) / tau), or softmax_k(r_k / tau).

    x_0 is reached from x_s in `ode_steps` deterministic steps; 1 is the estimate x_0-hat(x_s). (The paper: 20 Heun
    steps or a consistency model; its stochastic Heun step in the noise level is here the sampler's transition.) Once
    sigma / alpha is below `min_noise`, steps are deterministic and nothing is searched. The released code keeps the tau
    of the first step; here it is that of each step.

    Args:
        reward: r.
        noises: K.
        weights: tanh, or softmax (the paper's boltzmann).
        tau: in units of the reward; 0: the standard deviation of a step's K rewards.
        ode_steps: steps to x_0.
        min_noise: sigma / alpha at which the search ends.
    """

    replaces = ("propose",)

    def __init__(
        self,
        reward: Reward,
        noises: int = 16,
        weights: Literal["tanh", "softmax"] = "tanh",
        tau: float = 0.0,
        ode_steps: int = 1,
        min_noise: float = 0.11,
    ):
        refuse_masks(reward, "Demon")
        self.reward, self.noises, self.weights = reward.eval().requires_grad_(False), noises, weights
        self.tau, self.ode_steps, self.min_noise = tau, ode_steps, min_noise
        if noises < 2 or ode_steps < 1:
            raise ValueError(f"Demon: noises is 2 or more and ode_steps 1 or more; got {noises} and {ode_steps}.")

    def searches(self, process, i: int, steps: int, t: Tensor) -> bool:
        """Whether step i, at time t (B,), searches: not the last one, nor those with little noise."""
        return i < steps - 1 and bool((process.sigma(t) >= self.min_noise * process.alpha(t)).all())

    def check(self, policy, sampler):
        grid, noisy = sampler.timesteps(policy), (sampler.step_std(policy) > 0).tolist()
        if not any(
            on and self.searches(policy.process, i, sampler.steps, grid[i : i + 1]) for i, on in enumerate(noisy)
        ):
            raise ValueError(
                "Demon composes the noise of steps, and this sampler has none above min_noise: give it a transition "
                "with noise (DDIM with eta 1, FlowSDE), or lower min_noise."
            )

    def nfe(self, inside: float, steps: int) -> float:
        looks = sum(min(self.ode_steps, steps - 1 - i) for i in range(steps - 1))
        return inside / steps * (steps + self.noises * looks)

    def transition(self, policy, state, sampler):
        if self.searches(policy.process, state.i, state.steps or sampler.steps, state.t):
            return super().transition(policy, state, sampler)
        ode = DDIM(0.0)
        return ode(policy.process, state.x, state.x0, state.eps, state.t, state.s)

    def finish(self, policy, state: State, x: Tensor) -> Tensor:
        """x_0 (P, ...) from candidates x_s, by deterministic steps over a part of the rest of the grid."""
        sampler, ode = state.sampler, DDIM(0.0)
        rest = state.steps - state.i - 1
        stops = torch.linspace(state.i + 1, state.steps, min(self.ode_steps, rest) + 1).round().long().tolist()
        grid = sampler.timesteps(policy).to(x.device)
        for i, stop in zip(stops, stops[1:]):
            there = sampler.at(policy, state, x, i)
            sampler.estimate(policy, there)
            if stop == state.steps:
                return there.x0
            s = grid[stop].expand(len(x))
            x = ode(policy.process, x, there.x0, there.eps, there.t, s).mean
        return x

    def compose(self, noises: Tensor, rewards: Tensor) -> Tensor:
        """The noise (P, ...) that K draws (K, P, ...) with rewards (K, P) make."""
        std = rewards.std(0)
        tau = self.tau or std.clamp(min=1e-8)
        b = torch.tanh((rewards - rewards.mean(0)) / tau) if self.weights == "tanh" else (rewards / tau).softmax(0)
        b = torch.where(std < 1e-8, 1.0, b)
        total = (b.view(*b.shape, *[1] * (noises.ndim - 2)) * noises).sum(0)
        norm = total.flatten(1).norm(dim=1)
        return total * append_dims((total[0].numel() ** 0.5) / norm, total)

    def propose(self, policy, state, gaussian):
        if not self.searches(policy.process, state.i, state.steps, state.t) or not gaussian.std.any():
            return gaussian.mean
        noises, rewards = [], []
        for _ in range(self.noises):
            noises.append(randn_like(state.x, state.generators))
            x_0 = self.finish(policy, state, gaussian.sample(noises[-1]))
            rewards.append(judge(self.reward, policy, x_0, state.rows, state.minibatch))
        return gaussian.sample(self.compose(torch.stack(noises), torch.stack(rewards)))
