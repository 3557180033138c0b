"""Normalising a trained reward, and how well it agrees with the judge."""

import pytest
import torch
from datasets import Dataset
from parts import T
from safetensors.torch import load_file, save_file

from lit_align.data.tables import read_table
from lit_align.shapes.comparisons import Comparisons
from lit_align.shapes.make.calibrate import agreement, main, scores
from lit_align.shapes.reward import ShapesReward


def test_agreement_by_hand():
    score, right = T([3.0, 1.0, 2.0, 2.5]), T([1, 0, 1, 0]).bool()
    found = agreement(score, right, T([0, 0, 1, 1]))
    assert found["pairs"] == 2 and found["accuracy"] == 0.5 and found["auc"] == 0.75
    d, y = score - 2.125, T([0.5, -0.5, 0.5, -0.5])
    assert found["pearson"] == pytest.approx(((d @ y) / (d.norm() * y.norm())).item(), abs=1e-6)
    assert found["spearman"] == pytest.approx(1 / 5**0.5, abs=1e-6)  # ranks 4, 1, 2, 3 against 3.5, 1.5, 3.5, 1.5


def test_scores_of_the_samples_have_mean_0_and_standard_deviation_1(tmp_path, shapes_sd, capsys):
    torch.manual_seed(0)
    save_file(ShapesReward(width=32, depth=1).state_dict(), tmp_path / "raw.safetensors")
    lists = read_table(f"{shapes_sd}/lists/train.parquet").select(range(40))
    Dataset.from_list(list(lists)).to_parquet(tmp_path / "lists.parquet")
    files = ["--reward", str(tmp_path / "raw.safetensors"), "--lists", str(tmp_path / "lists.parquet")]
    main([*files, "--held_out", "10", "--out", str(tmp_path / "out" / "reward.safetensors")])
    data = Comparisons(str(tmp_path / "lists.parquet"), held_out=10)
    data.read()
    score = scores(ShapesReward(str(tmp_path / "out" / "reward.safetensors")), data)
    assert score.shape == (160,) and score.mean().abs() < 1e-4 and score.std(correction=0) == pytest.approx(1, abs=1e-4)
    kept = load_file(tmp_path / "out" / "reward.safetensors")
    assert all(v.dtype == torch.float16 for k, v in kept.items() if k not in ("mean", "std"))
    assert "training prompts: " in (said := capsys.readouterr().out) and "held-out prompts: " in said
