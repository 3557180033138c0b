"""DPS: each step is moved along the gradient of a reward."""

from typing import Literal

from lit_align.diffusion.transition import Gaussian
from lit_align.rewards.reward import Reward
from lit_align.steering.reward_guidance import RewardGuidance, guidance_size, normalised


class DPS(RewardGuidance):
    """Diffusion posterior sampling (Chung et al., ICLR 2023, arXiv 2209.14687), algorithm 1: x_s <- x_s + zeta grad_x_t
    r(c, x_0-hat(x_t)). A measurement y = A(x_0) is the reward -||y - A(x_0)||, not squared.

    The shift is part of the step's distribution, so that a recorded step has the likelihood it was drawn with.

    Args:
        reward: r, differentiable.
        scale: zeta.
        size: `absolute`, or `guidance`, where each gradient is given the size of guidance's correction first (FreeDoM,
            arXiv 2303.09833), so that scale does not depend on the reward's unit.
        through_denoiser: false takes the network's output as a constant, which saves its backward pass and is weaker.
    """

    def __init__(
        self,
        reward: Reward,
        scale: float = 1.0,
        size: Literal["absolute", "guidance"] = "absolute",
        through_denoiser: bool = True,
    ):
        super().__init__(reward)
        self.scale, self.size, self.through_denoiser = scale, size, through_denoiser

    def check(self, policy, sampler):
        super().check(policy, sampler)
        if self.size == "guidance" and sampler.guidance_scale == 1:
            raise ValueError(
                "DPS: size guidance measures a step by classifier-free guidance, and guidance_scale is 1: set another "
                "scale, or size absolute."
            )

    def nfe(self, inside, steps):
        return inside * (2 if self.through_denoiser else 1)

    def predict(self, policy, state, sampler):
        gradient = self.gradient(policy, state, sampler)
        if self.size == "guidance":
            gradient = normalised(gradient, guidance_size(state))
        state.extras[self] = self.scale * gradient

    def transition(self, policy, state, sampler):
        gaussian = super().transition(policy, state, sampler)
        return Gaussian(gaussian.mean + state.extras[self], gaussian.std)
