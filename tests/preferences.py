"""What tests of preference methods share: pairs and lists with given errors, and batches of random images."""

from functools import cache

import torch
from parts import T, move, tiny, trainer

from lit_align.algorithms.preference.preference import Errors
from lit_align.algorithms.preference.ranking import Ranked
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.rewards.reward import Reward


class Brightness(Reward):
    name, differentiable = "brightness", True

    def forward(self, images, prompts):
        return images.mean((1, 2, 3))


@cache
def still(family=StableDiffusion, scale=0.0):
    """A tiny policy with LoRA, built once per process, for tests that change nothing of it, nor what of it is trained.
    Its weights lie `scale` away from the reference's."""
    policy = tiny(family)
    move(policy, scale)
    return policy


def attached(method):
    """The method, attached to a Trainer in its training state without `fit`; `method.logged` collects what it logs."""
    method.trainer, method.logged = trainer(None), {}
    method.trainer.training = True
    method.log = lambda name, value, **kwargs: method.logged.update({name: float(value)})
    method.log_mean = lambda name, value, n: method.log(name, value)
    return method


def collecting(cls, **kwargs):
    """A method that makes its own pairs, ready to collect, its policy away from its reference."""
    return attached(cls(policy=still(scale=0.2), rollout=Sampler(2, 1.0), **kwargs))


def pair(win=0.10, lose=0.12, ref_win=0.101, ref_lose=0.119, **kwargs):
    """The fact sheet's fixed inputs: h_w = .001, h_l = -.001, D = .002."""
    return Errors(*(T([x], dtype=torch.float64) for x in (win, lose, ref_win, ref_lose)), **kwargs)


def at(x):
    """Errors whose gap is x."""
    return pair(0.0, x, 0.0, 0.0)


def logs(u_w, u_l):
    """Errors whose log-ratios, at beta 1, are u_w and u_l."""
    return pair(0.0, 0.0, u_w, u_l)


def ranked(h, scores, t=None):
    """A list whose improvements are h, without a reference where that suits: error = -h."""
    h = T([h], dtype=torch.float64)
    scores = T([scores], dtype=torch.float64)
    scores = scores[..., None] if scores.ndim == 2 else scores
    return Ranked(-h, torch.zeros_like(h), scores, T([500]) if t is None else t)


def batch(policy, n=3, seed=0, **more):
    """Random pairs, marked images and lists of four."""
    g = torch.Generator().manual_seed(seed)
    r = policy.resolution
    images = torch.rand(2, n, 3, r, r, generator=g)
    data = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "win": images[0], "lose": images[1]}
    data |= {"image": images[0], "label": T([1.0, 0.0, 1.0][:n])}
    data |= {"images": torch.rand(n, 4, 3, r, r, generator=g), "scores": torch.randint(3, (n, 4, 2), generator=g).float()}
    return data | more
