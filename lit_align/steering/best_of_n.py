"""Best of N: the sample with the highest reward."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State, derived_seed
from lit_align.rewards.reward import Reward, judge, refuse_masks
from lit_align.steering.outer_sampler import OuterSampler


class BestOfN(OuterSampler):
    """Draws N samples per prompt, in N runs of the sampler, and returns the one with the highest reward.

    With seeds, the first sample is that of plain sampling.

    Args:
        reward: ranks the samples.
        n: N.
        sampler: draws the samples (default: 50 DDIM steps, guidance 7.5).
        decode_size: images decoded and scored at once.
    """

    def __init__(self, reward: Reward, n: int = 4, sampler: Sampler | None = None, decode_size: int = 8):
        super().__init__(sampler)
        if n < 1:
            raise ValueError(f"BestOfN: n is {n}; draw at least one sample.")
        refuse_masks(reward, "BestOfN")
        self.reward, self.n, self.decode_size = reward.eval().requires_grad_(False), n, decode_size

    def search(
        self, policy, cond: dict, rows: dict, seeds: list[int] | None, hooks: Sequence[Hook], x: Tensor | None
    ) -> State:
        best, calls, columns = None, Counter(), rows["columns"]
        for k in range(self.n):
            run_seeds = None if seeds is None else [derived_seed(seed, k) for seed in seeds]
            state = self.sampler(
                policy, rows["prompt"], cond=cond, columns=columns, x=None if k else x, seeds=run_seeds, hooks=hooks
            )
            calls += state.calls
            reward = judge(self.reward, policy, state.x, rows, self.decode_size)
            if best is None:
                best, highest = state, reward
                continue
            better = append_dims(reward > highest, state.x)
            best.x, highest = torch.where(better, state.x, best.x), torch.maximum(reward, highest)
        best.calls, best.extras[self] = calls, {"reward": highest}
        return best
