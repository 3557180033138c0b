"""Several particles per sample, and their resampling."""

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.state import State, rand, randn_like


def systematic(log_w: Tensor, u: Tensor) -> Tensor:
    """Systematic resampling of each row of log-weights (G, K), by one uniform number for each, (G,): ancestors (G, K),
    with floor(K w) or ceil(K w) copies of each."""
    w = log_w.softmax(1)
    points = (torch.arange(w.shape[1], device=w.device) + u.to(w)[:, None]) / w.shape[1]
    return torch.searchsorted(w.cumsum(1).contiguous(), points, right=True).clamp(max=w.shape[1] - 1)


class Particles(Hook):
    """Base of the hooks with K particles per sample. The network sees a minibatch of them at a time; resampling is
    within a sample's own.

    Args:
        particles: K.
        ess: a sample's particles are resampled when their effective sample size is below this fraction of K.
    """

    def __init__(self, particles: int, ess: float = 0.5):
        if particles < 1:
            raise ValueError(f"{type(self).__name__}: particles is {particles}; take at least one.")
        self.particles, self.ess = particles, ess

    def nfe(self, inside: float, steps: int) -> float:
        return self.particles * inside

    def spread(self, state: State) -> None:
        """Makes K particles of each sample; the first keeps its noise, the others draw new noise."""
        n, k = len(state.x), self.particles
        state.reindex(torch.arange(n).repeat_interleave(k))
        if k > 1:
            first = torch.arange(n * k, device=state.x.device) % k == 0
            state.x = torch.where(append_dims(first, state.x), state.x, randn_like(state.x, state.generators))

    def resample(self, state: State) -> None:
        """Resamples the particles of samples whose weights, `state.extras[self]["logw"]` (P,), have degenerated."""
        extras, k = state.extras[self], self.particles
        log_w = extras["logw"].view(-1, k)  # (G, K)
        w = log_w.softmax(1)
        degenerate = 1 / w.square().sum(1) < self.ess * k  # (G,)
        identity = torch.arange(k, device=w.device).expand_as(w)
        u, rows = torch.zeros(len(w)), degenerate.nonzero().flatten().tolist()
        u[rows] = rand(len(rows), state.generators and [state.generators[row * k] for row in rows])
        ancestors = torch.where(degenerate[:, None], systematic(log_w, u), identity)
        extras["logw"] = torch.where(degenerate[:, None], 0.0, log_w).flatten()
        first = torch.arange(0, len(state.x), k, device=w.device)[:, None]
        state.reindex((ancestors + first).flatten())

    def keep(self, state: State, score: Tensor) -> None:
        """Keeps the particle of each sample with the highest score (P,)."""
        score = score.view(-1, self.particles)
        state.reindex(torch.arange(len(score), device=score.device) * self.particles + score.argmax(1))
