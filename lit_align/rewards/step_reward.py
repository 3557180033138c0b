"""Rewards of noisy samples at single denoising steps."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from lit_align.rewards.reward import Reward


class StepReward(nn.Module):
    """r(c, x_t, t): the reward of a noisy sample during sampling; higher is better.

    Attributes: those of Reward that `docs/rewards.md` lists; `needs_x0` is True if it scores the policy's estimate of
    x_0, False if it scores the noisy latents; `truncated` counts the prompts so far whose end it did not read.
    """

    needs_x0: bool
    differentiable = True
    text_limit: int | None = None
    artefact = licence = scale = blind_to = ""  # see Reward
    masks = False  # every sample is scored
    truncated: int | None = None

    @abstractmethod
    def forward(self, policy, x_t: Tensor, x_0: Tensor | None, t: Tensor, prompts: list[str]) -> Tensor:
        """Scores (B,) of noisy latents x_t (B, C, h, w) at times t (B,); x_0 is the policy's estimate, or None.

        At the end of sampling x_t and x_0 are the same.
        """


class OneStep(StepReward):
    """An image reward on the decoded estimate of x_0; ignores the timestep.

    Args:
        reward: of images.
    """

    needs_x0 = True
    artefact = licence = scale = "its reward's"
    blind_to = "what its reward is blind to; the noise that is left"

    def __init__(self, reward: Reward):
        super().__init__()
        self.reward = reward

    def forward(self, policy, x_t, x_0, t, prompts):
        return self.reward(policy.decode(x_0), prompts).float()


class NoisedReward(Reward):
    """A reward of noisy latents as one of images: the images are encoded and noised, and the scores averaged over
    noise levels, each with the same noise for all images.

    Args:
        reward: one with a `backbone`, such as LatentReward or DiNaLRM.
        levels: sigma of the backbone's process at which an image is scored, in (0, 1) (DiNa-LRM: 0.4 for samples, 0.1
            for clean pictures).
        seed: of the noise.
    """

    name, differentiable = "noised_reward", False
    artefact, licence = "its reward's", "its reward's"
    scale = "its reward's"
    blind_to = "what the encoder loses"

    def __init__(self, reward: StepReward, levels: tuple[float, ...] = (0.4,), seed: int = 0):
        super().__init__()
        self.reward, self.levels, self.seed = reward, levels, seed

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        backbone, g = self.reward.backbone, torch.Generator().manual_seed(self.seed)
        x_0 = backbone.encode(images)
        scores = []
        for level in self.levels:
            eps = torch.randn(x_0.shape[1:], generator=g).to(x_0).expand_as(x_0)
            t = time_of(backbone.process, level).to(x_0.device).expand(len(x_0))
            scores.append(self.reward(backbone, backbone.process.add_noise(x_0, eps, t), None, t, prompts))
        return torch.stack(scores).mean(0)


def time_of(process, level: float) -> Tensor:
    """The time () at which sigma is nearest to `level`."""
    if process.prediction == "flow":
        return torch.tensor(level)
    return (process.sigma(torch.arange(process.num_train_timesteps)) - level).abs().argmin()
