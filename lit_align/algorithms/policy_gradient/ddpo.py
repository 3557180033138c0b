"""DDPO: denoising as a Markov decision process, with PPO's clipped ratio at every step."""

from torch import Tensor

from lit_align.algorithms.parts.clipping import clipped_surrogate
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch


class DDPO(PolicyGradient):
    """Black et al. 2023, arXiv 2305.13301, eq. 4 with PPO clipping: max(-A rho, -A clip(rho, 1 - e, 1 + e)) per step.

    With `updates: 1, inner_epochs: 1` every ratio is 1 and this is DDPO-SF (eq. 3).

    Args:
        clip_range: e. The log-probability is a mean over the sample: 1e-4 is an interval of 1e-4 x C H W nats.
    """

    takes_masked_rewards = True  # they have advantage 0, and so no gradient

    def __init__(self, clip_range: float = 1e-4, **kwargs):
        super().__init__(**kwargs)
        self.clip_range = clip_range

    def loss(self, step: StepBatch) -> Tensor:
        rho, e = step.ratio, self.clip_range
        self.log_mean("train/clip_fraction", ((rho - 1).abs() > e).float().mean(), len(rho))
        return clipped_surrogate(rho, step.advantage, e)
