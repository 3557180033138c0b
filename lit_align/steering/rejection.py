"""Rejection sampling: samples of the reward-tilted distribution."""

import warnings

import torch

from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import rand
from lit_align.rewards.reward import Reward
from lit_align.steering.outer_sampler import Best, OuterSampler


class RejectionSampling(OuterSampler):
    """Draws from p(x_0 | c) exp(r(c, x_0) / alpha) / Z, exactly: a sample is accepted with probability exp((r - bound)
    / alpha), where no reward exceeds the bound, and drawn anew otherwise. It takes 1 / E[exp((r - bound) / alpha)]
    draws on average.

    A prompt none of whose N draws is accepted gets its best one, and a warning says how many did: the law is then that
    of best-of-N for them.

    Args:
        reward: r.
        alpha: strength of the prior, in units of the reward.
        bound: the largest reward there is; 1 for a judge of right and wrong. A sample above it is accepted, with a
            warning: the law is then not exact.
        n: N; with `max_nfe`, as many as it allows.
        sampler: draws the samples (default: 50 DDIM steps, guidance 7.5).
    """

    def __init__(
        self,
        reward: Reward,
        alpha: float = 0.1,
        bound: float = 1.0,
        n: int = 64,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, sampler, max_nfe)
        if n < 1 or alpha <= 0:
            raise ValueError(f"RejectionSampling: n is 1 or more and alpha greater than 0; got {n} and {alpha}.")
        self.alpha, self.bound, self.n = alpha, bound, n

    def search(self, policy, start, hooks, budget):
        best, taken, rewards = Best(), torch.zeros_like(start.x), torch.zeros(len(start.x), device=start.x.device)
        waiting, a_run = torch.arange(len(start.x), device=start.x.device), self.sampler.nfe(hooks=hooks)
        spent = 0.0  # by each prompt that still waits
        for k in range(self.n):
            if not len(waiting) or not budget.allows(a_run, spent):
                break
            state = self.sampler.run(policy, self.start(start.part(waiting), k), hooks)
            reward, spent = self.score(policy, state), spent + state.calls["nfe_forward"] + state.calls["nfe_backward"]
            if (reward > self.bound).any():
                warnings.warn(
                    f"RejectionSampling: {self.reward.name} gave {reward.max():.4g}, above its bound {self.bound}, so "
                    "samples do not follow the tilted distribution exactly: raise bound."
                )
            taken[waiting], rewards[waiting] = state.x, reward  # the last draw of each prompt
            every = torch.full_like(rewards, -torch.inf)
            every[waiting] = reward
            best.offer(taken.clone(), every)
            accepted = rand(len(waiting), state.generators).to(reward) < ((reward - self.bound) / self.alpha).exp()
            waiting = waiting[~accepted]
        if len(waiting):
            warnings.warn(
                f"RejectionSampling accepted none of the draws of {len(waiting)} of {len(start.x)} prompts, which get "
                "their best: raise n, max_nfe or alpha."
            )
        left = torch.zeros(len(start.x), dtype=torch.bool, device=start.x.device)
        left[waiting] = True
        x = torch.where(append_dims(left, taken), best.x, taken)
        return self.result(start, x, torch.where(left, best.reward, rewards))
