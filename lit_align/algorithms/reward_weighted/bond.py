"""BOND: the policy learns the distribution of best-of-n samples."""

from torch import Tensor

from lit_align.algorithms.reward_weighted.reward_weighted import WeightedLikelihood


class BOND(WeightedLikelihood):
    """Sessa et al. 2024, arXiv 2407.14622. By their Theorem 1, best-of-n from an anchor p_ref has the density ratio

        p_BoN / p_ref = F^(n-1) sum_{i=1..n} (F_ / F)^(i-1) = (F^n - F_^n) / (F - F_),

    F and F_ the anchor's probabilities of a reward <= and < the sample's; without ties it is n F^(n-1). The forward
    KL(p_BoN || p_theta) is then a weighted likelihood of the anchor's samples. Every `refresh_every` training steps the
    policy becomes the next anchor, so best-of-n becomes best-of-n^2 and so on.

    The port to diffusion is ours: F and F_ are fractions of a prompt's K samples (no weight exceeds K: take K well
    above n), minus the denoising loss replaces log p_theta, and the anchor is a copy (the paper's: a running average).
    The paper's backward KL is left out: it needs log p_theta of single samples, which a diffusion model does not give.

    Args:
        n: samples that best-of-n chooses from.
    """

    uses_reference = True

    def __init__(self, n: int = 2, refresh_every: int = 50, **kwargs):
        super().__init__(refresh_every=refresh_every, **kwargs)
        self.n = n

    def weights(self, reward: Tensor) -> Tensor:
        r_i, r_j = reward.unsqueeze(2), reward.unsqueeze(1)  # (P, K, 1), (P, 1, K)
        at_most, below = (r_j <= r_i).double().mean(2), (r_j < r_i).double().mean(2)  # F, F_
        return ((at_most**self.n - below**self.n) / (at_most - below)).to(reward)
