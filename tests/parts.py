"""What tests of methods share."""

import copy
import importlib
import inspect
import pkgutil
from collections import Counter
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from unittest import mock

import lightning as L
import pytest
import torch
from torch import nn

import lit_align.algorithms
from lit_align.diffusion.process import Flow
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, FlowSDE
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.policy import Policy
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.reward import Reward

T = torch.tensor


class Darkness(Reward):
    name, differentiable = "darkness", True

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, images, prompts):
        return self.scale * (1 - images.mean((1, 2, 3)))


class BlackBox(Reward):
    """Darkness without gradient, which records the prompts it scores."""

    name, differentiable = "black_box", False

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, images, texts):
        self.asked += list(texts)
        return Darkness()(images.detach().clone(), texts)


class Level(Reward):
    """The mean of the sample. It tilts a Gaussian N(m, d^2) in one dimension to N(m + lambda d^2, d^2)."""

    name, differentiable, videos = "level", True, True

    def forward(self, images, prompts):
        return images.flatten(1).mean(1)


def trainer(tmp_path, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **(quiet | {"max_epochs": 1} | kwargs))


def change(method):
    """What one epoch on two prompts adds to the policy's trained parameters."""
    before = torch.cat([p.detach().flatten() for p in trained(method.policy)])
    with TemporaryDirectory() as folder:
        trainer(folder).fit(method, prompts())
    return torch.cat([p.detach().flatten() for p in trained(method.policy)]) - before


def prompts(n=2, batches=1, **more):
    batch = {"prompt": [f"p{i}" for i in range(n)], "index": list(range(n)), "seed": list(range(n)), **more}
    return torch.utils.data.DataLoader([batch] * batches, batch_size=None)


def rollout(policy, steps=3):
    return Sampler(steps, 2.0, FlowSDE() if isinstance(policy, StableDiffusion3) else DDIM(1.0))


class Analytic(nn.Module):
    """The exact flow of data N(m, d^2), with a parameter added to its prediction: what a policy is to the sampler."""

    def __init__(self, m=1.5, d=0.5, process=None, shape=(1, 2, 2)):
        super().__init__()
        self.process, self.m, self.d, self.latent_shape = process or Flow(), m, d, shape
        self.bias, self.calls, self.device = nn.Parameter(torch.zeros(())), Counter(), torch.device("cpu")

    image_axes, reads = 3, ()
    keys = Policy.keys

    def condition(self, prompts, columns=None):
        return {"c": torch.zeros(len(prompts), 1)}

    count = Policy.count

    def denoise(self, x, t, cond, guidance_scale=1.0):
        a, s = self.process.coefficients(t, x)
        var = a**2 * self.d**2 + s**2
        eps = s / var * (x - a * self.m)
        x_0 = self.m + a * self.d**2 / var * (x - a * self.m)
        pred = (eps - x_0 if self.process.prediction == "flow" else eps) + self.bias * (1 + 0.1 * x)
        self.count(pred)
        return pred

    def branches(self, x, t, cond, null=None):
        return (self.denoise(x, t, cond),) * 2

    def guided(self, null, cond, w):
        return null + w * (cond - null)

    def decode(self, z):
        self.calls["decodes"] += len(z)
        return z


BUILT = {}  # tiny policies of this process, by family and adapter


def tiny(family=StableDiffusion, adapter=None):
    """A tiny policy with the same weights every time, those of the adapter too. It is a copy of one that is built once;
    the text encoders and the VAE, which nothing trains, are shared."""
    adapter = adapter or LoRA(rank=2)
    key = family, type(adapter), str(vars(adapter))
    if key not in BUILT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            BUILT[key] = family("tiny", adapter)
    policy = BUILT[key]
    return copy.deepcopy(policy, {id(part): part for part in policy.pipe.components.values() if part is not policy.denoiser})


def trained(module):
    """The parameters that training moves."""
    return [p for p in module.parameters() if p.requires_grad]


def move(module, scale=0.05, seed=0):
    """Adds noise to every trained parameter."""
    g = torch.Generator().manual_seed(seed)
    for p in trained(module):
        p.data += scale * torch.randn(p.shape, generator=g)


def sgd(lr=1.0):
    """An optimizer, as methods take it."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


@contextmanager
def spy(owner, name):
    """Inside, calls of `owner.name` are recorded and do their work: yields a Mock whose `results` are what they gave."""
    real, results = getattr(owner, name), []

    def call(*args, **kwargs):
        results.append(real(*args, **kwargs))
        return results[-1]

    with mock.patch.object(owner, name, side_effect=call) as seen:
        seen.results = results
        yield seen


def alone(method):
    """A method outside a fit: with a trainer that runs nothing, and without logs."""
    method.trainer = trainer(None)
    mock.patch.object(method, "log_mean").start()
    method.setup("fit")
    return method


def methods_of(base):
    """Every method of a family: the subclasses of `base` that have an equation, from all files of lit_align."""
    for module in pkgutil.walk_packages(lit_align.algorithms.__path__, "lit_align.algorithms."):
        importlib.import_module(module.name)
    found, left = [], [base]
    while left:
        left += (cls := left.pop()).__subclasses__()
        room, file = cls.__module__.split(".")[-2:]
        if cls.__module__.startswith("lit_align.") and file != room and not inspect.isabstract(cls):  # a room's base has its name
            found.append(cls)
    return sorted(set(found), key=lambda cls: cls.__name__)


by_name = {"ids": lambda value: getattr(value, "__name__", None)}
POLICIES = pytest.mark.parametrize(
    "family, adapter",
    [(family, adapter) for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3) for adapter in (LoRA(rank=2), Full())],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
ADAPTERS = pytest.mark.parametrize("adapter", [LoRA(rank=2), Full()], ids=["lora", "full"])
FAMILIES = pytest.mark.parametrize("family", [StableDiffusion, StableDiffusion3], ids=lambda c: c.__name__)
