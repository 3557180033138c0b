"""AI feedback: pairs that a reward compared, written in Pick-a-Pic's schema, and trained on."""

import io

import numpy as np
import pytest
import torch
from datasets import load_dataset
from parts import BlackBox, Darkness, tiny
from PIL import Image

from lit_align.cli import main
from lit_align.data.pick_a_pic import PickAPic
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.rewards.jpeg import JPEGCompressibility
from lit_align.rewards.multi_reward import MultiReward, WeightedSum
from lit_align.rewards.reward import Reward
from lit_align.tools import label as tool
from lit_align.tools.label import chosen_pairs, label

CARD = ["are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_0_url", "image_1_uid", "image_1_url", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id", "user_id", "num_example_per_prompt"]  # fmt: skip


def prompts(folder, n=5):
    (folder / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(n)))
    return str(folder / "p.txt")


def run(folder, out="out", n=3, reward=None, **options):
    label(prompts(folder), tiny(), reward or Darkness(), str(folder / out), sampler=Sampler(1, 1.0), n=n, batch_size=4, device="cpu", **options)
    return load_dataset("parquet", data_files=sorted(map(str, (folder / out).glob("*.parquet"))), split="train")


def darkness(cell):
    return 1 - np.asarray(Image.open(io.BytesIO(cell))).mean() / 255


def test_labels_are_those_of_the_reward_and_the_schema_is_pick_a_pics(tmp_path, capsys):
    rows = run(tmp_path, compare="all")
    assert set(CARD) | {"score_0", "score_1"} == set(rows.column_names) and len(rows) == 15
    assert capsys.readouterr().out.startswith("15 pairs of 5 prompts, 0 of them ties, are in ")
    for row in rows:
        found = [darkness(row["jpg_0"]), darkness(row["jpg_1"])]
        assert [row["score_0"], row["score_1"]] == pytest.approx(found, abs=2e-3)
        assert row["label_0"] == 1 - row["label_1"] == float(row["score_0"] > row["score_1"]) and row["has_label"]
        assert row["best_image_uid"] == row["image_0_uid" if row["label_0"] else "image_1_uid"]
        assert row["num_example_per_prompt"] == 3 and row["model_0"] == tiny().fingerprint
    assert 0 < sum(rows["label_0"]) < 15  # either side wins
    best = run(tmp_path, "best")
    assert len(best) == 5
    for row in best:
        mine = [one for one in rows if one["caption"] == row["caption"]]
        scores = [one[f"score_{k}"] for one in mine for k in (0, 1)]
        assert {max(scores), min(scores)} == {row["score_0"], row["score_1"]}


def test_a_margin_ties_and_ties_are_dropped(tmp_path):
    rows = run(tmp_path, compare="all")
    gaps = sorted(abs(a - b) for a, b in zip(rows["score_0"], rows["score_1"]))
    tied = run(tmp_path, "tied", compare="all", margin=gaps[6])
    assert sorted(tied["label_0"]).count(0.5) == 7 and len(tied) == 15
    assert len(run(tmp_path, "dropped", compare="all", margin=gaps[6], ties="drop")) == 8
    data = PickAPic(str(tmp_path / "tied"), resolution=32)
    data.load("train")
    assert data.summary() == "train: 15 pairs, 7 ties, 8 kept"
    with pytest.raises(ValueError, match="no pair of 5 prompts is left: lower --margin"):
        run(tmp_path, "none", margin=2.0, ties="drop")


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SHARD", 2)
    whole = run(tmp_path, "whole")

    class Failing(Darkness):
        calls = 0

        def forward(self, images, prompts):
            Failing.calls += 1
            if Failing.calls == 4:  # in the second of three files
                raise KeyboardInterrupt
            return super().forward(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "halves", reward=Failing())
    assert len(list((tmp_path / "halves").glob("*.parquet"))) == 1
    halves = run(tmp_path, "halves", reward=Failing())
    assert Failing.calls == 4 + 3 and halves[:] == whole[:]  # 6 + 6 + 3 images in batches of 4; the first file is kept
    with pytest.raises(ValueError, match="was begun with reward Failing, now it is BlackBox: choose another --out"):
        run(tmp_path, "halves", reward=BlackBox())


def test_one_model_against_another(tmp_path):
    dark = StableDiffusion("tiny")
    dark.decode = lambda z: torch.zeros(len(z), 3, 32, 32)
    dark.fingerprint = "another"
    rows = run(tmp_path, n=2, against=dark)
    assert len(rows) == 10
    for row in rows:
        side = int(row["label_0"] == 0)
        assert row[f"model_{side}"] == "another" and darkness(row[f"jpg_{side}"]) == 1


def test_which_images_are_compared():
    assert [pair[:2] for pair in chosen_pairs([1.0, 3.0, 2.0], 3, 0.0, "best_worst")] == [(1, 0)]
    assert [pair[:2] for pair in chosen_pairs([1.0, 3.0, 2.0, 2.5], 2, 0.0, "all")] == [(2, 0), (1, 3)]
    assert chosen_pairs([1.0, 1.0], 2, 0.0, "best_worst") == [(0, 1, 0.0)]
    assert [pair[:2] for pair in chosen_pairs([0.0, 0.0, 0.0], 3, 0.0, "best_worst")] == [(0, 2)]


class Undefined(Reward):
    name, differentiable = "undefined", False

    def forward(self, images, prompts):
        return torch.full((len(images),), float("nan"))


@pytest.mark.parametrize("options, said", [
    ({"n": 1}, "n is 1, and two images of a prompt are compared"),
    ({"reward": WeightedSum({"a": Darkness()})}, "depends on all scores so far"),
    ({"reward": MultiReward({"a": Darkness(), "b": Darkness()})}, "gives 2 numbers per image and one is due"),
    ({"reward": Undefined()}, "the reward undefined is not finite for 'prompt 0'"),
])  # fmt: skip
def test_what_cannot_be_labelled(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, **options)


def test_the_parts_of_a_weighted_sum_are_kept(tmp_path):
    parts = {"dark": Darkness(), "small": JPEGCompressibility()}
    rows = run(tmp_path, n=2, reward=WeightedSum(parts, {"dark": 2.0, "small": 0.1}, normalise=False))
    for row in rows:
        for k in (0, 1):
            assert row[f"score_{k}"] == pytest.approx(2 * row[f"score_dark_{k}"] + 0.1 * row[f"score_small_{k}"], rel=1e-5)


def test_label_then_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = ["StableDiffusion", "--{}.pretrained", "tiny", "--{}.resolution", "32"]
    flags = [word.format("model") for word in model]
    main(["label", "--prompts", prompts(tmp_path), "--model", *flags, "--reward", "JPEGCompressibility", "--out", "made", "--sampler.steps", "1", "--n", "3", "--compare", "all"])
    assert "15 pairs of 5 prompts" in capsys.readouterr().out
    flags = [word.format("model.policy") for word in model]
    cli = main(["fit", "--model", "DiffusionDPO", "--model.policy", *flags, "--data", "PickAPic", "--data.path", "made", "--data.batch_size", "2", "--data.weight_by", "prompt", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"])
    assert cli.trainer.global_step == 2 and {"score_0", "score_1"} <= set(cli.datamodule.column_names("train"))
    with pytest.raises(SystemExit):
        main(["label", "--prompts", prompts(tmp_path), "--model", *[w.format("model") for w in model], "--reward", "JPEGCompressibility", "--out", "made", "--n", "2"])
    assert "lit_align: made was begun with steps 1, now it is 50: choose another --out." in capsys.readouterr().err
