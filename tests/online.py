"""What tests of methods that learn from their own samples share: tiny methods, and batches written by hand."""

from unittest import mock

import torch
from parts import Darkness, T, alone, rollout, sgd, tiny

from lit_align.algorithms.forward_process.forward_process import NoisedBatch
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.algorithms.preference.spin import SPINDiffusion
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import Gaussian
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.step_reward import StepReward


def policy_gradient(cls, policy=None, **kwargs):
    """A policy-gradient method that draws two trajectories of three noisy steps for a prompt."""
    policy = policy or tiny()
    defaults = {"reward": Darkness(), "rollout": rollout(policy, 3), "samples_per_prompt": 2, "minibatch": 4, "optimizer": sgd()}
    return cls(policy=policy, **(defaults | kwargs))


def forward_process(cls, policy=None, steps=3, **kwargs):
    """A forward-process method on a flow that draws three samples for a prompt."""
    policy = policy or tiny(StableDiffusion3)
    defaults = {"reward": Darkness(), "rollout": Sampler(steps, 1.0), "samples_per_prompt": 3, "minibatch": 6, "optimizer": sgd()}
    return cls(policy=policy, **(defaults | kwargs))


def quiet(method):
    """Without logs."""
    mock.patch.object(method, "log_mean").start()
    return method


def step(delta, advantage, mean=0.0, old_mean=0.0, ref_mean=0.0, std=0.5, t=0.6, s=0.5):
    """A StepBatch of one step in one dimension; log rho = delta, which requires grad."""
    one = lambda x: torch.full((1, 1), x)
    gaussian = Gaussian(one(mean), one(std))
    log_prob = T([delta], requires_grad=True)
    rest = {"x_t": one(0.0), "x_s": one(0.0), "t": T([t]), "s": T([s]), "cond": {}}
    return StepBatch(gaussian, log_prob, torch.zeros(1), T([advantage]), **rest, reference=Gaussian(one(ref_mean), one(std)), old_mean=one(old_mean))


def compared(log_ratio, advantage, t=(500,)):
    """A StepBatch of steps in one dimension whose log p_theta / p_ref are given (N,)."""
    n = len(log_ratio)
    x_s = torch.zeros(n, 1)
    reference = Gaussian(torch.zeros(n, 1), torch.ones(n, 1))
    log_prob = log_ratio + reference.log_prob(x_s)
    return StepBatch(reference, log_prob, log_prob.detach(), advantage, x_s, x_s, T(t * n), T(t * n), {}, reference)


def noised_batch(method, pred, old, target, advantage, ref=None, t=0.6, x_0=0.2, eps=-0.7):
    """A NoisedBatch in one dimension; lists of numbers, of which pred requires grad."""
    column = lambda values: T(values).view(-1, 1)
    n = len(pred)
    pred, t = column(pred).requires_grad_(), torch.full((n,), t)
    x_0, eps = torch.full((n, 1), x_0), torch.full((n, 1), eps)
    x_t = method.policy.process.add_noise(x_0, eps, t)
    ref = column(ref) if ref else column(old)
    return NoisedBatch(x_0, x_t, t, column(target), pred, T(advantage), column(old), ref)


def online_preference(cls, **kwargs):
    """A method that learns from preferences between its own samples, outside a fit and without logs."""
    reward = {} if cls is SPINDiffusion else {"reward": Darkness()}
    method = cls(policy=tiny(), rollout=Sampler(2, 1.0), optimizer=sgd(1e-3), **(reward | kwargs))
    return alone(method)


class Mean(StepReward):
    """The mean of the noisy latents (or of the estimate), and a record of what was seen."""

    def __init__(self, needs_x0=False, scale=100.0):
        super().__init__()
        self.needs_x0, self.scale, self.seen = needs_x0, scale, []

    def forward(self, policy, x_t, x_0, t, prompts):
        assert len(prompts) == len(x_t)
        self.seen.append((x_t, x_0, t, list(prompts)))
        return self.scale * (x_0 if self.needs_x0 else x_t).mean((1, 2, 3))
