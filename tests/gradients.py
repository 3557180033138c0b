"""What tests of reward-gradient methods share: a method with one step's gradient, and sampling written out by hand."""

import torch
from parts import Darkness, T, move, tiny, trained
from preferences import attached, still

from lit_align.algorithms.reward_gradient.refl import ReFL
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

BATCH = {"prompt": ["a red circle", "b"], "index": [0, 1], "seed": [0, 1]}
BATCH |= {"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(9))}  # read by InstructVideo


def fresh(family=StableDiffusion):
    """A policy that a test may change, away from its reference."""
    policy = tiny(family)
    move(policy)
    return policy


def make(cls, policy=None, steps=4, eta=0.0, **kwargs):
    """A method ready for `batch_loss`; its policy, by default a shared one, is away from its reference."""
    policy = policy or still(scale=0.05)
    defaults = {"min_step": 1} if cls is ReFL else {}
    rollout = Sampler(steps, 2.0, DDIM(eta))
    return attached(cls(policy=policy, rollout=rollout, **({"reward": Darkness()} | defaults | kwargs)))


def gradient(method, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(method.policy))])


def seeded(method, batch=BATCH):
    """Loss and gradient of one step, from a fixed seed."""
    torch.manual_seed(3)
    loss = method.batch_loss(batch)
    return loss.item(), gradient(method, loss)


class ByHand:
    """Sampling written again on diffusers' own scheduler, with guidance 2 by two calls of the network."""

    def __init__(self, method, texts=BATCH["prompt"]):
        self.policy = policy = method.policy
        self.scheduler, self.flow = policy.pipe.scheduler, isinstance(policy, StableDiffusion3)
        self.scheduler.set_timesteps(method.rollout.steps)
        self.cond, self.null = policy.condition(texts), policy.condition([""] * len(texts))

    def network(self, x, t, cond):
        if self.flow:
            return self.policy.denoiser(x, cond["text"], cond["pooled"], t.expand(len(x))).sample
        return self.policy.denoiser(x, t, cond["text"]).sample

    def guided(self, x, t):
        null = self.network(x, t, self.null)
        return null + 2 * (self.network(x, t, self.cond) - null)

    def image(self, x):
        vae = self.policy.pipe.vae
        z = x / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        return (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)

    def sample(self, x, keep, cut_x):
        """Where `keep` is False the prediction is constant, and with `cut_x` also the x_t it is made from."""
        for i, t in enumerate(self.scheduler.timesteps):
            x = x if keep[i] or not cut_x else x.detach()
            prediction = self.guided(x, t)
            x = self.scheduler.step(prediction if keep[i] else prediction.detach(), t, x).prev_sample
        return x


def noise(method):
    torch.manual_seed(3)
    return torch.randn(2, *method.policy.latent_shape)


def darkness(image):
    return 1 - image.mean((1, 2, 3))


def close(got, want):
    assert want.norm() > 0
    assert (got - want).norm() < 2e-3 * want.norm()


class Calls:
    """Counts the policy's network calls, and those with gradient."""

    def __init__(self, policy):
        self.all = self.graded = 0
        self.predict, policy.predict = policy.predict, self

    def __call__(self, *args):
        self.all += 1
        self.graded += torch.is_grad_enabled()
        return self.predict(*args)


class Contrast(Darkness):
    """Darkness for a prompt with a good word, its half with another."""

    def forward(self, images, texts):
        return super().forward(images, texts) * T([1.0 if p.startswith("Real. ") else 0.5 for p in texts])
