"""PaintSkills' rules, social bias against OpenCV's colours and a hand count, box counting against numpy's."""

import cv2
import numpy as np
import pytest
import torch

from lit_align.metrics.dall_eval import MONK, PaintSkills, SocialBias, skin, skin_tone
from lit_align.metrics.fractal import FractalDimension, box_dimension
from lit_align.rewards.geneval import Detection
from lit_align.rewards.reward import Reward

at = lambda x, y, score=0.9: Detection((x, y, x + 10.0, y + 10.0), score)


def test_paintskills():
    metric = PaintSkills("object", "tiny")
    right = lambda skill, found, named: setattr(metric, "skill", skill) or metric.right(found, named)
    dog, bike = {"shape": "dog"}, {"shape": "bike", "relation": "left_0"}
    assert right("object", [("cat", at(0, 0, 0.4)), ("person", at(0, 0, 0.5))], [{"shape": "humanMary"}])
    assert not right("object", [("cat", at(0, 0, 0.6)), ("dog", at(0, 0, 0.5))], [dog]) and not right("object", [], [dog])
    assert right("count", [("dog", at(0, 0)), ("dog", at(20, 0)), ("dog", at(0, 0, 0.6))], [dog, dog])
    assert not right("count", [("dog", at(0, 0)), ("cat", at(20, 0))], [dog, dog])
    assert right("spatial", [("dog", at(50, 0)), ("bicycle", at(0, 20)), ("cat", at(0, 0, 0.1))], [dog, bike])
    assert not right("spatial", [("dog", at(0, 0)), ("bicycle", at(50, 0))], [dog, bike])  # it is on the right
    assert not right("spatial", [("dog", at(50, 0)), ("bicycle", at(0, 60))], [dog, bike])  # it is below
    assert right("spatial", [("dog", at(0, 0)), ("dog", at(50, 0))], [dog, {"shape": "dog", "relation": "left_0"}])
    assert not right("spatial", [("dog", at(0, 0)), ("cat", at(50, 0))], [dog, bike])


def test_skin_as_the_released_rules_with_opencv():
    g = np.random.default_rng(0)
    rgb = np.concatenate([g.integers(0, 256, (40, 50, 3)), g.integers([120, 80, 60], [256, 200, 170], (40, 50, 3))]).astype(np.uint8)
    y, cr, cb = cv2.cvtColor(rgb[..., ::-1].copy(), cv2.COLOR_BGR2YCrCb).astype(float).transpose(2, 0, 1)
    r, gr, b = rgb.astype(float).transpose(2, 0, 1)
    expected = (r > 95) & (gr > 40) & (b > 20) & (r > gr) & (r > b) & (abs(r - gr) > 15) & (cr > 135) & (cb > 85) & (y > 80)
    expected &= (cr <= 1.5862 * cb + 20) & (cr >= 0.3448 * cb + 76.2069) & (cr >= -4.5652 * cb + 234.5652)
    expected &= (cr <= -1.15 * cb + 301.75) & (cr <= -2.2857 * cb + 432.85)
    found = skin(torch.from_numpy(rgb).permute(2, 0, 1) / 255).numpy()
    assert expected.sum() > 300 and (found != expected).mean() < 0.005  # OpenCV rounds in fixed point


def test_tones():
    for tone in (5, 6, 7):
        image = (MONK[tone - 1] / 255)[:, None, None].expand(3, 4, 4)
        assert skin_tone(image) in (tone, 0)
    assert skin_tone((MONK[5] / 255)[:, None, None].expand(3, 4, 4)) == 6
    assert skin_tone(torch.zeros(3, 4, 4)) == 0


def test_bias_by_hand():
    class Bright(Reward):
        name, differentiable = "bright", False

        def forward(self, images, prompts):
            return images.mean((1, 2, 3)) if "female" in prompts[0] else torch.full((len(images),), 0.5)

    tone = (MONK[5] / 255)[:, None, None].expand(3, 4, 4)  # darker than 0.5: male
    x = torch.stack([tone, tone, torch.ones(3, 4, 4), torch.ones(3, 4, 4), torch.ones(3, 4, 4)])
    metric = SocialBias(Bright())
    metric.update(x, ["nurse", "nurse", "nurse", "pilot", "pilot"])
    found = {k: v.item() for k, v in metric.compute().items()}
    nurse_imbalance = (abs(2 / 3 - 0.1) + 9 * 0.1) / 10
    assert found == pytest.approx({"bias/gender": (abs(1 / 3 - 0.5) + 0.5) / 2, "bias/skin_mad": (0.9 + 9 * 0.1) / 10, "bias/skin_imbalance": (nurse_imbalance + 0.1) / 2}, rel=1e-5)


def by_numpy(dark):
    """Box counting by reduceat."""
    sizes = 2 ** np.arange(int(np.log2(min(dark.shape))), 1, -1)
    counts = []
    for k in sizes:
        s = np.add.reduceat(np.add.reduceat(dark.astype(int), np.arange(0, dark.shape[0], k), axis=0), np.arange(0, dark.shape[1], k), axis=1)
        counts.append(len(np.where((s > 0) & (s < k * k))[0]))
    return -np.polyfit(np.log(sizes), np.log(counts), 1)[0]


def test_fractal_dimension():
    g = torch.Generator().manual_seed(0)
    dark = torch.rand(64, 64, generator=g) < 0.5
    assert box_dimension(dark) == pytest.approx(by_numpy(dark.numpy())) == pytest.approx(2)
    line = torch.zeros(64, 64, dtype=torch.bool)
    line[:, 30] = True
    assert box_dimension(line) == pytest.approx(by_numpy(line.numpy())) == pytest.approx(1)
    wide = torch.rand(33, 70, generator=g) < 0.02
    assert box_dimension(wide) == pytest.approx(by_numpy(wide.numpy()))  # boxes that the edge cuts, too
    assert box_dimension(torch.zeros(64, 64, dtype=torch.bool)) is None
    metric = FractalDimension()
    metric.update(torch.stack([(~line).float().expand(3, -1, -1), torch.ones(3, 64, 64)]), ["", ""])
    found = {k: v.item() for k, v in metric.compute().items()}
    assert found == pytest.approx({"fractal": 1, "fractal/loss": 0.35, "fractal/measured": 0.5}, rel=1e-5)
