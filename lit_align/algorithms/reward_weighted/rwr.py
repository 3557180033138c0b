"""Reward-weighted regression, a baseline of DDPO's paper."""

from typing import Literal

from torch import Tensor

from lit_align.algorithms.reward_weighted.reward_weighted import WeightedLikelihood


class RWR(WeightedLikelihood):
    """Black et al. 2023, arXiv 2305.13301, section 4.1, weights of N samples:

        exponential:  w_n = N softmax_n(tau r_n)
        sparse:       w_n = 1[r_n >= quantile of r] / fraction of such samples

    Both have mean 1, so equal rewards give supervised fine-tuning. The released code trains the guided prediction
    (`guidance_scale` 5, as in the rollout), and its option "temperature" is this tau: it multiplies.

    Args:
        tau: inverse temperature, in 1/reward.
        weighting: exponential or sparse.
        per_prompt: N and the quantile are over a prompt's K samples, not over all samples.
        quantile: of sparse weights, in [0, 1].
    """

    def __init__(
        self,
        tau: float = 0.2,
        weighting: Literal["exponential", "sparse"] = "exponential",
        per_prompt: bool = False,
        quantile: float = 0.9,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.tau, self.weighting, self.per_prompt, self.quantile = tau, weighting, per_prompt, quantile

    def weights(self, reward: Tensor) -> Tensor:
        r = reward if self.per_prompt else reward.view(1, -1)  # (groups, N)
        if self.weighting == "exponential":
            w = r.shape[1] * (self.tau * r).softmax(1)
        else:
            kept = (r >= r.quantile(self.quantile, dim=1, keepdim=True)).float()
            w = kept / kept.mean(1, keepdim=True)
        return w.view_as(reward)
