import pytest
import torch

from lit_align.rewards.jpeg import JPEGCompressibility
from lit_align.rewards.multi_reward import WeightedSum
from lit_align.rewards.reward import Reward
from lit_align.rewards.step_aware import sinusoids


class Channel(Reward):
    """The mean of one colour, in some unit."""

    differentiable = True

    def __init__(self, channel, unit):
        super().__init__()
        self.channel, self.unit = channel, unit

    def forward(self, images, prompts):
        return self.unit * images[:, self.channel].mean((1, 2))


def colours(red, green):
    return torch.stack([torch.tensor(red), torch.tensor(green), torch.zeros(len(red))], 1)[..., None, None].expand(-1, -1, 4, 4).clone()


def test_a_weighted_sum_forgets_units_and_remembers_what_it_scored():
    make = lambda: WeightedSum({"red": Channel(0, 1000.0), "green": Channel(1, 0.01)}, {"red": 2.0, "green": -1.0})
    score, first = make(), colours([0.1, 0.3], [0.2, 0.6])
    torch.testing.assert_close(score(first, ["", ""]), torch.tensor([-2.0 + 1.0, 2.0 - 1.0]))  # one deviation each
    assert {k: v.tolist() for k, v in score.latest.items()} == {"red": pytest.approx([100, 300]), "green": pytest.approx([0.002, 0.006])}
    resumed = make()
    resumed.load_state_dict(score.state_dict())
    images = colours([0.5, 0.7], [0.4, 0.4]).requires_grad_()
    red, green = torch.tensor([0.1, 0.3, 0.5, 0.7]), torch.tensor([0.2, 0.6, 0.4, 0.4])  # all so far
    z = lambda x: ((x - x.mean()) / x.std(correction=0))[2:]
    for s in (score, resumed):
        got = s(images, ["", ""])
        torch.testing.assert_close(got, 2 * z(red) - z(green))
    (grad,) = torch.autograd.grad(got.sum(), images)  # mean and deviation are constants
    torch.testing.assert_close(grad.sum((2, 3))[0], torch.tensor([2 / red.std(correction=0), -1 / green.std(correction=0), 0.0]))


def test_a_weighted_sum_in_the_rewards_own_units():
    images = colours([0.1, 0.3], [0.2, 0.6])
    score = WeightedSum({"red": Channel(0, 10.0), "green": Channel(1, 1.0)}, {"red": 0.5, "green": 3.0}, normalise=False)
    torch.testing.assert_close(score(images, ["", ""]), torch.tensor([0.5 + 0.6, 1.5 + 1.8]))
    assert score.differentiable and not WeightedSum({"red": Channel(0, 1.0), "size": JPEGCompressibility()}).differentiable
    with pytest.raises(ValueError, match="weights names blue; rewards are red: name the same"):
        WeightedSum({"red": Channel(0, 1.0)}, {"blue": 1.0})


def test_a_reward_that_never_differs_is_left_alone():
    score = WeightedSum({"red": Channel(0, 1.0)})
    images = colours([0.3], [0.0]).requires_grad_()
    got = score(images, [""])
    assert got.item() == 0 and torch.autograd.grad(got, images)[0].abs().max() <= 1


def test_the_step_aware_models_sinusoids_are_cosines_then_sines():
    """diffusers' embedding of the released models' configuration."""
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0, 1, 37, 999])
    want = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoids(t, 256), want, atol=2e-4, rtol=1e-4)
    assert sinusoids(torch.tensor([0]), 4).tolist() == [[1.0, 1.0, 0.0, 0.0]]
