"""Vision-language and diffusion judges through the command line."""

import pytest
import torch

from lit_align.cli import main

JUDGES = """
model:
  init_args:
    reward:
      class_path: WeightedSum
      init_args:
        rewards:
          hpsv3: {class_path: HPSv3}
          vqascore: {class_path: VQAScore}
          deqa: {class_path: DeQA}
          unified: {class_path: UnifiedReward}
          unified_2: {class_path: UnifiedReward2}
          unified_pairs: {class_path: UnifiedRewardPairs}
          unified_2_pairs: {class_path: UnifiedReward2Pairs}
          judge: {class_path: VLMJudge, init_args: {answer: number, high: 10}}
          pairs: {class_path: VLMPairs}
          vision_reward: {class_path: VisionReward, init_args: {alignment: {class_path: VQAScore, init_args: {pretrained: zhiqiulin/clip-flant5-xl}}}}
          classifier: {class_path: DiffusionClassifier, init_args: {draws: 2, backbone: {class_path: StableDiffusion, init_args: {pretrained: a/b, adapter: {class_path: Frozen}}}}}
          dina: {class_path: NoisedReward, init_args: {reward: {class_path: DiNaLRM, init_args: {backbone: {class_path: StableDiffusion3, init_args: {pretrained: c/d, adapter: {class_path: Frozen}}}}}}}
    samples_per_prompt: 2
    rewards: [{class_path: HPSv3}, {class_path: UnifiedReward2}]
"""
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def test_a_run_with_all_of_them(tmp_path, monkeypatch):
    """Tiny, under smoke: each gives its number, and their weights are not in the checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges.yaml").write_text(JUDGES)
    cli = main(["fit", "--config", "ddpo_sd15", "--config", "judges.yaml", "--config", "smoke", *QUIET])
    logged = cli.trainer.callback_metrics
    names = cli.model.reward.multi.names
    assert len(names) == 12 and all(logged[f"train/reward/{name}"].isfinite() for name in names)
    assert 1 <= logged["train/reward/unified"] <= 5 and logged["train/reward/pairs"] == pytest.approx(0.5)
    assert not any(m.training for m in cli.model.reward.modules() if isinstance(m, torch.nn.Dropout))
    assert {"val/reward/hpsv3", "val/reward/unified_reward_2"} <= set(logged)
    (file,) = (tmp_path / "checkpoints/ddpo_sd15+judges+smoke/checkpoints").glob("last*.ckpt")
    state = torch.load(file, weights_only=True)["state_dict"]
    assert not any(k.startswith("reward") and not k.endswith("_extra_state") for k in state)


@pytest.mark.parametrize("typed,said", [
    (["UnifiedReward", "--model.reward.pretrained", "no/such-folder/at-all"], "no/such-folder/at-all"),
    (["HPSv3", "--model.reward.checkpoint", "here.safetensors"], "here.safetensors is neither a file nor <owner>/<name>/<file> on a hub"),
])  # fmt: skip
def test_weights_that_are_nowhere_are_named_in_a_sentence(typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = ["--model.policy.pretrained", "tiny", "--model.policy.resolution", "32", "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", "ddpo_sd15", *tiny, "--model.reward", *typed])
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and "Traceback" not in "\n".join(lines)
