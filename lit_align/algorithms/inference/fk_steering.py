"""FK steering: particles resampled along the way in proportion to potentials of the reward of their predicted x_0."""

from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.inference.inference import Inference
from lit_align.diffusion.sampler import Hook


def systematic(log_w: Tensor) -> Tensor:
    """Systematic resampling in each row of log-weights (G, K): the ancestors' columns (G, K), floor or ceil of K w
    each."""
    w = log_w.softmax(1)
    points = (torch.arange(w.shape[1], device=w.device) + torch.rand(len(w), 1, device=w.device)) / w.shape[1]
    return torch.searchsorted(w.cumsum(1).contiguous(), points).clamp(max=w.shape[1] - 1)


class FKSteering(Inference):
    """Singhal et al. 2025, arXiv 2501.06848: Feynman-Kac potentials on r(c, x_0-hat), resampled when the weights
    degenerate.

    Weights that did not lead to resampling are kept and multiply the next ones, and at the last step the potentials are
    completed so that their product is exp(lambda r(c, x_0)): particles follow p(x_0 | c) exp(lambda r) as K grows.
    The sampler needs noise (eta > 0), or copies of a particle stay copies.

    Args:
        lmbda: lambda, the inverse temperature of the tilt.
        potential: difference (r - previous r), max (largest r so far) or sum (sum of r so far).
        start, end, every: resampling happens at sampler steps start, start + every, ... up to end, and at the last.
        ess: resample a prompt's particles when their effective sample size falls below this share of them.
    """

    def __init__(
        self,
        lmbda: float = 10.0,
        potential: Literal["difference", "max", "sum"] = "max",
        start: int = 20,
        end: int = 80,
        every: int = 20,
        ess: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.lmbda, self.potential, self.ess = lmbda, potential, ess
        self.start, self.end, self.every = start, end, every

    @torch.no_grad()
    def sample(self, batch: dict) -> dict:
        prompts, seeds = self.repeated(batch)
        state = self.sampler(self.policy, prompts, seeds=seeds, hook=Resample(self))
        return self.best(batch, state.x)


class Resample(Hook):
    """Weighs and resamples the particles of each prompt after a step."""

    def __init__(self, method: FKSteering):
        self.method = method

    def on_init(self, policy, state) -> None:
        zero = torch.zeros(len(state.x), device=state.x.device)
        state.extras.update(reward=zero.clone(), spent=zero.clone())  # r of the potential, log of the product so far

    def after_step(self, policy, state) -> None:
        m = self.method
        last = state.i == m.sampler.steps - 1
        if not last and not (m.start <= state.i <= m.end and (state.i - m.start) % m.every == 0):
            return
        images = policy.decode(state.x if last else state.x0)
        reward, past, spent = m.reward(images, state.prompts).float(), state.extras["reward"], state.extras["spent"]
        if last:
            log_g = m.lmbda * reward - spent
        elif m.potential == "difference":
            log_g = m.lmbda * (reward - past)
        else:
            reward = torch.maximum(reward, past) if m.potential == "max" else reward + past
            log_g = m.lmbda * reward
        state.extras.update(reward=reward, spent=spent + log_g)
        state.logw = state.logw + log_g
        self.resample(state)

    def resample(self, state) -> None:
        k = self.method.particles
        log_w = state.logw.view(-1, k)
        w = log_w.softmax(1)
        poor = 1 / w.square().sum(1) < self.method.ess * k  # (G,)
        stay = torch.arange(k, device=w.device).expand_as(w)
        ancestors = torch.where(poor[:, None], systematic(log_w), stay)
        state.logw = torch.where(poor[:, None], 0.0, log_w).flatten()
        first = torch.arange(0, len(state.x), k, device=w.device)[:, None]
        state.reindex((ancestors + first).flatten())
