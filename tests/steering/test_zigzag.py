import pytest
import torch
from hooked import PROMPTS, SEEDS, draw, still
from parts import FAMILIES, Analytic

from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import randn_like
from lit_align.diffusion.transition import DDIM
from lit_align.steering.zigzag import ZSampling

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip


class Constant(Analytic):
    """Predicts the same noise everywhere."""

    def denoise(self, x, t, cond, guidance_scale=1.0):
        self.calls["nfe_forward"] += len(x)
        return torch.full_like(x, 0.3)

    def null(self, n):
        return {}

    def null_of(self, cond):
        return {}


@pytest.mark.parametrize("process", [None, Process.from_scheduler(SD)], ids=["flow", "vp"])
def test_with_a_constant_prediction_it_is_ddim_and_50_steps_take_148_evaluations(process):
    plain, zigzag = (Sampler(50, 1.0, steering=hooks)(Constant(process=process), [""] * 2, seeds=SEEDS) for hooks in ([], [ZSampling()]))
    torch.testing.assert_close(zigzag.x, plain.x, atol=1e-5, rtol=1e-5)
    assert plain.calls["nfe_forward"] == 50 and zigzag.calls["nfe_forward"] == 50 + 2 * 49 == 148


def by_hand(policy, repeats, zigzags, legacy=False):
    """SD's schedule written out: zig with guidance 3, zag with the empty prompt, zig."""
    a = torch.as_tensor(policy.pipe.scheduler.alphas_cumprod)
    grid, cond, null = policy.process.timesteps(4).tolist(), policy.condition(PROMPTS), policy.condition(["", ""])
    x = randn_like(torch.empty(2, *policy.latent_shape), [torch.Generator().manual_seed(s) for s in SEEDS])
    eps = lambda x, t, c: policy.denoiser(x, t, c["text"]).sample

    def zig(x, t, s):
        u = eps(x, t, null)
        e = u + 3 * (eps(x, t, cond) - u)
        return a[s].sqrt() * (x - (1 - a[t]).sqrt() * e) / a[t].sqrt() + (1 - a[s]).sqrt() * e

    for i in range(4):
        t, s = grid[i], grid[i + 1]
        y = zig(x, t, s)
        for _ in range(repeats if i < zigzags else 0):
            up, low = (t, s) if not legacy else (s, grid[i + 2])
            e = eps(y, t, null)
            y = zig((a[up] / a[low]).sqrt() * (y - (1 - a[low]).sqrt() * e) + (1 - a[up]).sqrt() * e, t, s)
        x = y
    return x


@pytest.mark.parametrize("kwargs,zigzags", [({}, 3), ({"repeats": 2}, 3), ({"end": 0.5}, 2), ({"legacy_offset": True}, 3), ({"end": 0.0}, 0)])
def test_the_release_written_out(kwargs, zigzags):
    policy = still()
    want = by_hand(policy, kwargs.get("repeats", 1), zigzags, "legacy_offset" in kwargs)
    torch.testing.assert_close(draw(policy, ZSampling(**kwargs)), want, atol=2e-4, rtol=1e-3)


@FAMILIES
def test_without_steps_it_changes_nothing_to_the_last_bit(family):
    policy = still(family)
    assert torch.equal(draw(policy, ZSampling(end=0.0)), draw(policy))
    assert not torch.allclose(draw(policy, ZSampling()), draw(policy), atol=1e-2)


def test_guidance_on_the_way_back():
    policy = still()
    assert not torch.allclose(draw(policy, ZSampling(inversion_scale=3.0)), draw(policy, ZSampling()), atol=1e-3)


def test_noisy_steps_are_refused():
    with pytest.raises(ValueError, match="ZSampling inverts steps, and this sampler's have noise"):
        Sampler(4, 3.0, DDIM(0.5), [ZSampling()])(still(), ["a"])
