"""Win rates within the images of a prompt."""

from collections import Counter

import pytest
import torch
from parts import Darkness

from lit_align.rewards.multi_reward import MultiReward, WeightedSum
from lit_align.rewards.pairwise import PairwiseReward
from lit_align.rewards.reward import components, judge
from lit_align.rewards.routed import Routed
from lit_align.tools.serve import application


class Brighter(PairwiseReward):
    """Prefers the brighter image, and by `bias` whatever is shown first."""

    name = "brighter"

    def __init__(self, bias=0.0):
        super().__init__()
        self.bias, self.asked = bias, 0

    def compare(self, first, second, prompts):
        self.asked += len(prompts)
        return ((first - second).mean((1, 2, 3)) * 2 + self.bias).sigmoid()


class Same:
    """Latents are images."""

    def __init__(self):
        self.calls = Counter()

    def decode(self, latents):
        return latents


def flat(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def sigmoid(x):
    return torch.tensor(2.0 * x).sigmoid().item()


def test_the_win_rate_is_the_mean_over_the_others_of_the_prompt():
    reward, images = Brighter(), flat(0.1, 0.5, 0.9, 0.2, 0.3)
    got = reward(images, ["a", "b", "a", "a", "b"])
    a = [(sigmoid(x - y) + sigmoid(x - z)) / 2 for x, y, z in ((0.1, 0.9, 0.2), (0.9, 0.1, 0.2), (0.2, 0.1, 0.9))]
    b = [sigmoid(0.2), sigmoid(-0.2)]
    torch.testing.assert_close(got, torch.tensor([a[0], b[0], a[1], a[2], b[1]]))
    assert reward.asked == 8 and got[[0, 2, 3]].mean() == pytest.approx(0.5)
    assert got.argsort().tolist() == [0, 3, 4, 1, 2]  # the brighter, the better


def test_edits_of_different_images_are_not_compared():
    x, y, images = torch.zeros(3, 4, 4), torch.ones(3, 4, 4), flat(0.1, 0.5, 0.9, 0.2)
    got = Brighter()(images, ["brighter"] * 4, source=[x, y, x.clone(), y])
    torch.testing.assert_close(got, torch.tensor([sigmoid(-0.8), sigmoid(0.3), sigmoid(0.8), sigmoid(-0.3)]))
    with pytest.raises(ValueError, match="has one"):
        Brighter()(images[:2], ["brighter"] * 2, source=[x, y])


def test_a_preference_for_a_side_cancels():
    images = flat(0.1, 0.6)
    got = Brighter(bias=1.0)(images, ["a", "a"])
    x, y = torch.tensor(-1.0 + 1).sigmoid(), torch.tensor(1.0 + 1).sigmoid()
    torch.testing.assert_close(got, torch.stack([(x + 1 - y) / 2, (y + 1 - x) / 2]))
    torch.testing.assert_close(Brighter(bias=9.0)(flat(0.3, 0.3), ["a", "a"]), torch.tensor([0.5, 0.5]))


def test_a_prompt_with_one_image_is_refused():
    with pytest.raises(ValueError, match="brighter compares the images of a prompt, and 'b' has one: use it as the reward of a method"):
        Brighter()(flat(0.1, 0.2, 0.3), ["a", "b", "a"])


COMBINED = {
    "alone": Brighter,
    "side by side": lambda: MultiReward({"b": Brighter(), "d": Darkness()}),
    "summed": lambda: WeightedSum({"b": Brighter(), "d": Darkness()}),
    "routed": lambda: Routed({"x": Brighter()}),
}


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("make", COMBINED.values(), ids=list(COMBINED))
def test_minibatches_do_not_split_a_group(make, size):
    images, rows = flat(0.1, 0.5, 0.9, 0.2), {"prompt": ["a", "b", "a", "b"], "columns": {"task": ["x"] * 4}}
    whole = make()
    torch.testing.assert_close(judge(make(), Same(), images, rows, size), whole.combine(components(whole, images, rows)))


def test_a_server_refuses_to_compare_the_images_of_its_clients():
    pytest.importorskip("fastapi")
    with pytest.raises(ValueError, match="Brighter compares the images of a call"):
        application(Brighter())
