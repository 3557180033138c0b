"""Online DPO: a pair is the best and the worst of a prompt's samples."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.online import repeat_rows
from lit_align.algorithms.preference.online_preference import OnlinePreference
from lit_align.algorithms.preference.preference import Errors
from lit_align.diffusion.state import select_rows
from lit_align.ranges import COUNT
from lit_align.rewards.reward import Reward


class OnlineDPO(OnlinePreference):
    """Iterative Diffusion-DPO (survey section 4.2; Guo et al. 2024, arXiv 2402.04792): samples K images per prompt,
    scores them, and applies Diffusion-DPO's loss to the best and the worst. Prompts whose samples have equal scores
    give no pair.

    Args:
        reward: ranks the samples.
        beta: coefficient of D.
        samples_per_prompt: K.
        samples_from: policy, or reference (which `refresh_every` moves to the policy).
        draws: timesteps and noises per pair in an optimizer step.
    """

    feedback, ranges = ("prompt",), {"draws": COUNT}

    def __init__(
        self,
        reward: Reward,
        beta: float = 500.0,
        samples_per_prompt: int = 4,
        samples_from: Literal["policy", "reference"] = "policy",
        draws: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reward, self.beta = reward.eval().requires_grad_(False), beta
        self.samples_per_prompt, self.samples_from, self.draws = samples_per_prompt, samples_from, draws

    @torch.no_grad()
    def collect(self, batch: dict) -> dict | None:
        k = self.samples_per_prompt
        rows = repeat_rows(batch, k)
        with self.policy.reference() if self.samples_from == "reference" else nullcontext():
            latents = self.draw_latents(rows)
        reward = self.log_reward(self.judge(self.reward, latents, rows, self.minibatch), rows["prompt"])
        reward, latents = reward.view(-1, k).cpu(), latents.unflatten(0, (-1, k))
        untied = (reward.amax(1) > reward.amin(1)).nonzero().flatten()
        if not len(untied):
            return None
        pick = lambda which: latents[untied, which[untied]]
        return {
            **select_rows({"prompt": batch["prompt"], "columns": batch.get("columns", {})}, untied.tolist()),
            "win_latents": pick(reward.argmax(1)),
            "lose_latents": pick(reward.argmin(1)),
        }

    def optimizer_steps(self, collected: dict | None) -> Iterator[list]:
        return (minibatches * self.draws for minibatches in super().optimizer_steps(collected))

    def batch_loss(self, batch: dict) -> Tensor:
        return super().batch_loss(batch) / self.draws

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
