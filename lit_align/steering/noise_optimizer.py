"""Climbing the gradient of a reward in the noise, through a whole run of a sampler."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.state import State
from lit_align.rewards.reward import Reward
from lit_align.steering.outer_sampler import OuterSampler
from lit_align.steering.reward_guidance import check_gradient


def clipped(gradient: Tensor, norm: float) -> Tensor:
    """Gradients (P, ...) whose norm, of each row, is at most `norm`."""
    size = gradient.flatten(1).norm(dim=1)
    return gradient * append_dims((norm / size.clamp(min=1e-12)).clamp(max=1), gradient)


def radius(noise: Tensor) -> Tensor:
    """Norm of noise (P, ...) over the square root of its dimension (P,): 1 on the sphere where noise lies."""
    return noise.flatten(1).square().mean(1).sqrt()


class NoiseOptimizer(OuterSampler):
    """Base of the methods that optimise the noise of a sampler by gradients through all its steps, each recomputed in
    the backward pass, so that memory is that of one step. `search` runs with gradients enabled.

    Args:
        reward: differentiable.
        iterations: samples drawn, at most: with `max_nfe`, as many as it allows; the first one is plain.
        sampler: is differentiated.
        max_nfe: see OuterSampler.
    """

    def __init__(self, reward: Reward | None, iterations: int, sampler: Sampler | None, max_nfe: int | None):
        super().__init__(reward, sampler, max_nfe)
        self.iterations, name = iterations, type(self).__name__
        if iterations < 1:
            raise ValueError(f"{name}: iterations is {iterations}; draw at least one sample.")
        if isinstance(self.sampler, OuterSampler):
            inside = type(self.sampler).__name__
            raise ValueError(
                f"{name} optimises the noise of single samples, and {inside} selects among finished ones: put {inside} "
                f"around {name}."
            )

    def check(self, policy) -> None:
        check_gradient(type(self).__name__, self.reward)
        self.refuse_forgotten_noise(policy)

    @torch.enable_grad()
    def run(self, *args, **kwargs) -> State:
        return super().run(*args, **kwargs)

    def draw(self, policy, start: State, x: Tensor, hooks: Sequence[Hook], grad: bool = True) -> State:
        """A run from noise x (P, ...), with the noise of the steps that plain sampling has."""
        state = self.start(start)
        state.x = x
        with torch.set_grad_enabled(grad):
            return self.sampler.run(policy, state, hooks, all_steps(self.steps) if grad else None)

    def chosen(self, start: State, x: Tensor, reward: Tensor, noise: Tensor) -> State:
        """The result, with the radius of its noise."""
        done = self.result(start, x, reward)
        done.extras[self]["radius"] = radius(noise)
        return done
