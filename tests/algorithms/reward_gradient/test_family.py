"""What every reward-gradient method has in common. The methods are found by walking the subclasses: a new file is
tested unasked."""

import lightning as L
import pytest
import torch
from gradients import BATCH, Contrast, darkness, fresh, make, seeded
from parts import POLICIES, Darkness, T, by_name, methods_of, prompts, rollout, trained, trainer

from lit_align.algorithms.noise.noise_hypernetwork import NoiseHypernetwork
from lit_align.algorithms.reward_gradient.alignprop import AlignProp
from lit_align.algorithms.reward_gradient.drtune import DRTune
from lit_align.algorithms.reward_gradient.elegant import ELEGANT
from lit_align.algorithms.reward_gradient.refl import ReFL
from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.algorithms.reward_gradient.seiko import SEIKO
from lit_align.algorithms.reward_gradient.srpo import SRPO
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.rewards.jpeg import JPEGCompressibility

METHODS = [cls for cls in methods_of(RewardGradient) if cls is not NoiseHypernetwork]  # which trains no policy
OPTIONS = {
    AlignProp: {"truncation": "trajectory"},  # a draw of single steps may keep none
    ReFL: {"min_step": 1},
    DRTune: {"K": 2},
    ELEGANT: {"rollouts": 2, "alpha": 1e-6},
    SEIKO: {"truncation": "trajectory", "updates": 1, "minibatch": 2, "accumulate": 1, "epochs": 2, "kl_weight": 0.0},
}
options = lambda cls: OPTIONS.get(cls, {})


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_a_small_step_down_the_loss_raises_the_reward_and_one_up_lowers_it(cls):
    """On the same noise; SEIKO's reward is its surrogate, SRPO's the difference that its control words make."""
    contrast = {"reward": Contrast(), "good_words": ("Real",), "bad_words": ("Oil",)} if cls is SRPO else {}
    method = make(cls, fresh(), eta=1.0, **options(cls), **contrast)
    start, (_, g) = [p.detach().clone() for p in trained(method.policy)], seeded(method)
    found = []
    for step in (-0.1, 0.0, 0.1):
        for p, old, d in zip(trained(method.policy), start, g.split([p.numel() for p in start]), strict=True):
            p.data = old + step * (d / g.norm()).view_as(p)
        seeded(method)
        found.append(method.logged["train/surrogate" if cls is SEIKO else "train/reward"])
    assert found[0] > found[1] > found[2]


@POLICIES
@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_a_step_moves_what_is_trained_and_nothing_else(tmp_path, cls, family, adapter):
    policy = family("tiny", adapter)
    optimizer = lambda p: torch.optim.AdamW(p, lr=1e-3)
    method = cls(policy=policy, reward=Darkness(), rollout=rollout(policy, 2), optimizer=optimizer, **options(cls))
    parts = [policy.denoiser, policy.pipe.vae, *policy._encoders()]
    everything = {id(p): (p, p.detach().clone(), p.requires_grad) for part in parts for p in part.parameters()}
    t, batches = trainer(tmp_path), 2 if cls is SEIKO else 1
    t.fit(method, prompts(2, batches, image=BATCH["image"]))
    assert t.global_step == batches and "train/reward" in t.callback_metrics
    moved = {flag: [not torch.equal(p, old) for p, old, f in everything.values() if f == flag] for flag in (True, False)}
    assert any(moved[True]) and not any(moved[False])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls", [c for c in METHODS if c not in (ELEGANT, SEIKO)], **by_name)  # these have their own
def test_the_reward_rises(tmp_path, cls, seed):
    L.seed_everything(seed, verbose=False)
    policy, optimizer = StableDiffusion("tiny", LoRA(rank=4)), lambda p: torch.optim.AdamW(p, lr=1e-2)
    method = cls(policy=policy, reward=Darkness(), rollout=Sampler(3, 1.0), optimizer=optimizer, **options(cls))

    @torch.no_grad()
    def evaluate():
        return darkness(policy.decode(Sampler(3, 1.0)(policy, ["p0", "p1"] * 12, seeds=list(range(100, 124))).x))

    before = evaluate()
    trainer(tmp_path).fit(method, prompts(2, 15, image=BATCH["image"]))
    gain = evaluate() - before
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


@pytest.mark.parametrize("cls", [c for c in METHODS if c is not SEIKO], **by_name)  # which needs no gradient
def test_a_reward_without_gradient_is_refused(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} needs the reward's gradient and compressibility has none"):
        make(cls, reward=JPEGCompressibility(), **options(cls))


class Broken(Darkness):
    def forward(self, images, prompts):
        return images.mean((1, 2, 3)) * T([float("nan") if p.endswith("circle") else 1.0 for p in prompts])


@pytest.mark.parametrize("cls", METHODS, **by_name)
def test_a_reward_that_is_not_finite_names_its_prompt(cls):
    method = make(cls, eta=1.0, reward=Broken(), **options(cls))
    with pytest.raises(FloatingPointError, match="a red circle"):
        method.collect(BATCH) if cls is SEIKO else method.batch_loss(BATCH)
