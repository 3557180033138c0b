"""Search over paths: noise added to samples on their way opens branches, of which the best go on."""

import torch

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.rewards.reward import Reward, judge
from lit_align.steering.outer_sampler import OuterSampler
from lit_align.steering.random_search import verdict


class PathSearch(OuterSampler):
    """Ma et al. 2025, arXiv 2501.09732, section 3 (search over paths): N samples are denoised up to `first`. Then,
    again and again, noise takes each back by `back` (the paper's Delta f) in M independent copies, these are denoised
    by `ahead` (Delta b), and of a prompt's N M copies the N with the best estimate x_0-hat go on. At the end the best
    sample is returned. There is no official code; lengths are in fractions of the run, and the default ones are ours.

    Args:
        reward: the verifier, or MultiReward for several.
        paths: N.
        branches: M.
        first: where the search begins.
        back, ahead: how far a copy goes back, and forward again; back < ahead.
        sampler: its steps (default: 50 DDIM steps, guidance 7.5).
        max_nfe: a search that takes more is refused.
    """

    needs_steps, takes_several_rewards = True, True

    def __init__(
        self,
        reward: Reward,
        paths: int = 2,
        branches: int = 4,
        first: float = 0.2,
        back: float = 0.1,
        ahead: float = 0.3,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, sampler, max_nfe)
        if min(paths, branches) < 1 or not (0 < first < 1 and 0 < back < ahead <= 1):
            raise ValueError(
                "PathSearch: paths and branches are 1 or more, 0 < first < 1 and 0 < back < ahead <= 1; got "
                f"{paths}, {branches}, {first}, {back} and {ahead}."
            )
        self.paths, self.branches, self.first, self.back, self.ahead = paths, branches, first, back, ahead

    def rounds(self) -> list[tuple[int, int, int]]:
        """(i, j, k) of each round: noise takes samples from before step i to before step j, and they are denoised up to
        step k."""
        steps = self.steps
        i, rounds = max(1, round(self.first * steps)), []
        back = max(1, round(self.back * steps))
        ahead = max(back + 1, round(self.ahead * steps))
        while i < steps:
            j = max(0, i - back)
            rounds.append((i, j, min(j + ahead, steps)))
            i = rounds[-1][2]
        return rounds

    def nfe(self, first=0, last=None, hooks=()):
        rounds, nfe = self.rounds(), self.sampler.nfe
        begin = self.paths * nfe(0, rounds[0][0] if rounds else None, hooks)
        return begin + self.paths * self.branches * sum(nfe(j, k, hooks) for _, j, k in rounds)

    def search(self, policy, start, hooks, budget):
        n, grid = len(start.x), self.timesteps(policy).to(start.x.device)
        rounds, state = self.rounds(), self.starts(start, self.paths)
        state = self.sampler.run(policy, state, hooks, last=rounds[0][0] if rounds else None)
        for i, j, k in rounds:
            state.reindex(torch.arange(len(state.x)).repeat_interleave(self.branches))
            t, s = (grid[index].expand(len(state.x)) for index in (j, i))
            state.x = policy.process.renoise(state.x, randn_like(state.x, state.generators), s, t)
            state = self.sampler.run(policy, state, hooks, first=j, last=k)
            if k < self.steps:
                score = judge(self.reward, policy, state.x0, state.rows, state.minibatch)
                order = verdict(score.unflatten(0, (n, -1)).transpose(0, 1)).topk(self.paths, 0).indices  # (N, n)
                first = torch.arange(n, device=order.device) * (self.paths * self.branches)
                state.reindex((order + first).T.flatten())
        score = self.score(policy, state).unflatten(0, (n, -1)).transpose(0, 1)  # (K, n) or (K, n, R)
        best, rows = verdict(score).argmax(0), torch.arange(n, device=score.device)
        return self.result(start, state.x.unflatten(0, (n, -1))[rows, best], score[best, rows])
