"""SES: cross-entropy search over the low frequencies of the initial noise."""

import torch
from torch import Tensor

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.rewards.reward import Reward
from lit_align.steering.outer_sampler import Best, OuterSampler


def low(x: Tensor, level: int) -> Tensor:
    """The coarsest coefficients (..., h / 2^L, w / 2^L) of the orthonormal Haar transform of x (..., h, w) with L
    levels: sums of blocks of 2^L x 2^L, over 2^L. Of white noise they are white noise."""
    s = 2**level
    blocks = x.unflatten(-1, (x.shape[-1] // s, s)).unflatten(-3, (x.shape[-2] // s, s))
    return blocks.sum((-1, -3)) / s


def replace_low(x: Tensor, coefficients: Tensor, level: int) -> Tensor:
    """x with these coarsest coefficients and its own finer ones."""
    s, change = 2**level, coefficients - low(x, level)
    return x + change.repeat_interleave(s, -1).repeat_interleave(s, -2) / s


class SpectralSearch(OuterSampler):
    """Spectral evolution search (SES, arXiv 2602.03208): the low frequencies of the initial noise are searched by the
    cross-entropy method, its high ones stay. From N(0, I), a population is drawn and rewarded; mean and variance become
    those of the best draws of all generations so far. The best sample is returned.

    By the implementation in modelscope/DiffSynth-Studio, whose defaults these are, with the Haar wavelet alone; the
    first draw is the initial noise itself. Steps with noise draw the same noise for every candidate.

    Args:
        reward: the fitness.
        n: samples in all, at most: with `max_nfe`, as many as it allows.
        population: of a generation.
        elites: the best draws that mean and variance are taken of.
        level: of the wavelet transform; 2^level pixels of a latent, in each direction, are one coefficient.
        sampler: draws the samples (default: 50 DDIM steps, guidance 7.5).
    """

    def __init__(
        self,
        reward: Reward,
        n: int = 30,
        population: int = 10,
        elites: int = 5,
        level: int = 4,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, sampler, max_nfe)
        if min(n, population, level) < 1 or not 2 <= elites:
            raise ValueError(
                f"SpectralSearch: n, population and level are 1 or more and elites 2 or more; got {n}, {population}, "
                f"{level} and {elites}."
            )
        self.n, self.population, self.elites, self.level = n, population, elites, level

    def check(self, policy):
        self.refuse_forgotten_noise(policy)
        if any(size % 2**self.level for size in policy.latent_shape[-2:]):
            size = " x ".join(map(str, policy.latent_shape[-2:]))
            raise ValueError(
                f"SpectralSearch: level {self.level} makes blocks of {2**self.level}, into which latents of {size} do "
                "not fall: lower level."
            )

    def search(self, policy, start, hooks, budget):
        best, streams, a_run = Best(), self.start(start, 1).generators, self.sampler.nfe(hooks=hooks)
        mean = torch.zeros_like(low(start.x, self.level))
        std, elites, rewards, drawn = torch.ones_like(mean), [], [], 0  # the elites of all generations, (n, E, ...)
        while drawn < self.n and budget.allows(a_run):
            begin = drawn
            while drawn - begin < self.population and drawn < self.n and budget.allows(a_run):
                draw = mean + std * randn_like(mean, streams) if drawn else low(start.x, self.level)
                state, drawn = self.start(start), drawn + 1
                state.x = replace_low(start.x, draw, self.level)
                state = self.sampler.run(policy, state, hooks)
                reward = self.score(policy, state)
                best.offer(state.x, reward)
                elites, rewards = [*elites, draw[:, None]], [*rewards, reward[:, None]]
            every = torch.cat(rewards, 1)
            top, order = every.topk(min(self.elites, every.shape[1]), 1)
            rows = torch.arange(len(mean), device=order.device)[:, None]
            elites, rewards = [torch.cat(elites, 1)[rows, order]], [top]
            mean = elites[0].mean(1)
            if top.shape[1] > 1:
                std = (elites[0].var(1) + 1e-7).sqrt()
        return self.result(start, best.x, best.reward)
