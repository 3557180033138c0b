import pytest
import torch
from mixture import Mixture, tilted_mixture
from parts import Analytic, BlackBox, Level

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.steering.das import DAS


class All(DAS):
    """Keeps every particle."""

    def keep(self, state, score):
        pass


class Nothing(Level):
    def forward(self, images, prompts):
        return 0 * super().forward(images, prompts)


def bell():
    return Analytic(0.5, 0.2, shape=(1, 1, 1))


def test_lambda_reaches_one_at_87_percent_of_any_run():
    hook = DAS(Level())
    assert hook.temper(86, 100) < 1 == hook.temper(87, 100) == hook.temper(100, 100) and hook.temper(0, 100) == 0
    assert hook.temper(13, 15) < 1 == hook.temper(14, 15) and hook.temper(50, 100) == pytest.approx(1.008**50 - 1)
    assert hook.temper(10, 20) == hook.temper(50, 100)


def test_without_reward_one_particle_is_a_plain_sample_to_the_last_bit():
    sampler, seeds = Sampler(10, 1.0, DDIM(1.0), [DAS(Nothing(), 1)]), [3, 4]
    want = sampler.plain()(bell(), ["x"] * 2, seeds=seeds).x
    assert torch.equal(sampler(bell(), ["x"] * 2, seeds=seeds).x, want)


def test_weights_are_those_of_importance_sampling():
    """Each step's p(x_s | x_t) exp(V(x_s) - V(x_t)) / q(x_s | x_t), with both densities and the gradient written out."""
    alpha, policy, seen = 0.3, bell(), []

    class Noted(All):
        def weigh(self, state, twist):
            super().weigh(state, twist)
            seen.append((state.x.clone(), state.extras[self]["logw"].clone(), state.i))

    hook = Noted(Level(), 5, alpha, gamma=0.02, ess=0.0)  # never resampled
    Sampler(8, 1.0, DDIM(1.0), [hook])(policy, ["x"] * 2, seeds=[0, 1])
    grid, log_w, v_before = policy.process.timesteps(8), torch.zeros(10), torch.zeros(10)
    for k, (x, got, i) in enumerate(seen):
        last = k == len(seen) - 1
        if not last:
            t, s = grid[i].expand(10), grid[i + 1].expand(10)
            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                pred = policy.denoise(leaf, t, {})
                x_0 = policy.process.to_x0(pred, leaf, t)
                (g,) = torch.autograd.grad(x_0.sum(), leaf)
            x_0 = x_0.detach()
            v = hook.temper(i, 8) * x_0.flatten() / alpha
        else:
            v = x.flatten() / alpha
        log_w = log_w + v - v_before
        torch.testing.assert_close(got, log_w, atol=1e-4, rtol=1e-4)
        if last:
            break
        v_before = v
        p = DDIM(1.0)(policy.process, x, x_0, policy.process.to_eps(pred.detach(), x, t), t, s)
        shift = p.std**2 * hook.temper(i + 1, 8) * g / alpha
        if p.std.max() > 0:
            normal = torch.distributions.Normal
            x_s = seen[k + 1][0]
            log_w = log_w + (normal(p.mean, p.std).log_prob(x_s) - normal(p.mean + shift, p.std).log_prob(x_s)).flatten()
    assert len(seen) == 9


def test_many_particles_follow_the_tilted_mixture():
    policy, alpha, k, groups = Mixture(), 1 / 1.5, 256, 8
    hook = All(Level(), k, alpha)
    torch.manual_seed(0)
    state = Sampler(40, 1.0, DDIM(1.0), [hook], minibatch=k * groups)(policy, ["x"] * groups)
    x, w = state.x.view(groups, k), state.extras[hook]["logw"].view(groups, k).softmax(1)
    mean, above = tilted_mixture(policy, 1 / alpha)
    assert (w * x).sum(1).mean().item() == pytest.approx(mean, abs=0.06)
    assert (w * (x > 0)).sum(1).mean().item() == pytest.approx(above, abs=0.04)


def test_a_particle_keeps_its_own_gradient_and_value_when_it_is_resampled():
    """The release left both behind: after resampling, force and V are those of the particle's own x."""
    alpha, ok = 0.05, []

    class Square(Level):
        def forward(self, images, prompts):
            return -(super().forward(images, prompts) - 0.5).square()

    class Look(Hook):
        def transition(self, policy, state, sampler):
            x = state.x.detach()
            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                x_0 = policy.process.to_x0(policy.denoise(leaf, state.t, {}), leaf, state.t)
                v = hook.reward(x_0, state.prompts) / alpha
                (g,) = torch.autograd.grad(v.sum(), leaf)
            ok.append(torch.allclose(g, state.extras[hook]["gradient"], atol=1e-4))
            ok.append(torch.allclose(hook.temper(state.i, 8) * v.detach(), state.extras[hook]["before"], atol=1e-4))
            return super().transition(policy, state, sampler)

    hook = All(Square(), 4, alpha, ess=2.0)  # always resampled
    Sampler(8, 1.0, DDIM(1.0), [hook, Look()])(bell(), ["x"] * 3, seeds=[0, 1, 2])
    assert len(ok) == 16 and all(ok)


def test_the_heaviest_particle_is_returned():
    seeds = list(range(40))
    sampler = Sampler(10, 1.0, DDIM(1.0), [DAS(Level(), 4, 0.05)])
    state = sampler(bell(), [f"p{i}" for i in seeds], seeds=seeds)
    assert state.prompts == [f"p{i}" for i in seeds]
    assert state.x.mean() > sampler.plain()(bell(), ["x"] * 40, seeds=seeds).x.mean() + 0.1


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="DAS proposes and resamples by the noise of its steps, and this sampler has none"):
        Sampler(10, 1.0, DDIM(0.0), [DAS(Level())])(bell(), ["x"])
    with pytest.raises(ValueError, match="needs the reward's gradient and black_box has none"):
        Sampler(10, 1.0, DDIM(1.0), [DAS(BlackBox())])(bell(), ["x"])
    with pytest.raises(ValueError, match="use it in sampler, not in a method's rollout"):
        sampler = Sampler(10, 1.0, DDIM(1.0), [DAS(Level())])
        t, s = bell().process.timesteps(10)[:2, None]
        sampler.gaussian(bell(), torch.zeros(1, 1, 1, 1), t, s, {})
    with pytest.raises(ValueError, match="alpha and gamma are greater than 0"):
        DAS(Level(), alpha=0.0)
