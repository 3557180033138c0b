"""DOODL: the initial noise follows the gradient of a reward through an invertible chain."""

import torch

from lit_align.diffusion.inversion import Predictor
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.rewards.reward import Reward, judge
from lit_align.steering.edict import EDICT
from lit_align.steering.noise_optimizer import NoiseOptimizer
from lit_align.steering.outer_sampler import Best


class DOODL(NoiseOptimizer):
    """Wallace et al., ICCV 2023 (arXiv 2303.13703), algorithm 1: gradient ascent on r(c, x_0) in x_T, through a chain
    whose backward pass inverts its steps (EDICT), with momentum and a little noise, back on the sphere of x_T after
    every update. The gradient is a quarter of that of r at both of EDICT's x_0, each element clipped. Returns the
    sample with the highest reward.

    Samples are EDICT's, which differ from the inner sampler's; 32-bit weights keep the inversion exact.

    Args:
        reward: r, differentiable.
        iterations: samples drawn, at most. With `max_nfe`, as many as it allows.
        scale: step size; it multiplies the gradient before it is clipped.
        momentum: of the ascent.
        clip: largest size of a gradient's element.
        perturbation: standard deviation of the noise added to x_T.
        mix: p of EDICT.
        sampler: gives steps, guidance and hooks that predict (default: 50 DDIM steps, guidance 7.5).
        max_nfe: network forwards and backwards that a prompt may take.
    """

    def __init__(
        self,
        reward: Reward,
        iterations: int = 50,
        scale: float = 1.0,
        momentum: float = 0.9,
        clip: float = 1e-3,
        perturbation: float = 1e-4,
        mix: float = 0.93,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, iterations, sampler, max_nfe)
        self.scale, self.momentum, self.clip = scale, momentum, clip
        self.perturbation, self.mix = perturbation, mix

    def check(self, policy):
        Predictor.check("DOODL", self.sampler, policy)
        super().check(policy)

    def nfe(self, first=0, last=None, hooks=()):
        return 2 * self.sampler.nfe(hooks=hooks)  # a run of EDICT

    def search(self, policy, start, hooks, budget):
        chain = EDICT(Predictor(self.sampler, policy, start, hooks), self.mix)
        x, streams = start.x.float(), self.start(start, 1).generators
        norm, velocity, best, a_run = x.flatten(1).norm(dim=1), torch.zeros_like(x), Best(), self.nfe(hooks=hooks)
        noise = x
        for k in range(self.iterations):
            last = k == self.iterations - 1 or not budget.allows(5 * a_run)  # run, inversion, run, its backward; run
            with torch.set_grad_enabled(not last):
                z = x.detach().requires_grad_(not last)
                pair = chain.sample(z)
                rewards = [judge(self.reward, policy, x_0, start.rows) for x_0 in (pair if not last else pair[:1])]
            better = best.offer(pair[0].detach(), rewards[0].detach())
            noise = torch.where(append_dims(better, x), x, noise)
            if last:
                break
            (gradient,) = torch.autograd.grad(sum(rewards).sum(), z)
            gradient = (self.scale * gradient / 4).clamp(-self.clip, self.clip)
            velocity = self.momentum * velocity + gradient
            x = x + velocity + self.perturbation * randn_like(x, streams)
            x = x * append_dims(norm / x.flatten(1).norm(dim=1), x)
        return self.chosen(start, best.x, best.reward, noise)
