"""Best of N: the sample with the highest reward."""

import torch

from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.rewards.reward import Reward, judge
from lit_align.steering.outer_sampler import OuterSampler


class BestOfN(OuterSampler):
    """Draws N samples per prompt, in N runs of the sampler, and returns the one with the highest reward.

    With seeds, the first sample is that of plain sampling.

    Args:
        reward: ranks the samples.
        n: N, at most: with `max_nfe`, as many as it allows.
        sampler: draws the samples (default: 50 DDIM steps, guidance 7.5).
    """

    def __init__(self, reward: Reward, n: int = 4, sampler: Sampler | None = None, max_nfe: int | None = None):
        super().__init__(sampler, max_nfe)
        if n < 1:
            raise ValueError(f"BestOfN: n is {n}; draw at least one sample.")
        self.reward, self.n = reward.eval().requires_grad_(False), n

    def search(self, policy, start, hooks, budget):
        best, highest, a_run = None, None, self.sampler.nfe(hooks=hooks)
        for k in range(self.n):
            if not budget.allows(a_run):
                break
            state = self.sampler.run(policy, self.start(start, k), hooks)
            reward = judge(self.reward, policy, state.x, state.rows, state.minibatch)
            if best is None:
                best, highest = state, reward
                continue
            better = append_dims(reward > highest, state.x)
            best.x, highest = torch.where(better, state.x, best.x), torch.maximum(reward, highest)
        best.extras[self] = {"reward": highest}
        return best
