"""Nash-MD: self-play against a mixture of the policy and its reference, with a pairwise preference."""

import torch
from torch import Tensor

from lit_align.algorithms.online import tile_rows
from lit_align.algorithms.preference.online_preference import OnlinePreference
from lit_align.algorithms.preference.preference import Errors
from lit_align.diffusion.hook import Hook
from lit_align.rewards.reward import Reward


class Mixture(Hook):
    """Samples from the geometric mixture p_theta^(1 - a) p_ref^a, a = `share`: its score is (1 - a) x the policy's + a
    x the reference's."""

    def __init__(self, share: float):
        self.share = share

    def predict(self, policy, state, sampler):
        super().predict(policy, state, sampler)
        x_0, eps = state.x0, state.eps
        with torch.no_grad(), policy.reference():
            super().predict(policy, state, sampler)
        state.x0, state.eps = x_0.lerp(state.x0, self.share), eps.lerp(state.eps, self.share)


class NashMD(OnlinePreference):
    """Nash mirror descent (Munos et al. 2023, arXiv 2312.00886) in the contrastive form of IPO-MD (Calandriello et al.
    2024, arXiv 2403.08635, eq. 12); the port to diffusion is ours. The loss is (beta D - (2 P(x beats x') - 1))^2, D
    the gap of two samples x, x' of the mixture. Its fixed point is the regularised Nash equilibrium.

    Preferences are Bradley-Terry in the reward: P = sigmoid((r - r') / temperature). Override `preference` for another
    model.

    Args:
        reward: scores the samples.
        beta: coefficient of D.
        mixture: a, the share of the reference in the mixture, in [0, 1].
        temperature: of the preference, in units of the reward.
    """

    feedback = ("prompt",)

    def __init__(
        self, reward: Reward, beta: float = 500.0, mixture: float = 0.125, temperature: float = 0.25, **kwargs
    ):
        super().__init__(**kwargs)
        self.reward, self.beta = reward.eval().requires_grad_(False), beta
        self.mixture, self.temperature = mixture, temperature

    def preference(self, first: Tensor, second: Tensor) -> Tensor:
        """P(first sample beats second | prompt), (B,), from their rewards."""
        return torch.sigmoid((first - second) / self.temperature)

    @torch.no_grad()
    def collect(self, batch: dict) -> dict:
        rows, mixture = tile_rows(batch, 2), [Mixture(self.mixture)]
        x = self.draw_latents(rows, mixture)
        reward = self.log_reward(self.judge(self.reward, x, rows, self.minibatch), rows["prompt"])
        first, second = x.chunk(2)
        p = self.preference(*reward.chunk(2)).to(x)
        return batch | {"win_latents": first, "lose_latents": second, "p": p}

    def loss(self, e: Errors) -> Tensor:
        return (self.beta * e.gap - (2 * e.batch["p"] - 1)).square()
