"""Rewards of single denoising steps."""

from abc import abstractmethod

from torch import Tensor, nn

from lit_align.rewards.reward import Reward


class StepReward(nn.Module):
    """r(c, x_t, t): how good a noisy sample is on its way; higher is better.

    Attributes: `needs_x0` says whether it looks at the policy's estimate of x_0 or at the noisy latents.
    """

    needs_x0: bool

    @abstractmethod
    def forward(self, policy, x_t: Tensor, x_0: Tensor | None, t: Tensor, prompts: list[str]) -> Tensor:
        """Scores of noisy latents x_t (B, C, h, w) at times t (B,), of which x_0 is the estimate: (B,).

        At the end of sampling x_t and x_0 are the same.
        """


class OneStep(StepReward):
    """A reward of images, given the decoded estimate of x_0: blind to how noisy the sample was.

    Args:
        reward: of images.
    """

    needs_x0 = True

    def __init__(self, reward: Reward):
        super().__init__()
        self.reward = reward

    def forward(self, policy, x_t, x_0, t, prompts):
        return self.reward(policy.decode(x_0), prompts).float()
