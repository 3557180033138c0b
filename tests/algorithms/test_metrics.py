"""Metrics of validate and test."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from metric_parts import Pixels
from parts import Darkness, prompts, spy, tiny, trainer

from lit_align.algorithms.preference.sft import SFT
from lit_align.cli import main
from lit_align.diffusion.sampler import Sampler
from lit_align.metrics.diversity import VendiScore
from lit_align.metrics.mean_reward import MeanReward


def module():
    return SFT(policy=tiny(), sampler=Sampler(1, 1.0), metrics=[MeanReward(Darkness()), VendiScore(Pixels())])


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_see_each_sample_once_and_forget_an_epoch(stage, tmp_path):
    method, t = module(), trainer(tmp_path)
    run = {"val": t.validate, "test": t.test}[stage]
    batches = [{"prompt": [f"p{i}", f"q{i}"], "index": [2 * i, 2 * i + 1], "seed": [i, i + 5]} for i in range(2)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    with spy(method, "sample") as sampled:
        (logged,) = run(method, loader, verbose=False)
    images = torch.cat([out["image"] for out in sampled.results[:: 1 if stage == "val" or len(sampled.results) == 2 else 2]]).clamp(0, 1)
    direct = VendiScore(Pixels())
    direct.update(images, [""] * 4)
    assert logged[f"{stage}/metric/darkness"] == pytest.approx(1 - images.mean().item(), rel=1e-5)
    assert logged[f"{stage}/metric/vendi_pixels"] == pytest.approx(direct.compute()["vendi_pixels"].item(), rel=1e-4)
    assert run(method, loader, verbose=False)[0] == pytest.approx(logged)


def test_rows_that_a_distributed_sampler_repeats_do_not_count():
    method = module()
    images = torch.rand(4, 3, 8, 8)
    with mock.patch.object(type(method), "trainer", SimpleNamespace(world_size=2)):  # rank 1 of 7 rows: 1, 3, 5, then 0
        method.measure({"prompt": ["b", "d"], "index": [1, 3]}, images[:2])
        method.measure({"prompt": ["f", "a"], "index": [5, 0]}, images[2:])
    assert method.metrics[0].compute()["darkness"].item() == pytest.approx(1 - images[:3].mean((1, 2, 3)).mean().item(), rel=1e-5)


def test_a_column_that_lacks_is_named_before_sampling(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    metric = '{"class_path": "MeanReward", "init_args": {"reward": {"class_path": "GenEval", "init_args": {"pretrained": "tiny"}}}}'
    with pytest.raises(SystemExit):
        main(["validate", "--config", "shapes/dpo", "--config", "smoke", "--model.metrics", f"[{metric}]"])
    assert "the metric geneval needs the column `include`" in capsys.readouterr().err


def test_without_prompts_there_is_nothing_to_measure(tmp_path):
    method, t = module(), trainer(tmp_path)
    t.validate(method, prompts(0, batches=0), verbose=False)
    assert not [name for name in t.callback_metrics if "metric" in name]
