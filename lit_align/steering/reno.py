"""ReNO: the initial noise of a few-step model follows the gradient of rewards."""

import torch
from torch import Tensor

from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.rewards.reward import Reward
from lit_align.steering.noise_optimizer import NoiseOptimizer, clipped
from lit_align.steering.outer_sampler import Best


def norm_penalty(noise: Tensor) -> Tensor:
    """||z||^2 / 2 - (d - 1) log ||z|| of noise (P, ...): (P,), float32. Minus the log-density of the norm of normal
    noise of d dimensions, up to a constant; smallest where ||z||^2 = d - 1."""
    z = noise.float().flatten(1)
    norm = z.norm(dim=1)
    return norm.square() / 2 - (z.shape[1] - 1) * norm.log()


class ReNO(NoiseOptimizer):
    """Eyring et al., NeurIPS 2024 (arXiv 2406.04312), eq. 3 and 5: SGD with Nesterov momentum on -r(c, G(z)) + lambda
    (||z||^2 / 2 - (d - 1) log ||z||), for a generator G of one step; returns the sample with the highest reward. The
    noise of G's own steps stays the same throughout.

    The ensemble of the paper is a WeightedSum without normalisation: HPSv2.1 5 (per cosine), ImageReward 1, CLIP
    0.01 and PickScore 0.05 (per logit).

    Args:
        reward: r, differentiable.
        iterations: samples drawn, at most; the first one is plain. With `max_nfe`, as many as it allows.
        lr: learning rate.
        momentum: of Nesterov's SGD.
        max_grad_norm: of each sample's gradient.
        penalty: lambda.
        sampler: G (default: one step without guidance).
        max_nfe: network forwards and backwards that a prompt may take.
    """

    def __init__(
        self,
        reward: Reward,
        iterations: int = 50,
        lr: float = 5.0,
        momentum: float = 0.9,
        max_grad_norm: float = 0.1,
        penalty: float = 0.01,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, iterations, sampler or Sampler(1, 1.0), max_nfe)
        self.lr, self.momentum, self.max_grad_norm, self.penalty = lr, momentum, max_grad_norm, penalty

    def search(self, policy, start, hooks, budget):
        z, best, a_run = start.x.float().clone().requires_grad_(), Best(), self.sampler.nfe(hooks=hooks)
        sgd = torch.optim.SGD([z], self.lr, self.momentum, nesterov=self.momentum > 0)
        noise = z.detach().clone()
        for k in range(self.iterations):
            last = k == self.iterations - 1 or not budget.allows(4 * a_run)  # this gradient, and the run after it
            state = self.draw(policy, start, z, hooks, not last)
            with torch.set_grad_enabled(not last):
                reward = self.score(policy, state)
            better = best.offer(state.x.detach(), reward.detach())
            noise = torch.where(append_dims(better, z), z.detach(), noise)
            if last:
                break
            loss = -reward.sum() + self.penalty * norm_penalty(z).sum()
            z.grad = clipped(*torch.autograd.grad(loss, z), self.max_grad_norm)
            sgd.step()
        return self.chosen(start, best.x, best.reward, noise)
