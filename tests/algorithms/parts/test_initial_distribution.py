"""The learnt distribution of the initial noise, against closed forms."""

import torch
from chain import Chain
from parts import spy

from lit_align.algorithms.parts.initial_distribution import InitialDistribution
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion


def constant(policy, q):
    """An initial distribution whose drift is q everywhere."""
    law = InitialDistribution(policy, steps=4)
    law.q[-1].bias.data[:] = q
    return law


def test_nu_starts_at_the_noise_itself_and_a_constant_drift_has_its_closed_form():
    policy = StableDiffusion("tiny", LoRA(rank=2))
    x, text = torch.randn(4, *policy.latent_shape), policy.summary(policy.condition(["a"] * 4))
    y, kl = InitialDistribution(policy)(x, text)
    torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)
    assert not kl.any()
    y, kl = constant(policy, 0.3)(x, text)
    torch.testing.assert_close(y, x + 0.3, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kl, torch.full((4,), x[0].numel() * 0.3**2 / 2))  # of N(0.3, I) to N(0, I)


def test_with_seeds_too_the_increments_are_those_of_a_brownian_motion():
    """The increments of a seed must not be drawn from the stream that its initial noise came from."""
    policy, n = Chain(2), 8000
    law = InitialDistribution(policy, steps=4)
    with spy(law.q, "forward") as calls:
        state = Sampler(2, 1.0, DDIM(1.0))(policy, [""] * n, seeds=list(range(n)), hooks=(law, start := Start()))
    y = [call.args[0][:, 0] for call in calls.call_args_list]
    got = torch.cov(torch.stack([*y[1:], state.extras[start]["x_T"].flatten()]))
    k = torch.arange(1, 5)
    torch.testing.assert_close(got, torch.minimum(k[:, None], k) / 4, atol=0.05, rtol=0)


class Start(Hook):
    """Remembers where the run starts."""

    def on_init(self, policy, state):
        state.extras[self] = {"x_T": state.x}
        super().on_init(policy, state)


def test_a_seeds_noise_does_not_depend_on_the_rest_of_the_batch():
    policy = Chain(2)
    law, start = InitialDistribution(policy, steps=4), Start()
    x_T = lambda seeds: Sampler(2, 1.0, DDIM(1.0))(policy, [""] * len(seeds), seeds=seeds, hooks=(law, start)).extras[start]["x_T"]
    law.q[-1].weight.data += 1.0  # the drift sees the increments
    assert torch.equal(x_T([3, 4, 5])[2:], x_T([5])) and not torch.equal(x_T([3]), x_T([4]))


def test_nus_increments_are_those_of_a_brownian_motion():
    """A drift that shows where it is: y_k has variance k / n and covariances min(k, l) / n."""
    policy, n = Chain(2), 100_000
    law, seen = InitialDistribution(policy, steps=4), []
    law.q.forward = lambda h: seen.append(h[:, 0]) or torch.zeros(len(h), 1)
    torch.manual_seed(0)
    y, _ = law(torch.randn(n, 1), torch.zeros(n, 1))
    got = torch.cov(torch.stack([*seen[1:], y.flatten()]))
    k = torch.arange(1, 5)
    torch.testing.assert_close(got, torch.minimum(k[:, None], k) / 4, atol=0.012, rtol=0)
