"""Every recipe is parsed and run for two steps with tiny weights; in one process, so that start-up is paid once."""

from pathlib import Path

import pytest
import torch
import yaml

from lit_align.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p.relative_to(ROOT / "configs").as_posix() for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "with")
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=pytest.mark.slow) if r.startswith("shapes/") else r for r in RECIPES])
def test_recipe_runs_two_steps_under_smoke(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # found by name from anywhere
    cli = main(["fit", "--config", recipe, "--config", "smoke.yaml", *QUIET])
    assert cli.trainer.global_step >= 2
    assert cli.trainer.callback_metrics["train/loss"].isfinite() if "train/loss" in cli.trainer.callback_metrics else True
    run = tmp_path / "checkpoints" / (recipe.removesuffix(".yaml") + "+smoke")
    assert (run / "config.yaml").exists() and any(run.glob("events*"))
    assert any(any((run / made).glob("*")) for made in ("policy", "reward"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_how_to_run_it_and_what_to_expect(recipe):
    header = [line for line in (ROOT / "configs" / recipe).read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert "How to run:" in text and ("Published:" in text or "Expected:" in text)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if "max_steps:" in (ROOT / "configs" / r).read_text()])
def test_training_ends_with_a_checkpoint_and_validates_on_the_way(recipe):
    """Lightning counts optimizer steps where it saves and ends, of which a batch may make several, and batches where it
    validates."""
    c = yaml.safe_load((ROOT / "configs" / recipe).read_text())
    t, model = c["trainer"], c["model"]["init_args"]
    a_batch = model.get("updates", 1) * model.get("inner_epochs", 1)
    if c["model"]["class_path"] == "TDPOR":
        a_batch *= model["rollout"]["init_args"]["steps"]
    pretrain = model.get("pretrain", 0) if c["model"]["class_path"] == "LaSRO" else t["max_steps"]
    steps = batches = 0
    while steps < t["max_steps"]:
        steps, batches = steps + a_batch + (batches >= pretrain), batches + 1
    (save,) = (cb["init_args"]["every_n_train_steps"] for cb in t["callbacks"] if cb["class_path"] == "ModelCheckpoint")
    assert steps == t["max_steps"] and steps % save == 0
    assert c["model"]["class_path"] == "LaSRO" or save % a_batch == 0  # looked at after a batch
    assert batches * t.get("accumulate_grad_batches", 1) >= t.get("val_check_interval", 0)


@pytest.mark.parametrize("overlay", ["lora.yaml", "ddp.yaml"])
def test_overlays_run_under_smoke(overlay, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = main(["fit", "--config", "dpo_sdxl", "--config", overlay, "--config", "smoke", *QUIET])
    assert cli.trainer.global_step == 2
    if overlay == "lora.yaml":
        assert (tmp_path / "checkpoints/dpo_sdxl+lora+smoke/policy/pytorch_lora_weights.safetensors").exists()
        assert type(cli.model.optimizers().optimizer).__name__ == "AdamW8bit"


def test_published_hyperparameters_of_diffusion_dpo():
    """2048 pairs a step, coefficient 2500 (5000 with its 1/2), learning rate 2.048e-5, 2000 steps; warm-up 500 and 200."""
    for name, warmup, optimizer in (("dpo_sd15", 500, "AdamW"), ("dpo_sdxl", 200, "Adafactor")):
        c = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        model, t = c["model"]["init_args"], c["trainer"]
        assert c["data"]["init_args"]["batch_size"] * t["accumulate_grad_batches"] * t["devices"] == 2048
        assert model["beta"] == 2500 and float(model["optimizer"]["init_args"]["lr"]) == 2.048e-5 and t["max_steps"] == 2000
        assert model["lr_scheduler"]["init_args"]["total_iters"] == warmup and model["caption_dropout"] == 0.2
        assert model["optimizer"]["class_path"].endswith(optimizer) and t["gradient_clip_val"] == 1.0


def test_a_sum_of_rewards_logs_each_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = main(["fit", "--config", "shapes/ddpo", "--config", "with/two_rewards", "--config", "smoke", *QUIET])
    assert {"train/reward", "train/reward/right", "train/reward/small"} <= set(cli.trainer.callback_metrics)
    checkpoint = torch.load(tmp_path / "checkpoints/shapes/ddpo+two_rewards+smoke/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["reward._extra_state"][0, 0] > 0  # samples that were scored


@pytest.mark.parametrize("flag,instead", [("gradient_clip_val", "model.max_grad_norm"), ("accumulate_grad_batches", "data.batch_size")])
def test_a_method_with_optimizer_steps_of_its_own_names_its_own_option(flag, instead, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "shapes/ddpo", "--config", "smoke", f"--trainer.{flag}", "2", *QUIET])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"lit_align: DDPO makes its own optimizer steps: set --{instead} in place of --trainer.{flag}."
