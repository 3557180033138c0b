"""SRPO: the reward at any noise level, through known noise, relative to a prompt that asks for the opposite."""

import torch
from torch import Tensor

from lit_align.algorithms.online import tile_rows
from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.diffusion.sampler import Sampler
from lit_align.rewards.reward import components

LEVELS = 1000  # number of times in the window


class SRPO(RewardGradient):
    """Shen et al. 2025, arXiv 2509.06942. Direct-Align: a sample x_0 is noised to x_t = alpha_t x_0 + sigma_t eps with
    known eps, the policy steps from t to s, and the known noise is removed: x_0-hat = (x_s - sigma_s eps) / alpha_s
    (x_0 itself if the step is exact). The loss is relu(threshold - R) over two steps that end at the same s, with

        towards data (t > s):   R = (1 + k) r(x_0-hat, good) - r(x_0-hat, bad),
        towards noise (t < s):  R = (1 + k) r(x_0-hat, bad) - r(x_0-hat, good),

    good and bad the prompt after a control word. As released, eps is the noise that x_0 was sampled from. Logs the
    first R as `train/reward`.

    Args:
        good_words, bad_words: control words, used in turn.
        threshold: in units of R (0.7 for HPSv2; 14 for PickScore, which the released code divides by 20).
        window: trained part of the sampling grid, from 0 (noise) to 1 (data).
        hop: length of a step, as a fraction of the window.
        discount, inversion_discount: k towards data and towards noise, each (at the data end, at the noise end).
    """

    def __init__(
        self,
        good_words: tuple[str, ...] = ("Natural-lighting", "Detail", "Detailed", "Real"),
        bad_words: tuple[str, ...] = ("Concept art", "Painting", "Anime", "Flat", "Oil"),
        threshold: float = 0.7,
        window: tuple[float, float] = (0.1, 0.5),
        hop: float = 0.1,
        discount: tuple[float, float] = (0.1, 0.25),
        inversion_discount: tuple[float, float] = (0.3, 0.01),
        rollout: Sampler | None = None,
        **kwargs,
    ):
        super().__init__(rollout=rollout or Sampler(25, 1.0), **kwargs)
        self.good_words, self.bad_words, self.threshold = good_words, bad_words, threshold
        self.window, self.hop, self.discounts = window, hop, (discount, inversion_discount)

    def times(self) -> Tensor:
        """(LEVELS,) times, evenly spaced between two of 50 sampling times, the noisiest first."""
        grid = self.policy.process.timesteps(50)
        start, end = (grid[round(50 * share)].item() for share in self.window)
        return torch.linspace(start, end, LEVELS, device=grid.device).to(grid.dtype)

    def batch_loss(self, batch: dict) -> Tensor:
        prompts, last = batch["prompt"], LEVELS - 1
        cond = self.policy.condition(prompts, batch.get("columns"))
        eps = torch.randn(len(prompts), *self.policy.latent_shape, device=self.policy.device)
        x_0 = self.rollout(self.policy, cond=cond, x=eps).x
        times, end = self.times(), self.rank_zero(torch.randint(1, last, ()).item())
        hop = min(round(self.hop * LEVELS), end, last - end)
        good, bad = self.controlled(prompts)
        branches = ((end - hop, good, bad, self.discounts[0]), (end + hop, bad, good, self.discounts[1]))
        scores = []
        for start, positive, negative, (k_data, k_noise) in branches:
            estimate = self.recover(x_0, eps, times[start], times[end], cond)
            noise = 1 - max(start, end) / last  # 0 at the data end of the window
            scores.append(self.relative(estimate, batch, positive, negative, k_data + (k_noise - k_data) * noise))
        self.log_reward(scores[0], prompts)
        return (self.threshold - torch.stack(scores)).relu().mean()

    def recover(self, x_0: Tensor, eps: Tensor, t: Tensor, s: Tensor, cond: dict) -> Tensor:
        """x_0-hat (B, ...) from one step t -> s of the policy, with gradient, between known x_0 and eps (B, ...)."""
        process, t, s = self.policy.process, t.expand(len(x_0)), s.expand(len(x_0))
        pred_x_0, pred_eps = self.rollout.predict(self.policy, process.add_noise(x_0, eps, t), t, cond)
        alpha, sigma = process.coefficients(s, x_0)
        x_s = alpha * pred_x_0 + sigma * pred_eps
        return (x_s - sigma * eps) / alpha

    def controlled(self, prompts: list[str]) -> list[list[str]]:
        """The prompts with this step's good word, and with its bad word."""
        words = [w[self.global_step % len(w)] for w in (self.good_words, self.bad_words)]
        return [[f"{word}. {p}" for p in prompts] for word in words]

    def relative(self, x_0: Tensor, batch: dict, positive: list[str], negative: list[str], k: float) -> Tensor:
        """R = (1 + k) r(x, positive) - r(x, negative) of the images x of latents x_0: (B,)."""
        image = self.policy.decode(x_0)
        rows = tile_rows(batch, 2) | {"prompt": positive + negative}
        scores = self.reward.combine(components(self.reward, torch.cat([image, image]), rows))
        r_positive, r_negative = scores.chunk(2)
        return (1 + k) * r_positive - r_negative
