"""EvoSearch: populations of noises, and of noisy samples on their way, that evolve by reward."""

import torch
from torch import Tensor

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State, randn_like
from lit_align.rewards.reward import Reward
from lit_align.steering.outer_sampler import Best, OuterSampler


class EvoSearch(OuterSampler):
    """Evolutionary search (He et al. 2025, arXiv 2505.17618): a generation of samples is denoised to its end and
    rewarded. Every state that any generation has passed at the next evolution time, with the reward of the sample it
    led to, is a candidate parent. The elites go on as they are. The other children are parents that won a tournament,
    with noise added:

    - of initial noise: sqrt(1 - mutation^2) x_T + mutation z,
    - of a later state: x_t + std z, std that of the step which led to x_t.

    The next generation begins there. The best sample of all is returned. (In the released code states are those after
    the step of an evolution time, and children take that step again; here they begin where their parents stood.)

    Args:
        reward: the fitness.
        times: evolution times, as fractions of the run.
        populations: samples of each generation, one more than there are times. (The paper: 42 26 26 26 30, which takes
            as many evaluations as 100 samples.) With `max_nfe`, as many as it allows.
        elites: children that are copies of the best.
        mutation: of initial noise, in [0, 1].
        sampler: its steps, with noise (default: 50 DDIM steps, guidance 7.5).
    """

    needs_steps = True

    def __init__(
        self,
        reward: Reward,
        times: list[float] = [0.0, 0.4, 0.6, 0.8],
        populations: list[int] = [42, 26, 26, 26, 30],
        elites: int = 5,
        mutation: float = 0.2,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, sampler, max_nfe)
        if len(populations) != len(times) + 1 or min(populations) < 1:
            raise ValueError(
                f"EvoSearch: {len(times)} times need {len(times) + 1} populations of 1 or more; got {populations}."
            )
        if list(times) != sorted(times) or not all(0 <= u < 1 for u in times):
            raise ValueError(f"EvoSearch: times rise from 0 or more to less than 1; got {times}.")
        if not 0 <= mutation <= 1 or elites < 0:
            raise ValueError(f"EvoSearch: 0 <= mutation <= 1 and elites 0 or more; got {mutation} and {elites}.")
        self.times, self.populations, self.elites, self.mutation = times, populations, elites, mutation

    def marks(self) -> list[int]:
        """The steps before which evolution happens."""
        return [min(round(u * self.steps), self.steps - 1) for u in self.times]

    def check(self, policy):
        std, later = self.sampler.step_std(policy), [m for m in self.marks() if m]
        if any(std[m - 1] == 0 for m in later):
            raise ValueError(
                "EvoSearch adds the noise of a step to samples on their way, and this sampler's steps have none: give "
                "it a transition with noise (DDIM with eta 1, FlowSDE), or evolve at time 0 alone."
            )
        if not later:
            self.refuse_forgotten_noise(policy)

    def search(self, policy, start, hooks, budget):
        n, marks, std = len(start.x), self.marks(), self.sampler.step_std(policy)
        pools, best, drawn, begin, children = [[] for _ in marks], Best(), 0, 0, None
        for generation, size in enumerate(self.populations):
            a_run = self.sampler.nfe(begin, None, hooks)
            while size and not budget.allows(size * a_run):
                size -= 1
            if not size:
                break
            state = self.starts(start, size, drawn)
            if children is not None:
                state.x = self.children(*children, state, n, begin and std[begin - 1])
            drawn += size
            passed, i = {}, begin
            for stop in sorted({m for m in marks if m >= begin} | {self.steps}):
                state = self.sampler.run(policy, state, hooks, first=i, last=stop) if stop > i else state
                passed[stop], i = state.x.unflatten(0, (n, size)), stop
            reward = self.score(policy, state).view(n, size)
            best.offer(passed[self.steps][torch.arange(n), reward.argmax(1)], reward.amax(1))
            for pool, mark in zip(pools, marks):
                if mark in passed:
                    pool.append((passed[mark].cpu(), reward))
            if generation < len(marks):
                begin = marks[generation]
                children = [torch.cat(parts, 1) for parts in zip(*pools[generation])]  # x (n, K, ...), reward (n, K)
        return self.result(start, best.x, best.reward)

    def children(self, x: Tensor, reward: Tensor, state: State, n: int, std: float | Tensor) -> Tensor:
        """(n size, ...): the elites of the pool x (n, K, ...), then mutated winners of tournaments among a random 90 %;
        std 0: the pool is of initial noise."""
        size, k = len(state.x) // n, x.shape[1]
        order = reward.argsort(1, descending=True).cpu()
        elites, rows = min(self.elites, size, k), []
        for row in range(n):
            rank = order[row].argsort()  # of each of the K
            for child in range(size):
                generator = state.generators and state.generators[row * size + child]
                entrants = torch.randperm(k, generator=generator)[: max(1, int(0.9 * k))]
                winner = entrants[rank[entrants].argmin()]
                rows.append(order[row, child] if child < elites else winner)
        parents = x[torch.arange(n).repeat_interleave(size), torch.stack(rows)].to(state.x)
        noise = randn_like(state.x, state.generators)
        keep = 1.0 if std else (1 - self.mutation**2) ** 0.5
        mutated = keep * parents + (std or self.mutation) * noise
        elite = (torch.arange(len(parents), device=parents.device) % size < elites).view(-1, *[1] * (parents.ndim - 1))
        return torch.where(elite, parents, mutated)
