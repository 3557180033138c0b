"""Rewards of noisy samples at single denoising steps."""

from abc import abstractmethod

from torch import Tensor, nn

from lit_align.rewards.reward import Reward


class StepReward(nn.Module):
    """r(c, x_t, t): the reward of a noisy sample during sampling; higher is better.

    Attributes: `needs_x0` is True if it scores the policy's estimate of x_0, False if it scores the noisy latents;
    `truncated` counts the prompts so far whose end it did not read.
    """

    needs_x0: bool
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

    def __init__(self, reward: Reward):
        super().__init__()
        self.reward = reward

    def forward(self, policy, x_t, x_0, t, prompts):
        return self.reward(policy.decode(x_0), prompts).float()
