"""Nash-MD: self-play against a mixture of the policy and its reference, under a pairwise preference."""

import torch
from torch import Tensor

from lit_align.algorithms.preference.online_preference import OnlinePreference
from lit_align.algorithms.preference.preference import Errors
from lit_align.diffusion.sampler import Hook
from lit_align.rewards.reward import Reward


class Mixture(Hook):
    """Sampling from the geometric mixture p_theta^(1 - a) p_ref^a, whose score is the same mixture of the two
    scores."""

    def __init__(self, share: float):
        self.share = share

    def predict(self, policy, state, sampler):
        t = state.t.expand(len(state.x))
        x_0, eps = sampler.predict(policy, state.x, t, state.cond, state.keep)
        with policy.reference():
            ref_x_0, ref_eps = sampler.predict(policy, state.x, t, state.cond, False)
        state.x0, state.eps = x_0.lerp(ref_x_0, self.share), eps.lerp(ref_eps, self.share)


class NashMD(OnlinePreference):
    """Nash mirror descent (Munos et al. 2023, arXiv 2312.00886) in the contrastive form of IPO-MD (Calandriello et
    al. 2024, arXiv 2403.08635, eq. 12); the port to diffusion is ours. Two samples x, x' of the mixture, and
    (beta D - (2 P(x beats x') - 1))^2 with D their gap: the fixed point is the regularised Nash equilibrium.

    Preferences are Bradley-Terry in the reward, P = sigmoid((r - r') / temperature); any pairwise model that is not,
    as when annotators disagree in a circle, can override `preference`.

    Args:
        reward: what the preference rests on.
        beta: coefficient of D.
        mixture: share of the reference in what is sampled from, in [0, 1].
        temperature: of the preference.
    """

    feedback = ("prompt",)

    def __init__(
        self, reward: Reward, beta: float = 500.0, mixture: float = 0.125, temperature: float = 0.25, **kwargs
    ):
        super().__init__(**kwargs)
        self.reward, self.beta = reward.eval().requires_grad_(False), beta
        self.mixture, self.temperature = mixture, temperature

    @torch.no_grad()
    def draw_latents(self, prompts: list[str]) -> Tensor:
        return self.rollout(self.policy, prompts, hook=Mixture(self.mixture)).x

    def preference(self, image: Tensor, other: Tensor, prompts: list[str]) -> Tensor:
        """P(image beats other | prompt), (B,)."""
        gap = self.reward(image, prompts).float() - self.reward(other, prompts).float()
        return torch.sigmoid(gap / self.temperature)

    @torch.no_grad()
    def collect(self, batch: dict) -> dict:
        x = self.draw_latents(batch["prompt"] * 2)
        one, other = x.chunk(2)
        p = self.preference(self.policy.decode(one), self.policy.decode(other), batch["prompt"])
        return {
            "prompt": batch["prompt"],
            "index": batch["index"],
            "win_latents": one,
            "lose_latents": other,
            "p": p.to(x),
        }

    def loss(self, e: Errors) -> Tensor:
        return (self.beta * e.gap - (2 * e.batch["p"] - 1)).square()
