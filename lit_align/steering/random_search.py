"""Random search over the initial noise, with an ensemble of verifiers."""

import torch
from torch import Tensor

from lit_align.diffusion.sampler import Sampler
from lit_align.rewards.reward import Reward
from lit_align.steering.outer_sampler import OuterSampler


def verdict(scores: Tensor) -> Tensor:
    """How good K candidates are, (K, P), by their scores: (K, P) as they are; of R verifiers, (K, P, R), the mean of
    their ranks among the K, ties sharing a rank (Ma et al. 2025, arXiv 2501.09732, section 4)."""
    if scores.ndim == 2:
        return scores
    above, equal = (scores[:, None] > scores[None]).float(), (scores[:, None] == scores[None]).float()
    return (above + equal / 2).sum(1).mean(-1)


class RandomSearch(OuterSampler):
    """Ma et al. 2025, arXiv 2501.09732, section 3: the best of N initial noises by a verifier. With one verifier it is
    BestOfN; MultiReward is an ensemble, of which the mean rank counts.

    Args:
        reward: the verifier, or MultiReward for several.
        n: N, at most: with `max_nfe`, as many as it allows.
        sampler: draws the samples (default: 50 DDIM steps, guidance 7.5).
    """

    takes_several_rewards = True

    def __init__(self, reward: Reward, n: int = 16, sampler: Sampler | None = None, max_nfe: int | None = None):
        super().__init__(reward, sampler, max_nfe)
        if n < 1:
            raise ValueError(f"RandomSearch: n is {n}; draw at least one sample.")
        self.n = n

    def search(self, policy, start, hooks, budget):
        found, scores, a_run = [], [], self.sampler.nfe(hooks=hooks)
        for k in range(self.n):
            if not budget.allows(a_run):
                break
            state = self.sampler.run(policy, self.start(start, k), hooks)
            found.append(state.x.cpu())
            scores.append(self.score(policy, state))
        scores = torch.stack(scores)
        best, rows = verdict(scores).argmax(0), torch.arange(len(start.x))
        x = torch.stack(found)[best.cpu(), rows].to(start.x)
        return self.result(start, x, scores[best, rows.to(best.device)])
