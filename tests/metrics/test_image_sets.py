"""Distances and diversity of image sets against direct formulas on features in float64."""

import math

import numpy as np
import pytest
import scipy
import torch
import torch.nn.functional as F
from metric_parts import Pixels, folder_of, images
from parts import Darkness

from lit_align.metrics.diversity import PairwiseDistance, VendiScore
from lit_align.metrics.features import CLIPFeatures, Features, RewardFeatures
from lit_align.metrics.fid import FID
from lit_align.metrics.inception_score import InceptionScore
from lit_align.metrics.mean_reward import MeanReward
from lit_align.metrics.mmd import CMMD, KID
from lit_align.metrics.style import StyleSimilarity
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.jpeg import JPEGCompressibility

FAKE, REAL = images(20), images(30, seed=1)


def features(x):
    return Pixels()(x).double().numpy()


@pytest.fixture
def reference(tmp_path):
    return folder_of(REAL, tmp_path / "deep/below")


def measured(metric, x=FAKE, prompts=None):
    for part in x.split(7):
        metric.update(part, (prompts or [""] * len(part))[: len(part)])
    return {k: v.item() for k, v in metric.compute().items()}


def test_fid(reference):
    a, b = features(REAL), features(FAKE)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert measured(FID(reference, Pixels())) == {"fid_pixels": pytest.approx(expected, rel=1e-4)}
    assert measured(FID(reference, Pixels()), REAL)["fid_pixels"] == pytest.approx(0, abs=1e-6)


def test_fid_of_known_gaussians(tmp_path):
    """Features N(0, 1) and N(3, 4): 3^2 + (1 - 2)^2 in each of two dimensions."""

    class Known(Features):
        name = "known"

        def extract(self, x):
            z = scipy.stats.norm.ppf((x[:, :2].mean((2, 3)).double().numpy() * 255 + 0.5) / 256)
            return torch.tensor(z * np.where(x[:, 2].mean((1, 2)).numpy() > 0.5, 2, 1)[:, None] + 3 * (x[:, 2].mean((1, 2)).numpy() > 0.5)[:, None])

    levels = torch.cartesian_prod(torch.arange(0, 256, 3), torch.arange(0, 256, 3))[::31].float() / 255
    sets = [torch.cat([levels, torch.full((len(levels), 1), k)], 1)[:, :, None, None] for k in (0.0, 1.0)]
    found = measured(FID(folder_of(sets[0], tmp_path / "r"), Known()), sets[1])
    assert found["fid_known"] == pytest.approx(20, rel=0.02)


def test_kid(reference):
    a, b = features(REAL), features(FAKE)
    k = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    off = lambda m: (m.sum() - np.trace(m)) / (len(m) * (len(m) - 1))
    assert measured(KID(reference, Pixels())) == {"kid_pixels": pytest.approx(off(k(a, a)) + off(k(b, b)) - 2 * k(a, b).mean(), rel=1e-4)}


def test_cmmd(reference, tmp_path):
    a, b = features(REAL), features(FAKE)
    k = lambda x, y: np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / 200)
    expected = 1000 * (k(a, a).mean() + k(b, b).mean() - 2 * k(a, b).mean())
    assert measured(CMMD(reference, Pixels())) == {"cmmd_pixels": pytest.approx(expected, rel=1e-4)}
    assert measured(CMMD(reference, Pixels()), REAL)["cmmd_pixels"] == pytest.approx(0, abs=1e-9)

    class Poles(Features):
        name = "poles"

        def extract(self, x):
            return torch.stack([x[:, 0].mean((1, 2)) * 2 - 1, 0 * x[:, 0, 0, 0]], 1)

    white = folder_of(torch.ones(1, 3, 4, 4), tmp_path / "white")
    assert measured(CMMD(white, Poles()), torch.zeros(1, 3, 4, 4))["cmmd_poles"] == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)), rel=1e-5)


def test_inception_score():
    p = F.softmax(Pixels().classes(FAKE).double(), 1).numpy()
    expected = np.exp(scipy.stats.entropy(p.T, p.mean(0)[:, None]).mean())
    found = measured(InceptionScore(Pixels(), splits=1))
    assert found == {"is_pixels": pytest.approx(expected, rel=1e-5), "is_pixels/std": 0}
    sharp = torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8)

    class Sharp(Pixels):
        def classes(self, x):
            return x.mean((2, 3)) * 100

    assert measured(InceptionScore(Sharp(), splits=1), sharp)["is_pixels"] == pytest.approx(3, rel=1e-5)
    with pytest.raises(ValueError, match="lower `splits`"):
        measured(InceptionScore(Pixels()), FAKE[:3])
    with pytest.raises(ValueError, match="CLIPFeatures is no classifier"):
        InceptionScore(CLIPFeatures("tiny"))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_distances_within_a_prompt_and_of_all(distance):
    prompts = ["a", "b", "a", "c", "b", "a", "d"]
    x, metric = features(FAKE[:7]), PairwiseDistance(Pixels(), distance)
    metric.update(FAKE[:7], prompts)
    d = scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(x, {"l2": "euclidean"}.get(distance, distance)))
    mean = lambda rows: np.mean([d[i, j] for i in rows for j in rows if i < j])
    found = metric.compute()
    assert found["distance_pixels/all"].item() == pytest.approx(mean(range(7)), rel=1e-5)
    assert found["distance_pixels/within"].item() == pytest.approx((mean([0, 2, 5]) + mean([1, 4])) / 2, rel=1e-5)
    metric.reset()
    metric.update(FAKE[:2], ["a", "b"])
    assert set(metric.compute()) == {"distance_pixels/all"}


def test_vendi_score():
    x = F.normalize(torch.tensor(features(FAKE)), dim=1).numpy()
    eigenvalues = scipy.linalg.eigvalsh(x @ x.T / len(x))
    expected = np.exp(-sum(e * np.log(e) for e in eigenvalues if e > 1e-12))
    assert measured(VendiScore(Pixels())) == {"vendi_pixels": pytest.approx(expected, rel=1e-5)}
    assert measured(VendiScore(Pixels()), FAKE[:1].expand(9, -1, -1, -1))["vendi_pixels"] == pytest.approx(1, abs=1e-5)
    one_each = torch.zeros(4, 3, 8, 8)
    for i in range(4):
        one_each[i, i // 2, 0, i % 2] = 1
    assert measured(VendiScore(Pixels()), one_each)["vendi_pixels"] == pytest.approx(4, rel=1e-5)


def test_style_similarity_is_the_mean_cosine(reference):
    class Unit(Pixels):
        def extract(self, x):
            return F.normalize(super().extract(x), dim=1)

    cosine = F.normalize(torch.tensor(features(FAKE))) @ F.normalize(torch.tensor(features(REAL))).T
    assert measured(StyleSimilarity(reference, Unit())) == {"style_pixels": pytest.approx(cosine.mean().item(), rel=1e-5)}


def test_clip_score_is_torchmetrics():
    """torchmetrics' own class with the same tiny CLIP, wrapped so that it knows transformers 5."""
    from torchmetrics.multimodal import CLIPScore as Theirs

    reward = CLIPScore("tiny")

    class Model(torch.nn.Module):
        config = reward.model.config

        def get_image_features(self, x):
            return reward.model.get_image_features(pixel_values=x).pooler_output

        def get_text_features(self, ids, mask):
            return reward.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    from transformers import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)

    def processor(text=None, images=None, **kwargs):
        if images is not None:
            return {"pixel_values": pictures(images, return_tensors="pt").pixel_values}
        return reward.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")

    theirs, prompts = Theirs(lambda: (Model(), processor)), [f"a {c}" for c in "abcdefg"]
    x = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    theirs.update(list(x), prompts)
    metric = MeanReward(reward)
    metric.update(x / 255, prompts)
    assert max(metric.compute()["clip_score"].item(), 0) == pytest.approx(theirs.compute().item(), abs=1e-3)


def test_a_mean_counts_prompts_once():
    metric, x = MeanReward(Darkness()), FAKE[:6]
    prompts = ["a", "a", "a", "b", "c", "c"]
    metric.update(x, prompts)
    dark = 1 - x.mean((1, 2, 3)).double().numpy()
    means = [dark[:3].mean(), dark[3], dark[4:].mean()]
    found = {k: v.item() for k, v in metric.compute().items()}
    assert found == pytest.approx({"darkness": np.mean(means), "darkness/half_interval": 1.96 * np.std(means, ddof=1) / 3**0.5}, rel=1e-5)
    median = MeanReward(Darkness(), median=True)
    median.update(x, prompts)
    assert median.compute()["darkness"].item() == pytest.approx(np.mean([np.median(dark[:3]), dark[3], np.median(dark[4:])]), rel=1e-5)
    assert [row["darkness"] for row in metric.records()] == pytest.approx(dark.tolist(), rel=1e-5)


def test_a_reward_that_has_no_mean_is_refused():
    from lit_align.rewards.vlm_judge import VLMJudge, VLMPairs

    with pytest.raises(ValueError, match="compares the images of a batch"):
        MeanReward(VLMPairs("tiny", dtype="float32"))
    with pytest.raises(ValueError, match="set its on_failure to stop"):
        MeanReward(VLMJudge("tiny", "number", dtype="float32", on_failure="mask"))


def test_any_reward_gives_features():
    x = images(3)
    assert torch.equal(RewardFeatures(JPEGCompressibility())(x), F.adaptive_avg_pool2d(x, 16).flatten(1))
    assert RewardFeatures(CLIPScore("tiny"))(x).norm(dim=1).tolist() == pytest.approx([1] * 3, rel=1e-5)


def test_an_empty_reference_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        measured(FID(str(tmp_path), Pixels()))
