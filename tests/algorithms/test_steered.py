"""Steered: training-free methods under validate, test and predict."""

import pytest
import torch
from parts import Level, prompts, trainer

from lit_align.algorithms.steered import Steered
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Frozen
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.fk_steering import FKSteering

NOISY = DDIM(1.0)
SAMPLERS = [Sampler(3, 2.0, NOISY, [FKSteering(Level(), 2, 50.0)]), BestOfN(Level(), 3, Sampler(3, 2.0, NOISY))]


def steered(sampler, adapter=None):
    return Steered(policy=StableDiffusion("tiny", adapter or Frozen(), dtype="bfloat16"), sampler=sampler, rewards=[Level()])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_a_test_compares_it_with_plain_sampling_on_the_same_seeds(tmp_path, sampler):
    method, seen = steered(sampler), []
    t, step = trainer(tmp_path), method.test_step
    method.test_step = lambda *a, **k: seen.append(step(*a, **k)) or seen[-1]
    t.test(method, prompts(4), verbose=False)
    out = seen[0]
    plain = Sampler(3, 2.0, NOISY)(method.policy, out["prompt"], seeds=out["seed"]).x
    with torch.no_grad():
        torch.testing.assert_close(out["reference_image"], method.policy.decode(plain).float().cpu())
    gain = out["scores"]["level"] - out["reference_scores"]["level"]
    assert gain.mean() > 0 and (sampler.steering or (gain >= -1e-6).all())
    assert t.callback_metrics["test/reward/level"] == pytest.approx(out["scores"]["level"].mean().item())


def test_it_trains_nothing_and_keeps_no_copy(tmp_path):
    method = steered(SAMPLERS[1])
    trainer(tmp_path).test(method, prompts(2), verbose=False)
    assert not any(p.requires_grad for p in method.parameters())
    assert not method.policy.has_reference and method.policy.denoiser.dtype == torch.bfloat16
    assert not hasattr(method, "caption_dropout") and not hasattr(method, "optimizer")


def test_it_says_what_is_missing():
    with pytest.raises(ValueError, match="the sampler has no steering"):
        steered(Sampler(3))
    with pytest.raises(ValueError, match="set policy.adapter to Frozen"):
        Steered(policy=StableDiffusion("tiny"), sampler=SAMPLERS[1])
