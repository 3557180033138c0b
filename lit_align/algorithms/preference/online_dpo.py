"""Online DPO: pairs are the best and the worst of a prompt's own samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.preference.online_preference import OnlinePreference
from lit_align.algorithms.preference.preference import Errors
from lit_align.rewards.reward import Reward


class OnlineDPO(OnlinePreference):
    """Iterative Diffusion-DPO (survey section 4.2; Guo et al. 2024, arXiv 2402.04792): samples K images for each
    prompt, scores them, and takes Diffusion-DPO's loss on best against worst. Prompts whose samples score alike give
    no pair.

    Args:
        reward: what decides.
        beta: coefficient of D.
        samples_per_prompt: K.
    """

    feedback = ("prompt",)

    def __init__(self, reward: Reward, beta: float = 500.0, samples_per_prompt: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.reward, self.beta = reward.eval().requires_grad_(False), beta
        self.samples_per_prompt = samples_per_prompt

    @torch.no_grad()
    def collect(self, batch: dict) -> dict | None:
        k, prompts = self.samples_per_prompt, batch["prompt"]
        repeated = [p for p in prompts for _ in range(k)]
        latents = self.draw_latents(repeated)
        reward = self.log_reward(self.reward(self.policy.decode(latents), repeated).float(), repeated).view(-1, k).cpu()
        latents = latents.unflatten(0, (-1, k))
        rows = (reward.amax(1) > reward.amin(1)).nonzero().flatten()
        if not len(rows):
            return None
        pick = lambda which: latents[rows, which[rows]]
        return {
            "prompt": [prompts[i] for i in rows],
            "index": [batch["index"][i] for i in rows],
            "win_latents": pick(reward.argmax(1)),
            "lose_latents": pick(reward.argmin(1)),
        }

    def loss(self, e: Errors) -> Tensor:
        return -F.logsigmoid(self.beta * e.gap)
