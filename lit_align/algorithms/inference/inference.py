"""The training-free family: prompts -> steered sampling. Runs under `test` (against plain sampling) and `predict`."""

import torch

from lit_align.algorithms.algorithm import Algorithm
from lit_align.rewards.reward import Reward


class Inference(Algorithm):
    """Base of the methods that steer sampling towards a reward. A method overrides `sample`.

    Args:
        reward: what steers.
        particles: samples drawn per prompt, of which the best by `reward` is returned.
    """

    def __init__(self, reward: Reward, particles: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.reward = reward.eval().requires_grad_(False)
        self.particles = particles

    def baseline(self, batch: dict) -> dict:
        """Plain sampling, one sample per prompt."""
        return Algorithm.sample(self, batch)

    def repeated(self, batch: dict) -> tuple[list[str], list[int]]:
        """Prompts and seeds of all particles, those of one prompt together."""
        prompts = [p for p in batch["prompt"] for _ in range(self.particles)]
        seeds = [index * self.particles + k for index in batch["index"] for k in range(self.particles)]
        return prompts, seeds

    def best(self, batch: dict, latents: torch.Tensor) -> dict:
        """The best particle of each prompt by the steering reward, as `sample` returns it."""
        image = self.policy.decode(latents).float()
        reward = self.reward(image, [p for p in batch["prompt"] for _ in range(self.particles)]).view(
            -1, self.particles
        )
        pick = reward.argmax(1) + torch.arange(len(reward), device=reward.device) * self.particles
        scores = {r.name: r(image[pick], batch["prompt"]).float() for r in self.rewards}
        return {"image": image[pick], "scores": scores, "latents": latents[pick]}
