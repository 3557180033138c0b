"""DRTune: the reward's gradient at steps spread over the whole trajectory, stopped at the denoiser's input."""

import torch
from torch import Tensor

from lit_align.algorithms.reward_gradient.refl import StopAfter
from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.diffusion.hook import Hook


class StopInput(Hook):
    """The denoiser sees x_t as a constant: gradient reaches earlier steps through the sampler's formula alone."""

    def predict(self, policy, state, sampler):
        x, state.x = state.x, state.x.detach()
        super().predict(policy, state, sampler)
        process, t, state.x = policy.process, state.t, x
        prediction = process.target(state.x0, state.eps, t)
        state.x0, state.eps = process.to_x0(prediction, x, t), process.to_eps(prediction, x, t)


class DRTune(RewardGradient):
    """Wu et al. 2024, arXiv 2405.00760, algorithm 1: gradient of r(x_0, c) through K steps at equal distances, the
    first drawn at random, with the denoiser's input held constant. The loop ends at a step drawn from the last
    `early_stop`; of an early end the estimate of x_0 is scored.

    Args:
        K: steps with gradient.
        early_stop: m, the number of last steps at which the loop may end; 1: it never ends early.
    """

    def __init__(self, K: int = 5, early_stop: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.K, self.early_stop = K, early_stop
        if not (1 <= K <= self.rollout.steps and 1 <= early_stop <= self.rollout.steps):
            raise ValueError(
                f"K is {K} and early_stop {early_stop}; this rollout allows 1 to {self.rollout.steps} steps."
            )

    def grad_steps(self, steps: int) -> Tensor:
        stride = steps // self.K
        first = torch.randint(steps - stride * (self.K - 1), ())
        return torch.isin(torch.arange(steps), first + stride * torch.arange(self.K))

    def generate(self, batch: dict) -> Tensor:
        steps = self.rollout.steps
        grad, last = self.rank_zero((self.grad_steps(steps), steps - 1 - int(torch.randint(self.early_stop, ()))))
        state = self.roll(batch, hooks=(StopAfter(last), StopInput()), grad=grad)
        return state.x if last == steps - 1 else state.x0
