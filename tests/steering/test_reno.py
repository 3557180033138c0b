import math

import pytest
import torch
from hooked import PROMPTS, SEEDS, noise, still
from parts import Analytic, BlackBox, Darkness, Level, move, tiny

from lit_align.diffusion.process import Process
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.best_of_n import BestOfN
from lit_align.steering.dps import DPS
from lit_align.steering.reno import ReNO, norm_penalty

SD = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
      "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip


def test_the_penalty_is_the_norms_density_and_smallest_on_the_sphere():
    """-log p(||z||) of d normal numbers is r^2 / 2 - (d - 1) log r + a constant; its minimum is at r^2 = d - 1."""
    d = 50
    z = torch.randn(3, 2, 25, dtype=torch.double)
    scaled = lambda radius: z * radius / z.flatten(1).norm(dim=1).view(-1, 1, 1)
    chi = lambda r: torch.distributions.Chi2(torch.tensor(float(d))).log_prob(torch.tensor(r * r)) + math.log(2 * r)
    for r in (5.0, 7.0, 9.0):
        got = norm_penalty(scaled(r)) - norm_penalty(scaled(7.0))
        torch.testing.assert_close(got, (chi(7.0) - chi(r)).expand(3), atol=1e-3, rtol=1e-3)
    best = norm_penalty(scaled(math.sqrt(d - 1)))
    assert (best < norm_penalty(scaled(math.sqrt(d - 1) * 1.02))).all() and (best < norm_penalty(scaled(math.sqrt(d - 1) * 0.98))).all()
    big = torch.randn(1, 65536, dtype=torch.float16)
    assert norm_penalty(big).isfinite().all()  # ||z||^2 and (d - 1) log ||z|| leave float16's range


def by_hand(policy, steps, iterations, lr=5.0, lam=0.01, clip=0.1):
    """The paper's loop with torch's SGD, one sample at a time; x_0 of the best iterate."""
    found = []
    for seed, prompt in zip(SEEDS, PROMPTS):
        z = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        sgd, best = torch.optim.SGD([z], lr, 0.9, nesterov=True), (-math.inf, None)
        for _ in range(iterations):
            sgd.zero_grad()
            x, grid = z, policy.process.timesteps(steps)
            for t, s in zip(grid[:-1], grid[1:]):
                pred = policy.denoise(x, t.expand(1), policy.condition([prompt]))
                x0, eps = policy.process.to_x0(pred, x, t.expand(1)), policy.process.to_eps(pred, x, t.expand(1))
                x = policy.process.add_noise(x0, eps, s.expand(1))
            reward = Darkness(100.0)(policy.decode(x), [prompt])
            best = max(best, (reward.item(), x.detach()), key=lambda pair: pair[0])
            (-reward.sum() + lam * norm_penalty(z).sum()).backward()
            torch.nn.utils.clip_grad_norm_([z], clip)
            sgd.step()
        found.append(best[1])
    return torch.cat(found)


@pytest.mark.parametrize("family,steps", [(type(still()), 1), (StableDiffusion3, 2)], ids=["sd", "sd3"])
def test_the_papers_loop(family, steps):
    policy = still(family)
    got = ReNO(Darkness(100.0), 4, sampler=Sampler(steps, 1.0))(policy, PROMPTS, seeds=SEEDS)
    torch.testing.assert_close(got.x, by_hand(policy, steps, 4), atol=2e-3, rtol=1e-3)


def test_one_iteration_is_plain_sampling_to_the_last_bit():
    for sampler in (Sampler(1, 1.0), Sampler(3, 2.0, DDIM(1.0))):
        plain = sampler(still(), PROMPTS, seeds=SEEDS).x
        assert torch.equal(ReNO(Darkness(), 1, sampler=sampler)(still(), PROMPTS, seeds=SEEDS).x, plain)
        again = ReNO(Darkness(), 3, lr=0.0, sampler=sampler)(still(), PROMPTS, seeds=SEEDS)
        torch.testing.assert_close(again.x, plain)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_it_raises_the_reward_on_the_sphere_and_the_sign_matters(eta):
    """The steps' own noise stays, so that the objective is a function of x_T alone."""
    policy = Analytic(process=Process.from_scheduler(SD), shape=(1, 8, 8))
    level = lambda reward, n: ReNO(reward, n, sampler=Sampler(3, 1.0, DDIM(eta)))(policy, [""] * 4, seeds=[0, 1, 2, 3])
    plain, better = level(Level(), 1), level(Level(), 12)
    assert (better.x.flatten(1).mean(1) > plain.x.flatten(1).mean(1) + 0.005).all()
    radius = next(iter(better.extras.values()))["radius"]
    assert ((radius - 1).abs() < 0.35).all()


def test_a_sample_depends_on_its_seed_alone_and_repeats():
    make = lambda: ReNO(Darkness(100.0), 3, sampler=Sampler(2, 2.0, DDIM(1.0)))
    together = make()(still(), PROMPTS, seeds=SEEDS).x
    assert torch.equal(make()(still(), PROMPTS, seeds=SEEDS).x, together)
    torch.testing.assert_close(make()(still(), PROMPTS[:1], seeds=SEEDS[:1]).x, together[:1], atol=1e-4, rtol=1e-3)


def test_costs_and_the_budget():
    sampler = Sampler(2, 1.0)
    state = ReNO(Darkness(), 3, sampler=sampler)(still(), PROMPTS, seeds=SEEDS)
    assert (state.calls["nfe_forward"], state.calls["nfe_backward"]) == (2 * (2 + 2) + 2, 2 * 2)  # each gradient predicts twice
    assert state.calls["decodes"] == 3 and state.calls["reward_calls"] == 3
    state = ReNO(Darkness(), 50, sampler=sampler, max_nfe=20)(still(), PROMPTS, seeds=SEEDS)
    assert 14 <= state.calls["nfe_forward"] + state.calls["nfe_backward"] <= 20


def test_it_goes_around_hooks_and_other_samplers_go_around_it():
    policy = tiny()
    move(policy)
    inside = Sampler(2, 2.0, steering=[DPS(Darkness(10.0), 1.0)])
    state = BestOfN(Darkness(), 2, ReNO(Darkness(100.0), 3, sampler=inside))(policy, PROMPTS, seeds=SEEDS)
    plain = BestOfN(Darkness(), 2, inside)(policy, PROMPTS, seeds=SEEDS)
    dark = lambda state: Darkness()(policy.decode(state.x), PROMPTS)
    assert (dark(state) > dark(plain)).all() and all(p.grad is None for p in policy.parameters())
    assert torch.equal(noise(policy), noise(policy))


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="ReNO needs the reward's gradient and black_box has none"):
        ReNO(BlackBox())(still(), PROMPTS)
    with pytest.raises(ValueError, match="BestOfN selects among finished ones: put BestOfN around ReNO"):
        ReNO(Darkness(), sampler=BestOfN(Darkness(), 2))
    with pytest.raises(ValueError, match="which this sampler's first step replaces"):
        ReNO(Darkness(), sampler=Sampler(3, 1.0, DDIM(1.0)))(still(StableDiffusion3), PROMPTS)
    with pytest.raises(ValueError, match="iterations is 0"):
        ReNO(Darkness(), 0)
    with torch.inference_mode(), pytest.raises(ValueError, match="set --trainer.inference_mode false"):
        ReNO(Darkness()).check(still())
