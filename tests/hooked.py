"""What tests of training-free methods share."""

import torch
from parts import move, tiny

from lit_align.diffusion.hook import PLAIN
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Frozen
from lit_align.policies.stable_diffusion import StableDiffusion

PROMPTS, SEEDS = ["a red circle", "b"], [3, 4]
BUILT = {}


def still(family=StableDiffusion, shift=0.0):
    """A shared frozen policy, whose weights are moved by `shift`."""
    if (family, shift) not in BUILT:
        policy = tiny(family, Frozen())
        policy.denoiser.requires_grad_(True)
        move(policy.denoiser, shift)
        policy.denoiser.requires_grad_(False)
        BUILT[family, shift] = policy
    return BUILT[family, shift]


def draw(policy, *steering, steps=4, w=3.0, eta=0.0, prompts=PROMPTS, seeds=SEEDS, **kwargs):
    """Latents drawn with these hooks."""
    return Sampler(steps, w, DDIM(eta), list(steering))(policy, prompts, seeds=seeds, **kwargs).x


def at(policy, i=1, steps=4, n=2, seed=0):
    """x_t (n, ...), t and s of step i."""
    t, s = policy.process.timesteps(steps)[[i, i + 1]][:, None].expand(2, n)
    return torch.randn(n, *policy.latent_shape, generator=torch.Generator().manual_seed(seed)), t, s


def estimates(policy, x, t, s, *steering, w=3.0, steps=4, transition=None, prompts=PROMPTS):
    """x_0-hat and eps at x_t under these hooks."""
    sampler = Sampler(steps, w, transition or DDIM(0.0), list(steering))
    return sampler.gaussian(policy, x, t, s, policy.condition(prompts))[1:]


def started(policy, hook, x, t, prompts=PROMPTS, steps=4, i=0, w=3.0, s=None, **columns):
    """A state at x_t of step i, with a hook that has seen the start of the run, and the sampler."""
    state = State(x, policy.condition(prompts), prompts, columns, steps=steps, i=i, t=t, s=s, hooks=(hook, PLAIN))
    hook.on_init(policy, state)
    return state, Sampler(steps, w, DDIM(0.0), [hook])


def noise(policy, n=2, seeds=SEEDS):
    """The initial noise that these seeds give."""
    return torch.stack([torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds[:n]])


def by_diffusers(pipeline, policy, prompts=PROMPTS, steps=4, w=3.0, **kwargs):
    """Latents drawn by a diffusers pipeline with the policy's parts, from the same noise and by DDIM."""
    from diffusers import DDIMScheduler

    parts = {k: v for k, v in policy.pipe.components.items() if k in pipeline.__init__.__code__.co_varnames}
    parts["scheduler"] = DDIMScheduler.from_config(policy.pipe.scheduler.config) if "scheduler" in parts else None
    pipe = pipeline(**parts, **({"requires_safety_checker": False} if "safety_checker" in parts else {}))
    pipe.set_progress_bar_config(disable=True)
    x = noise(policy, len(prompts))
    out = pipe(list(prompts), num_inference_steps=steps, guidance_scale=w, latents=x, output_type="latent", **kwargs)
    return out.images
