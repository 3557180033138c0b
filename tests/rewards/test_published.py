"""Every published reward through the command line, with tiny weights."""

import json

import pytest
import torch
import yaml

from lit_align.cli import import_all, main
from lit_align.cli_errors import subclasses
from lit_align.rewards.reward import Reward

TINY = {
    "CLIPScore": {},
    "PickScore": {},
    **dict.fromkeys(("HPSv1", "HPSv2", "HPSv21", "SocialReward", "AestheticScore", "MPS", "RAHF"), {"checkpoint": None}),
    **dict.fromkeys(("ImageReward", "VPScore", "CycleReward", "SafetyChecker"), {}),
}
NAMES = {"clip_score", "pickscore", "hps_v1", "hps_v2", "hps_v21", "social_reward", "aesthetic", "mps", "rahf", "image_reward", "vp_score", "cycle_reward", "safety_checker", "compressibility"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = [{"prompt": "a cat"}, {"prompt": "a dog " * 40}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    rewards = [{"class_path": name, "init_args": {"pretrained": "tiny"} | given} for name, given in TINY.items()]
    sampler = {"class_path": "Sampler", "init_args": {"steps": 1, "guidance_scale": 1.0}}
    policy = {"class_path": "StableDiffusion", "init_args": {"pretrained": "tiny", "resolution": 32}}
    config = {
        "model": {"class_path": "DDPO", "init_args": {"policy": policy, "sampler": sampler, "reward": rewards[1], "rewards": [*rewards, {"class_path": "JPEGCompressibility"}]}},
        "data": {"class_path": "Prompts", "init_args": {"path": "prompts.jsonl", "val_prompts": "prompts.jsonl", "resolution": 32, "val_batch_size": 2}},
        "trainer": {"accelerator": "cpu", "precision": "bf16-mixed", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_validate_scores_by_all_of_them_and_says_what_they_cut(folder, recwarn):
    cli = main(["validate", "--config", "run.yaml"])
    metrics = cli.trainer.callback_metrics
    assert {name.removeprefix("val/reward/") for name in metrics if name.startswith("val/reward/")} == NAMES
    assert all(metrics[f"val/reward/{name}"].isfinite() for name in NAMES)
    assert metrics["val/truncated/pickscore"] == metrics["val/truncated/image_reward"] == 0.5
    assert not any(name in f"{metrics}" for name in ("truncated/aesthetic", "truncated/compressibility"))
    assert sum("does not see the end of 'a dog a dog" in str(w.message) for w in recwarn) >= 8


def test_a_reward_without_its_file_is_one_sentence(folder, capsys):
    with pytest.raises(SystemExit):
        main(["validate", "--config", "run.yaml", "--model.rewards", '[{"class_path": "ImageReward", "init_args": {"pretrained": "here"}}]'])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lit_align: ") and "here/ImageReward.pt is neither a file nor <owner>/<name>/<file>" in said


@pytest.mark.parametrize("name", TINY)
def test_no_tensor_is_left_on_another_device(name, monkeypatch):
    """On the device without memory, every operation with a tensor of the CPU fails."""
    import_all()
    (cls,) = (c for c in subclasses(Reward) if c.__name__ == name)
    reward = cls(pretrained="tiny", **TINY[name]).to("meta")
    monkeypatch.setattr("transformers.masking_utils._ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: False)  # reads values
    score = reward(torch.rand(2, 3, 20, 24, device="meta"), ["a cat", "a dog"])
    assert score.shape == (2,) and score.device.type == "meta"
