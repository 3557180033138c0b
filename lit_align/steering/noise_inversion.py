"""Inversion stability: noise that comes back when its sample is inverted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.diffusion.inversion import Predictor, ddim_inversion
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.steering.noise_optimizer import radius
from lit_align.steering.outer_sampler import Best, OuterSampler
from lit_align.steering.reward_guidance import check_gradient


class InversionStability(OuterSampler):
    """Base of the methods that rank noise z by the cosine of z and the DDIM inversion z' of its sample.

    Args:
        sampler: deterministic.
        max_nfe: network forwards that a prompt may take.
    """

    def __init__(self, sampler: Sampler | None = None, max_nfe: int | None = None):
        super().__init__(None, sampler, max_nfe)
        if isinstance(self.sampler, OuterSampler):
            name, inside = type(self).__name__, type(self.sampler).__name__
            raise ValueError(f"{name} inverts a sampler's steps, and {inside} has none: put {inside} around {name}.")

    def check(self, policy):
        Predictor.check(type(self).__name__, self.sampler, policy)

    def nfe(self, first=0, last=None, hooks=()):
        return 2 * self.sampler.nfe(hooks=hooks)  # a sample and its inversion

    def cycle(self, policy, start, x: Tensor, hooks) -> tuple[Tensor, Tensor, Tensor]:
        """x_0 of noise x (P, ...), the noise x' that it is inverted to, and their cosine (P,)."""
        state = self.start(start)
        state.x = x
        x_0 = self.sampler.run(policy, state, hooks, all_steps(self.steps) if torch.is_grad_enabled() else None).x
        back = ddim_inversion(Predictor(self.sampler, policy, start, hooks), x_0)
        return x_0, back, F.cosine_similarity(x.flatten(1), back.flatten(1))


class NoiseSelection(InversionStability):
    """Qi et al. 2024 (arXiv 2407.14041), noise selection: of n noises, the sample of the one with the largest cosine to
    the inversion of its sample. (No official code; n is unverified.)

    Args:
        n: noises, at most. With `max_nfe`, as many as it allows.
        sampler: deterministic (default: 50 DDIM steps, guidance 7.5).
        max_nfe: network forwards that a prompt may take.
    """

    def __init__(self, n: int = 100, sampler: Sampler | None = None, max_nfe: int | None = None):
        super().__init__(sampler, max_nfe)
        if n < 1:
            raise ValueError(f"NoiseSelection: n is {n}; draw at least one sample.")
        self.n = n

    def search(self, policy, start, hooks, budget):
        best, a_cycle = Best(), self.nfe(hooks=hooks)
        for k in range(self.n):
            if not budget.allows(a_cycle):
                break
            x_0, _, stability = self.cycle(policy, start, self.start(start, k).x, hooks)
            best.offer(x_0, stability)
        return self.result(start, best.x, best.reward)


class NoiseInversion(InversionStability):
    """Qi et al. 2024 (arXiv 2407.14041), noise optimisation: gradient descent with momentum on 1 - cos(z, z'), z' the
    inversion of z's sample; returns the sample of the most stable noise on the way.

    By default z' has no gradient: a step turns z towards its inversion. (No official code; whether the paper's gradient
    goes through the two chains, and its constants, are unverified.)

    Args:
        iterations: noises, at most; the first is plain. With `max_nfe`, as many as it allows.
        lr: learning rate.
        momentum: of the descent.
        through: whether the gradient goes through the sample and its inversion, for three times the evaluations.
        sampler: deterministic (default: 50 DDIM steps, guidance 7.5).
        max_nfe: network forwards that a prompt may take.
    """

    def __init__(
        self,
        iterations: int = 100,
        lr: float = 100.0,
        momentum: float = 0.5,
        through: bool = False,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(sampler, max_nfe)
        if iterations < 1:
            raise ValueError(f"NoiseInversion: iterations is {iterations}; draw at least one sample.")
        self.iterations, self.lr, self.momentum, self.through = iterations, lr, momentum, through

    def check(self, policy):
        super().check(policy)
        check_gradient("NoiseInversion")

    def search(self, policy, start, hooks, budget):
        x, velocity = start.x.float(), torch.zeros_like(start.x)
        best, noise, a_cycle = Best(), start.x, self.nfe(hooks=hooks) * (3 if self.through else 1)
        for _ in range(self.iterations):
            if best.x is not None and not budget.allows(a_cycle):
                break
            x_0, stability, gradient = self.gradient(policy, start, x, hooks)
            noise = torch.where(append_dims(best.offer(x_0, stability), x), x, noise)
            velocity = self.momentum * velocity + gradient
            x = x + self.lr * velocity
        done = self.result(start, best.x, best.reward)
        done.extras[self]["radius"] = radius(noise)
        return done

    def gradient(self, policy, start, x: Tensor, hooks) -> tuple[Tensor, Tensor, Tensor]:
        """x_0 of noise x (P, ...), the cosine (P,) of x and its inversion, and the gradient of that in x."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            with torch.set_grad_enabled(self.through):
                x_0, back, _ = self.cycle(policy, start, leaf, hooks)
            stability = F.cosine_similarity(leaf.flatten(1), back.flatten(1))
            (gradient,) = torch.autograd.grad(stability.sum(), leaf)
        return x_0.detach(), stability.detach(), gradient
