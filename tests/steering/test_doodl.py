import pytest
import torch
from chain import Chain
from hooked import PROMPTS, SEEDS, noise, still
from parts import Analytic, BlackBox, Darkness, Level

from lit_align.diffusion.inversion import Predictor, ddim_inversion
from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.cfgpp import CFGPlusPlus
from lit_align.steering.doodl import DOODL
from lit_align.steering.dps import DPS
from lit_align.steering.edict import EDICT
from lit_align.steering.pag import PAG

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip


def predictor(policy, steps=4, w=3.0, x=None, steering=()):
    x = noise(policy) if x is None else x
    rows = State(x, policy.condition(PROMPTS[: len(x)]), PROMPTS[: len(x)])
    return Predictor(Sampler(steps, w, steering=list(steering)), policy, rows)


@pytest.mark.parametrize("family", [type(still()), StableDiffusion3], ids=["vp", "flow"])
@pytest.mark.parametrize("mix", [0.93, 0.7])
def test_edict_is_inverted_exactly(family, mix):
    policy = still(family)
    predict = predictor(policy, 6, steering=[PAG(1.0, ["mid"] if family is not StableDiffusion3 else ["blocks.0"])])
    chain, x = EDICT(predict, mix), noise(policy)
    with torch.no_grad():
        after = chain.sample(x)
        for got in chain.invert(*after):
            torch.testing.assert_close(got, x, atol=1e-3, rtol=1e-3)
    assert (after[0] - x).abs().max() > 0.1


def test_edict_written_out_on_sds_schedule():
    policy, p = still(), 0.93
    a, grid = torch.as_tensor(policy.pipe.scheduler.alphas_cumprod), policy.process.timesteps(3).tolist()
    cond, null = policy.condition(PROMPTS), policy.condition(["", ""])

    def step(x, other, t, s):
        u = policy.denoiser(other, t, null["text"]).sample
        e = u + 3 * (policy.denoiser(other, t, cond["text"]).sample - u)
        return a[s].sqrt() * (x - (1 - a[t]).sqrt() * e) / a[t].sqrt() + (1 - a[s]).sqrt() * e

    x = y = noise(policy)
    for i in range(3):
        if i % 2 == 0:
            x = step(x, y, grid[i], grid[i + 1])
            y = step(y, x, grid[i], grid[i + 1])
        else:
            y = step(y, x, grid[i], grid[i + 1])
            x = step(x, y, grid[i], grid[i + 1])
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    with torch.no_grad():
        got = EDICT(predictor(policy, 3)).sample(noise(policy))
    torch.testing.assert_close(got, (x, y), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("family", [type(still()), StableDiffusion3], ids=["vp", "flow"])
def test_its_gradient_is_that_of_the_unrolled_chain(family):
    policy = still(family)
    chain, z = EDICT(predictor(policy, 3)), noise(policy)
    leaf, of = z.clone().requires_grad_(), torch.randn(2, *z.shape)
    x, y = chain.sample(leaf)
    (got,) = torch.autograd.grad((of[0] * x + of[1] * y).sum(), leaf)
    again = z.clone().requires_grad_()
    x, y = again, again
    for i in range(3):
        x, y = chain.step(x, y, i)
    (want,) = torch.autograd.grad((of[0] * x + of[1] * y).sum(), again)
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-2)
    assert want.abs().max() > 0.1


@pytest.mark.parametrize("policy", [Analytic(), Analytic(process=Process.from_scheduler(SD))], ids=["flow", "vp"])
def test_ddim_inversion_is_exact_at_its_fixed_point(policy):
    sampler, x = Sampler(20, 1.0), torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x_0 = sampler(policy, [""] * 3, x=x).x
    predict = Predictor(sampler, policy, State(x, policy.condition([""] * 3), [""] * 3))
    with torch.no_grad():
        errors = [(ddim_inversion(predict, x_0, n) - x).abs().max().item() for n in (1, 3, 40)]
    assert errors[0] > errors[1] > 10 * errors[2] and errors[2] < 1e-3


def test_ddim_inversion_of_the_linear_chain():
    """The known chain of tests/chain.py, whose model predicts x_0: each step is inverted to its own x_t."""
    policy = Chain(8)
    sampler, x = Sampler(8, 1.0), torch.linspace(-2, 2, 5)[:, None]
    x_0 = sampler(policy, [""] * 5, x=x).x
    predict = Predictor(sampler, policy, State(x, policy.condition([""] * 5), [""] * 5))
    with torch.no_grad():
        torch.testing.assert_close(ddim_inversion(predict, x_0, 60), x, atol=1e-3, rtol=1e-3)


def test_an_update_is_the_releases():
    """Clipped gradient of both samples over 4, momentum, and back on the sphere; the best sample is returned."""
    policy, scale = still(), 0.5
    method = DOODL(Darkness(100.0), 3, scale=scale, clip=2e-3, perturbation=0.0, sampler=Sampler(2, 3.0))
    got = method(policy, PROMPTS, seeds=SEEDS)
    x = noise(policy)
    norm, velocity, tried = x.flatten(1).norm(dim=1).view(-1, 1, 1, 1), 0, []
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        chain = EDICT(predictor(policy, 2))
        a, b = leaf, leaf
        for i in range(2):
            a, b = chain.step(a, b, i)
        rewards = [Darkness(100.0)(policy.decode(v), PROMPTS) for v in (a, b)]
        tried.append((rewards[0].detach(), a.detach()))
        (g,) = torch.autograd.grad(sum(rewards).sum(), leaf)
        velocity = 0.9 * velocity + (scale * g / 4).clamp(-2e-3, 2e-3)
        x = x + velocity
        x = x * norm / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    rewards = torch.stack([r for r, _ in tried])
    assert (rewards[-1] > rewards[0]).all()
    want = torch.stack([v for _, v in tried])[rewards.argmax(0), torch.arange(2)]
    torch.testing.assert_close(got.x, want, atol=2e-3, rtol=1e-2)
    radius = next(iter(got.extras.values()))["radius"]
    torch.testing.assert_close(radius, noise(policy).flatten(1).square().mean(1).sqrt())


def test_it_raises_the_reward_and_the_other_sign_lowers_it():
    policy = Analytic(process=Process.from_scheduler(SD), shape=(1, 8, 8))
    level = lambda scale, n: DOODL(Level(), n, scale=scale, clip=0.1, sampler=Sampler(4, 1.0))(policy, [""] * 3, seeds=[0, 1, 2])
    best, plain = level(10.0, 8).x.flatten(1).mean(1), level(10.0, 1).x.flatten(1).mean(1)
    assert (best > plain + 0.01).all() and torch.equal(level(-10.0, 8).x.flatten(1).mean(1), plain)


def test_costs_and_what_it_cannot_do():
    state = DOODL(Darkness(), 2, sampler=Sampler(2, 1.0))(still(), PROMPTS, seeds=SEEDS)
    assert state.calls["nfe_forward"] == 2 * 2 + 2 * 4 + 2 * 2 and state.calls["nfe_backward"] == 4
    with pytest.raises(ValueError, match="DOODL inverts steps, and this sampler's have noise"):
        DOODL(Darkness(), sampler=Sampler(2, 1.0, DDIM(1.0)))(still(), PROMPTS)
    with pytest.raises(ValueError, match="DOODL inverts what a sampler predicts, and DPS does more: leave DPS out"):
        DOODL(Darkness(), sampler=Sampler(2, 1.0, steering=[DPS(Darkness())]))(still(), PROMPTS)
    with pytest.raises(ValueError, match="and CFGPlusPlus does more"):
        DOODL(Darkness(), sampler=Sampler(2, 0.6, steering=[CFGPlusPlus()]))(still(), PROMPTS)
    with pytest.raises(ValueError, match="DOODL needs the reward's gradient"):
        DOODL(BlackBox())(still(), PROMPTS)
