"""Noise hypernetworks: the initial noise learns to follow a reward, near where it was."""

import os

import torch
from torch import Tensor

from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.steering.hyper_noise import NoiseNetwork


class NoiseHypernetwork(RewardGradient):
    """Eyring et al. 2025 (arXiv 2508.09968, eq. 10): a network f of noise and caption minimises

        regularisation ||f(x_T, c)||^2 / d - r(c, g(x_T + f(x_T, c))),    d the numbers in x_T,

    g the frozen policy's sampler. The first term is the KL divergence of the new noise from N(0, I), to first order, so
    that samples follow the reward-tilted distribution. With DDIM at eta 0, in few steps: gradient passes through all of
    them. (The released code draws one noise for a batch; here each sample has its own.)

    Logs `train/noise_shift`, the mean of ||f||^2 / d. Writes the network to `<run>/noise/hyper_noise.safetensors`,
    which `HyperNoise` loads.

    Args:
        regularisation: coefficient of ||f||^2 / d; in the release 0.5, with ReNO's four rewards.
        rank: of the LoRA that f is.
        alpha: numerator of its scale alpha / rank (default: twice the rank).
    """

    ranges = {"regularisation": "0 or more"}

    def __init__(self, regularisation: float = 0.5, rank: int = 128, alpha: float | None = None, **kwargs):
        super().__init__(**kwargs)
        self.policy.requires_grad_(False)
        self.regularisation = regularisation
        self.network = NoiseNetwork(self.policy, rank, alpha or 2 * rank)
        if self.rollout.forgets_noise(self.policy):
            raise ValueError("NoiseHypernetwork moves the initial noise, which this rollout's first step replaces.")
        self._shift: Tensor | None = None

    def generate(self, batch: dict) -> Tensor:
        x = torch.randn(len(batch["prompt"]), *self.policy.latent_shape, device=self.policy.device)
        t = self.rollout.timesteps(self.policy)[:1].to(x.device).expand(len(x))
        f = self.network(self.policy, x, t, self.policy.condition(batch["prompt"], batch.get("columns")))
        self._shift = f.square().flatten(1).mean(1)  # (B,)
        return self.roll(batch, x=x + f, grad=self.rank_zero(self.grad_steps(self.rollout.steps))).x

    def loss(self, reward: Tensor) -> Tensor:
        self.log_mean("train/noise_shift", self._shift.mean(), len(reward))
        return self.regularisation * self._shift - reward

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            self.network.save(os.path.join(self.trainer.default_root_dir, "noise"))
