"""What tests of reward-weighted methods share: methods with rewards, and collections with given scores."""

import torch
from parts import Darkness
from preferences import attached

from lit_align.algorithms.reward_weighted.max_min import MaxMin
from lit_align.algorithms.reward_weighted.rewards_in_context import RewardsInContext
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.rewards.reward import Reward

SEVERAL = {MaxMin: "annotators", RewardsInContext: "conditions"}


class Redness(Reward):
    name, differentiable = "redness", True

    def forward(self, images, prompts):
        return images[:, 0].mean((1, 2))


def make(cls, policy=None, **kwargs):
    rewards = {"dark": Darkness(), "red": Redness()}
    reward = {SEVERAL[cls]: rewards} if cls in SEVERAL else {"reward": Darkness()}
    defaults = {"rollout": Sampler(2, 1.0), "sampler": Sampler(2, 1.0), "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}
    return cls(policy=policy or StableDiffusion("tiny", LoRA(rank=2)), **(reward | defaults | kwargs))


def alone(cls, **kwargs):
    """A method outside fit, in a trainer that trains; what it logs by mean is in `logged`."""
    return attached(make(cls, **kwargs))


def scored(method, score):
    """Lets the method draw latents 0, 1, 2 ... (constant images) in the order they are drawn, and score them so."""
    drawn = iter(range(10_000))
    method.draw_latents = lambda rows: torch.stack([torch.full(method.policy.latent_shape, float(next(drawn))) for _ in rows["prompt"]])
    method.policy.decode, method.reward.forward = lambda z: z, lambda z, p: score[z[:, 0, 0, 0].long()]
    return method
