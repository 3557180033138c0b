"""DNO: all the noise of a sampling chain follows the gradient of a reward, and must stay probable."""

import math

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.diffusion.transition import DDIM
from lit_align.rewards.reward import Reward, components
from lit_align.steering.noise_optimizer import NoiseOptimizer, clipped
from lit_align.steering.outer_sampler import Best
from lit_align.steering.reward_guidance import check_gradient


def improbability(noise: Tensor, block: int = 4, permutations: int = 100, seed: int = 0) -> Tensor:
    """Section 4.2's regulariser of noise (P, ...): (P,), float32; 4 log 2 at the least, and about that for normal
    noise, where its gradient is mostly 0.

    The d numbers are cut into m = d / k blocks of k. Bounds on the probability of a mean and a covariance as far off as
    the blocks' are (eq. 9 and 10): log p_1 = -m ||mean||^2 / (2 k) and log p_2 = -m max(0, sqrt(1 + ||cov - I||) - 1 -
    sqrt(k / m))^2 / 2, at most -log 2 each. The result is minus their sum, of the numbers as they lie and, on average,
    permuted at random.
    """
    flat, k = noise.float().flatten(1), block
    m = flat.shape[1] // k
    generator = torch.Generator().manual_seed(seed)

    def log_p(rows: Tensor) -> Tensor:
        blocks = rows[:, : m * k].view(-1, m, k)
        mean = blocks.mean(1).square().sum(1)
        gap = blocks.transpose(1, 2) @ blocks / m - torch.eye(k, device=rows.device)
        off = ((1 + torch.linalg.matrix_norm(gap, 2)).sqrt() - 1 - math.sqrt(k / m)).clamp(min=0)
        bounds = torch.stack([-m * mean / (2 * k), -m * off.square() / 2])
        return bounds.clamp(max=-math.log(2)).sum(0)

    orders = [torch.randperm(flat.shape[1], generator=generator).to(flat.device) for _ in range(permutations)]
    shuffled = sum(log_p(flat[:, order]) for order in orders) / max(permutations, 1)
    return -(log_p(flat) + shuffled)


class _Injected(Hook):
    """Steps draw given noise in place of random noise.

    Args:
        noise: (P, N, ...), for each noisy step.
        steps: the noisy steps.
    """

    replaces = ("propose",)

    def __init__(self, noise: Tensor, steps: list[int]):
        self.noise, self.steps = noise, steps

    def on_init(self, policy, state):
        state.extras[self] = self.noise
        super().on_init(policy, state)

    def propose(self, policy, state, gaussian):
        if state.i not in self.steps:
            return gaussian.mean
        return gaussian.sample(state.extras[self][:, self.steps.index(state.i)])


class DNO(NoiseOptimizer):
    """Direct noise optimisation (Tang et al., ICML 2025, arXiv 2405.18881), algorithm 1: AdamW on -r(c, M(z)) + gamma
    R(z), where z is the initial noise and that of every step, and R is `improbability`; returns the sample with the
    highest r - gamma R.

    Without a gradient of the reward, that of the image is estimated from `perturbed` samples of noise z + mu xi, as
    sum_i (r_i - r)(x_i - x) of norm 1, and goes on through M (the paper's hybrid gradient).

    Args:
        reward: r.
        iterations: samples drawn, at most; the first one is plain. With `max_nfe`, as many as it allows.
        lr: of AdamW.
        gamma: weight of R.
        max_grad_norm: of each sample's gradient.
        weight_decay: of AdamW; PyTorch's default of 0.01 pulls the noise to 0, in the release too.
        block, permutations: of R.
        mu, perturbed: of the hybrid gradient.
        sampler: M (default: 50 DDIM steps with eta 1 and guidance 5).
        max_nfe: network forwards and backwards that a prompt may take.
    """

    def __init__(
        self,
        reward: Reward,
        iterations: int = 100,
        lr: float = 0.01,
        gamma: float = 1.0,
        max_grad_norm: float = 1.0,
        weight_decay: float = 0.0,
        block: int = 4,
        permutations: int = 100,
        mu: float = 0.01,
        perturbed: int = 16,
        sampler: Sampler | None = None,
        max_nfe: int | None = None,
    ):
        super().__init__(reward, iterations, sampler or Sampler(50, 5.0, DDIM(eta=1.0)), max_nfe)
        self.lr, self.gamma, self.max_grad_norm, self.weight_decay = lr, gamma, max_grad_norm, weight_decay
        self.block, self.permutations, self.mu, self.perturbed = block, permutations, mu, perturbed

    def check(self, policy):
        check_gradient("DNO")  # the reward may be without

    def search(self, policy, start, hooks, budget):
        noisy = (self.sampler.step_std(policy) > 0).nonzero().flatten().tolist()
        streams, other = self.start(start).generators, self.start(start, 1).generators
        z = torch.stack([start.x, *(randn_like(start.x, streams) for _ in noisy)], 1).requires_grad_()
        adam = torch.optim.AdamW([z], self.lr, weight_decay=self.weight_decay)
        best, noise, a_run = Best(), z.detach().clone(), self.sampler.nfe(hooks=hooks)
        highest = torch.zeros(len(z), device=z.device)
        a_gradient = a_run * (3 if self.reward.differentiable else 3 + self.perturbed)
        for k in range(self.iterations):
            last = k == self.iterations - 1 or not budget.allows(a_gradient + a_run)
            x = self.drawn(policy, start, z, noisy, hooks, not last)
            with torch.set_grad_enabled(not last):
                image = policy.decode(x)
                reward = self.scored(policy, start, image)
                penalty = improbability(z, self.block, self.permutations, k) if self.gamma else 0 * reward
            objective = reward - self.gamma * penalty
            better = best.offer(x.detach(), objective.detach())
            noise = torch.where(append_dims(better, z), z.detach(), noise)
            highest = torch.where(better, reward.detach(), highest)
            if last:
                break
            if not self.reward.differentiable:
                draw = lambda: self.drawn(
                    policy, start, z + self.mu * randn_like(z.detach(), other), noisy, hooks, False
                )
                direction = self.direction(policy, start, image.detach(), reward.detach(), draw)
                objective = (direction * image).flatten(1).sum(1) - self.gamma * penalty
            z.grad = -clipped(*torch.autograd.grad(objective.sum(), z), self.max_grad_norm)
            adam.step()
        done = self.chosen(start, best.x, highest, noise)
        done.extras[self]["improbability"] = improbability(noise, self.block, self.permutations)
        return done

    def drawn(self, policy, start, z: Tensor, noisy: list[int], hooks, grad: bool) -> Tensor:
        """x_0 of noise z (P, 1 + N, ...)."""
        return self.draw(policy, start, z[:, 0], (_Injected(z[:, 1:], noisy), *hooks), grad).x

    def scored(self, policy, start, image: Tensor) -> Tensor:
        policy.calls["reward_calls"] += len(image)
        image = image if self.reward.differentiable else image.detach()
        return self.reward.combine(components(self.reward, image, start.rows))

    @torch.no_grad()
    def direction(self, policy, start, image: Tensor, reward: Tensor, draw) -> Tensor:
        """Estimate of the reward's gradient in the image (P, 3, H, W), of norm 1."""
        total = torch.zeros_like(image)
        for _ in range(self.perturbed):
            other = policy.decode(draw())
            total += append_dims(self.scored(policy, start, other) - reward, image) * (other - image)
        return total / append_dims(total.flatten(1).norm(dim=1) + 1e-3, total)
