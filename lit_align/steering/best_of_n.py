"""Best of N: the sample with the highest reward."""

from lit_align.diffusion.sampler import Sampler
from lit_align.rewards.reward import Reward
from lit_align.steering.outer_sampler import Best, OuterSampler


class BestOfN(OuterSampler):
    """Draws N samples per prompt, in N runs of the sampler, and returns the one with the highest reward.

    With seeds, the first sample is that of plain sampling.

    Args:
        reward: ranks the samples.
        n: N, at most: with `max_nfe`, as many as it allows.
        sampler: draws the samples (default: 50 DDIM steps, guidance 7.5).
    """

    def __init__(self, reward: Reward, n: int = 4, sampler: Sampler | None = None, max_nfe: int | None = None):
        super().__init__(reward, sampler, max_nfe)
        if n < 1:
            raise ValueError(f"BestOfN: n is {n}; draw at least one sample.")
        self.n = n

    def search(self, policy, start, hooks, budget):
        best, a_run = Best(), self.sampler.nfe(hooks=hooks)
        for k in range(self.n):
            if not budget.allows(a_run):
                break
            state = self.sampler.run(policy, self.start(start, k), hooks)
            best.offer(state.x, self.score(policy, state))
        return self.result(start, best.x, best.reward)
