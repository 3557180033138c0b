"""BOND: the policy learns to draw once what best-of-n draws from n."""

from torch import Tensor

from lit_align.algorithms.reward_weighted.reward_weighted import WeightedLikelihood


class BOND(WeightedLikelihood):
    """Sessa et al. 2024, arXiv 2407.14622. Best-of-n from an anchor p_ref has, in their Theorem 1, the density ratio

        p_BoN / p_ref = F^(n-1) sum_{i=1..n} (F_ / F)^(i-1) = (F^n - F_^n) / (F - F_)

    with F, F_ the anchor's probabilities of a reward at most, and below, the sample's: n F^(n-1) without ties. The
    forward KL(p_BoN || p_theta) is then the anchor's samples' weighted likelihood. Every `refresh_every` training steps
    the policy becomes the next anchor, which goes from best-of-n to best-of-n^2 and on.

    The port to diffusion is ours: F and F_ are shares among a prompt's K samples (so weights end at K: take K well
    above n), and for log p_theta stands minus the denoising loss. The paper's backward KL needs log p_theta of single
    samples, which a diffusion model does not give, and is left out; its anchor is a running average, here a copy.

    Args:
        n: samples that best-of-n would choose from.
    """

    uses_reference = True

    def __init__(self, n: int = 2, refresh_every: int = 50, **kwargs):
        super().__init__(refresh_every=refresh_every, **kwargs)
        self.n = n

    def weights(self, reward: Tensor) -> Tensor:
        one, other = reward.unsqueeze(2), reward.unsqueeze(1)  # (P, K, 1), (P, 1, K)
        most, below = (other <= one).double().mean(2), (other < one).double().mean(2)  # F, F_
        return ((most**self.n - below**self.n) / (most - below)).to(reward)
