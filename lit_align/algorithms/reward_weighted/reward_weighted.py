"""The reward-weighted family: own samples -> rewards -> weights -> weighted denoising loss."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from lit_align.algorithms.online import Online, repeat_rows, tile_rows
from lit_align.diffusion.state import select_rows
from lit_align.rewards.reward import Reward


class WeightedLikelihood(Online):
    """Base of the methods that maximise E[w(r) log p_theta(x_0 | c)] over their own samples. A method overrides
    `weights`.

    log p_theta is replaced by its bound, minus the denoising loss in the policy's own prediction type (a flow's
    velocity): w ||prediction - target||^2, as mean over the sample, at a fresh (t, eps) each time. A training step
    samples K images for each prompt of the batch (from the policy, or from the reference if the method uses one),
    scores them, and makes `updates` optimizer steps, each on `minibatch` samples with nonzero weight, in turn. Each
    step estimates the mean of w x error over *all* samples. Every rank takes the same number of steps, however many
    samples it kept.

    Logs `train/reward` (mean), `train/effective_sample_size` ((sum w)^2 / sum w^2 over all ranks' samples) and
    `train/kept` (fraction of samples with nonzero weight).

    Args:
        reward: determines the weights of samples.
        samples_per_prompt: K.
        minibatch: samples per optimizer step, on each device.
        guidance_scale: guidance of the trained prediction; 1: the conditional prediction only.
        timestep_sampling: distribution of t: uniform, or logit_normal or mode for flow matching (arXiv 2403.03206).
    """

    feedback = ("prompt",)

    def __init__(
        self,
        reward: Reward,
        samples_per_prompt: int = 4,
        guidance_scale: float = 1.0,
        timestep_sampling: Literal["uniform", "logit_normal", "mode"] = "uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reward = reward.eval().requires_grad_(False)
        self.samples_per_prompt = samples_per_prompt
        self.guidance_scale, self.timestep_sampling = guidance_scale, timestep_sampling

    @abstractmethod
    def weights(self, reward: Tensor) -> Tensor:
        """The method's equation: nonnegative weights (P, K) from the rewards (P, K) of all ranks' samples."""

    @torch.no_grad()
    def sample_and_judge(self, batch: dict, prompts: list[str] | None = None) -> tuple[Tensor, Tensor]:
        """K samples (B, K, C, h, w) for each row, from `prompts` if given, and their rewards: (B, K) or (B, K, R)."""
        k, rows = self.samples_per_prompt, tile_rows(batch, self.samples_per_prompt)
        with self.policy.reference() if self.uses_reference else nullcontext():
            latents = [self.draw_latents(batch | ({"prompt": prompts} if prompts else {})) for _ in range(k)]
        reward = self.judge(self.reward, torch.cat(latents), rows, self.minibatch)
        self.log_reward(reward, rows["prompt"])
        return torch.stack(latents, 1), reward.unflatten(0, (k, -1)).transpose(0, 1).contiguous()

    def gathered(self, x: Tensor) -> Tensor:
        """Rows of x (B, ...) of all ranks, the same on every rank."""
        return self.all_gather(x).view(-1, *x.shape[1:])

    def collect(self, batch: dict) -> dict:
        """{"prompt", "image_latents", "weight"} of the batch's B K samples."""
        latents, reward = self.sample_and_judge(batch)
        weight = self.weights(self.gathered(reward))
        ess = weight.sum().square() / weight.square().sum().clamp(min=1e-12)
        self.log_mean("train/effective_sample_size", ess, 1)
        return {
            **repeat_rows(batch, self.samples_per_prompt),
            "image_latents": latents.flatten(0, 1),
            "weight": weight.view(-1, *reward.shape[:2])[self.global_rank].flatten(),
        }

    def optimizer_steps(self, collected: dict) -> Iterator[list[dict]]:
        """Minibatches of the samples with nonzero weight, each equally often; of all samples if all weights are 0."""
        kept = (collected["weight"] > 0).nonzero().flatten().cpu()
        share, need = len(kept) / len(collected["weight"]), self.updates * self.minibatch
        self.log_mean("train/kept", torch.tensor(share), 1)
        if not len(kept):
            kept = torch.arange(len(collected["weight"]))
        rows = torch.cat([kept[torch.randperm(len(kept))] for _ in range(-(-need // len(kept)))])[:need]
        collected = collected | {"weight": collected["weight"] * share}  # dropped samples count as 0
        return ([select_rows(collected, part.tolist())] for part in rows.split(self.minibatch))

    def batch_loss(self, batch: dict) -> Tensor:
        process, x_0 = self.policy.process, batch["image_latents"]
        t = process.sample_timesteps(len(x_0), self.timestep_sampling, device=x_0.device)
        eps = torch.randn_like(x_0)
        x_t, target = process.add_noise(x_0, eps, t), process.target(x_0, eps, t)
        prediction = self.policy.denoise(x_t, t, self.cond(batch), self.guidance_scale)
        return (batch["weight"] * self.policy.error(prediction, target)).mean()
