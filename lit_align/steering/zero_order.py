"""Zero-order search: the best of the noises near the best noise so far, again and again."""

import torch
from torch import Tensor

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.rewards.reward import Reward
from lit_align.steering.outer_sampler import OuterSampler
from lit_align.steering.random_search import verdict


def neighbor(x: Tensor, noise: Tensor, cosine: float) -> Tensor:
    """Points with the norm of x (P, ...) and this cosine to it, in the directions of noise (P, ...)."""
    flat, other = x.flatten(1).double(), noise.flatten(1).double()
    norm = flat.norm(dim=1, keepdim=True)
    u = flat / norm
    w = other - (other * u).sum(1, keepdim=True) * u
    w = w / w.norm(dim=1, keepdim=True)
    return (norm * (cosine * u + (1 - cosine**2) ** 0.5 * w)).view_as(x).to(x)


class ZeroOrderSearch(OuterSampler):
    """Ma et al. 2025, arXiv 2501.09732, section 3: from a random pivot noise, N candidates in its neighbourhood; the
    best of them and the pivot is the next pivot. Steps with noise draw the same noise for every candidate.

    There is no official code. The neighbourhood is that of sayakpaul/tt-scale-flux, which keeps the norm of the noise;
    that code starts again from a random pivot where no neighbour is better, which we do not.

    Args:
        reward: the verifier, or MultiReward for several.
        neighbors: N.
        iterations: moves of the pivot, at most: with `max_nfe`, as many runs as it allows.
        cosine: of a neighbour to the pivot, in [0, 1).
        sampler: draws the samples (default: 50 DDIM steps, guidance 7.5).
    """

    takes_several_rewards = True

    def __init__(
        self,
        reward: Reward,
        neighbors: int = 4,
        iterations: int = 4,
        cosine: float = 0.95,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, sampler, max_nfe)
        if neighbors < 1 or iterations < 0 or not 0 <= cosine < 1:
            raise ValueError(
                "ZeroOrderSearch: neighbors is 1 or more, iterations 0 or more and 0 <= cosine < 1; got "
                f"{neighbors}, {iterations} and {cosine}."
            )
        self.neighbors, self.iterations, self.cosine = neighbors, iterations, cosine

    def check(self, policy):
        self.refuse_forgotten_noise(policy)

    def search(self, policy, start, hooks, budget):
        a_run, streams = self.sampler.nfe(hooks=hooks), self.start(start, 1).generators

        def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The noise, x_0 and scores."""
            state = self.start(start)
            state.x = x
            state = self.sampler.run(policy, state, hooks)
            return x, state.x, self.score(policy, state)

        pivot = run(start.x)
        for _ in range(self.iterations):
            found = [pivot]
            while len(found) <= self.neighbors and budget.allows(a_run):
                found.append(run(neighbor(pivot[0], randn_like(start.x, streams), self.cosine)))
            if len(found) == 1:
                break
            noise, x, scores = (torch.stack(parts) for parts in zip(*found))
            best, rows = verdict(scores).argmax(0), torch.arange(len(start.x), device=start.x.device)
            pivot = noise[best, rows], x[best, rows], scores[best, rows]
        return self.result(start, *pivot[1:])
