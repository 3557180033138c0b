import pytest
import torch
from online import policy_gradient, quiet
from parts import Darkness, T, alone, prompts, spy, trainer

from lit_align.algorithms.parts.advantages import Advantage, Group, PerPrompt
from lit_align.algorithms.policy_gradient.policy_gradient import StepBatch
from lit_align.algorithms.policy_gradient.sdpo import SDPO, interpolated
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM, Gaussian


def make(steps, **kwargs):
    defaults = {"rollout": Sampler(steps, 1.0, DDIM(1.0)), "samples_per_prompt": 4, "minibatch": 8}
    return policy_gradient(SDPO, **(defaults | kwargs))


class AsTheyAre(Advantage):
    """Advantages that are the rewards."""

    def forward(self, prompt_id, reward):
        return reward


class InTurn(Darkness):
    """0, 1, 2, ... in the order in which images come."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, images, prompts):
        self.asked += prompts
        return torch.arange(float(len(self.asked)))[-len(images) :]


class Bright(Darkness):
    def forward(self, images, prompts):
        return 19 + super().forward(images, prompts)  # returns of 80, 60, 40 and 20


def test_rewards_between_three_exact_ones():
    """Unit vectors in a plane at angles 0, 30, 100, 60, 20 degrees: the third is least like the ends."""
    angle = torch.deg2rad(T([0.0, 30.0, 100.0, 60.0, 20.0]))
    x_0 = torch.stack([angle.cos(), angle.sin()], 1).view(1, 5, 2, 1, 1)
    asked = []
    got = interpolated(x_0, lambda x: asked.append(x) or T([1.0, 5.0, 2.0]))[0]
    assert torch.equal(torch.cat(asked), x_0[0, [0, 2, 4]])
    c = lambda i, j: max((angle[i] - angle[j]).cos().item(), 1e-6)
    mean = lambda i: (1 * c(i, 0) + 5 * c(i, 2) + 2 * c(i, 4)) / (c(i, 0) + c(i, 2) + c(i, 4))
    torch.testing.assert_close(got, T([1.0, mean(1), 5.0, mean(3), 2.0]))


def test_sdpos_loss_is_the_larger_square():
    method = quiet(make(4, clip_range=0.1, decay=0.5))
    t = method.rollout.timesteps(method.policy)[2]  # lambda^2
    x = torch.zeros(2, 1)
    rest = {"x_t": x, "x_s": x, "t": T([t, t]), "s": T([t, t]), "cond": {}}
    for l_a, l_b, A_a, A_b in ((0.3, -0.05, 1.0, -0.5), (0.3, -0.3, 0.01, 0.0)):
        s = StepBatch(Gaussian(x, x), T([l_a, l_b]), torch.zeros(2), T([A_a, A_b]), **rest)
        clamp = lambda v: max(-0.1, min(0.1, v))
        want = max((0.25 * (l_a - l_b) - (A_a - A_b)) ** 2, (0.25 * (clamp(l_a) - clamp(l_b)) - (A_a - A_b)) ** 2)
        assert method.loss(s).item() == pytest.approx(want, rel=1e-5)


def test_sdpos_returns_are_normalised_by_prompt_and_step(tmp_path):
    method = make(4, advantage=Group(global_std=False), discount=0.5)
    with spy(method, "collect") as collect:
        trainer(tmp_path).fit(method, prompts(2))
    tr, a = collect.results[0]
    assert a.shape == (8, 4) and torch.equal(tr.x_t[0, 0], tr.x_t[1, 0])
    assert a.view(2, 4, 4).mean(1).abs().max() < 1e-4 and a.abs().max() > 0.1


def test_sdpos_return_is_the_discounted_sum_of_a_steps_reward_and_all_later_ones():
    """Of three steps, all scored: 0, 1, 2 and 3 of the four trajectories' first estimates and so on."""
    method = alone(make(3, reward=InTurn(), advantage=AsTheyAre(), samples_per_prompt=2, discount=0.5, max_advantage=1e9))
    _, a = method.collect({"prompt": ["p", "q"]})
    r = torch.arange(12.0).view(3, 4).T  # (trajectories, steps)
    torch.testing.assert_close(a, torch.stack([r[:, 0] + 0.5 * r[:, 1] + 0.25 * r[:, 2], r[:, 1] + 0.5 * r[:, 2], r[:, 2]], 1))
    assert method.reward.asked == ["p", "p", "q", "q"] * 3


@pytest.mark.parametrize("min_count", [99, 2], ids=["new prompts", "known prompts"])
def test_sdpos_statistics_are_those_of_a_step_alone(tmp_path, min_count):
    method = make(4, reward=Bright(), advantage=PerPrompt(min_count=min_count))
    with spy(method, "collect") as collect:
        trainer(tmp_path).fit(method, prompts(2))
    _, a = collect.results[0]
    torch.testing.assert_close(a.mean(0), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(a.std(0, correction=0), torch.ones(4), atol=0.1, rtol=0)
