"""Every recipe is parsed and run for two steps with tiny weights; in one process, so that start-up is paid once."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from lit_align import configs
from lit_align.cli import main
from lit_align.configs import CONFIGS, load_config

NAMES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml") if p.parent.name != "base")
RECIPES = [name for name in NAMES if not name.startswith("with/")]
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
    header = [line for line in (CONFIGS / recipe).read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert "How to run:" in text and ("Published:" in text or "Expected:" in text)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if "max_steps" in load_config(r)["trainer"]])
def test_training_ends_with_a_checkpoint_and_validates_on_the_way(recipe):
    """Lightning counts optimizer steps where it saves and ends, of which a batch may make several, and batches where it
    validates."""
    c = load_config(recipe)
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


def differences(written, parsed, key="") -> list[str]:
    """Keys of `written` that `parsed` lacks or changed. The parser writes short class names out and adds defaults."""
    if isinstance(written, dict) and isinstance(parsed, dict):
        lost = [f"{key}.{k}" for k in written if k not in parsed]
        return lost + [d for k in written if k in parsed for d in differences(written[k], parsed[k], f"{key}.{k}")]
    if isinstance(written, list) and isinstance(parsed, list) and len(written) == len(parsed):
        return [d for i, pair in enumerate(zip(written, parsed, strict=True)) for d in differences(*pair, f"{key}.{i}")]
    if key.endswith("class_path"):
        return [] if f".{parsed}".endswith(f".{written}") else [key]
    return [] if written == parsed else [key]


@pytest.mark.parametrize("written,parsed,lost", [
    ({"a": {"class_path": "B", "x": [1]}}, {"a": {"class_path": "m.B", "x": [1], "y": 2}}, []),
    ({"a": {"class_path": "B", "x": [1], "z": 0}}, {"a": {"class_path": "m.AB", "x": [2]}}, [".a.z", ".a.class_path", ".a.x.0"]),
])  # fmt: skip
def test_differences(written, parsed, lost):
    assert differences(written, parsed) == lost


@pytest.mark.parametrize("name", NAMES)
def test_the_parser_keeps_every_key(name, capsys):
    """So a Shapes config parses to what `load_config` says, and what a published recipe says is not dropped."""
    recipe = ["--config", "shapes/ddpo"] if name.startswith("with/") else []
    with pytest.raises(SystemExit):
        main(["fit", *recipe, "--config", name, "--print_config"])
    parsed = yaml.load(capsys.readouterr().out, configs.Loader)
    assert differences(load_config(name), parsed) == []


@pytest.mark.parametrize("base", sorted(p.stem for p in (CONFIGS / "shapes/base").glob("*.yaml")))
def test_a_config_adds_to_its_base_and_repeats_nothing(base):
    """Every line of a config says something that its base does not; replaced mappings and lists repeat what they need."""
    given = configs.read(CONFIGS / f"shapes/base/{base}.yaml")
    assert given["budget"] in (120, 600)
    children = [p for p in (CONFIGS / "shapes").glob("*.yaml") if configs.read(p).get("base") == base]
    assert len(children) > 4
    for path in children:
        own = {k: v for k, v in configs.read(path).items() if k != "base"}
        assert repeated(given, own) == [], path.name


def repeated(base: dict, own: dict, key: str = "") -> list[str]:
    if own.get("class_path", base.get("class_path")) != base.get("class_path", own.get("class_path")):
        return []
    same = [f"{key}.{k}" for k in own if k in base and own[k] == base[k]]
    both = [k for k in own if isinstance(own[k], dict) and isinstance(base.get(k), dict)]
    return same + [r for k in both for r in repeated(base[k], own[k], f"{key}.{k}")]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "shapes/base").mkdir(parents=True)
    (tmp_path / "shapes/base/plain.yaml").write_text(
        "model: {class_path: A, init_args: {x: 1, part: {class_path: P, init_args: {u: 1}}, list: [1, 2]}}\nbudget: 120"
    )
    monkeypatch.setattr(configs, "CONFIGS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("own,whole", [
    ("", "model: {class_path: A, init_args: {x: 1, part: {class_path: P, init_args: {u: 1}}, list: [1, 2]}}"),
    ("model: {init_args: {y: 2, list: [3]}}", "model: {class_path: A, init_args: {x: 1, y: 2, part: {class_path: P, init_args: {u: 1}}, list: [3]}}"),
    ("model: {init_args: {part: {init_args: {v: 2}}}}", "model: {class_path: A, init_args: {x: 1, part: {class_path: P, init_args: {u: 1, v: 2}}, list: [1, 2]}}"),
    ("model: {init_args: {part: {class_path: Q, init_args: {v: 2}}}}", "model: {class_path: A, init_args: {x: 1, part: {class_path: Q, init_args: {v: 2}}, list: [1, 2]}}"),
    ("model: {class_path: B}", "model: {class_path: B}"),
    ("model: {init_args: {part: null}}", "model: {class_path: A, init_args: {x: 1, part: null, list: [1, 2]}}"),
])  # fmt: skip
def test_a_base_is_merged_under_a_config(folder, own, whole):
    (folder / "shapes/mine.yaml").write_text(f"base: plain\n{own}")
    assert load_config("shapes/mine") == {"budget": 120, **yaml.safe_load(whole)}


@pytest.mark.parametrize("file,text,said", [
    ("shapes/a.yaml", "base: plane", "a.yaml: there is no base plane; there are plain."),
    ("shapes/base/b.yaml", "base: plain", "a base has no base of its own"),
    ("c.yaml", "base: plain", "c.yaml: only a file directly under configs/shapes may have a base"),
    ("d.yaml", "", "d.yaml is empty"),
    ("e.yaml", "- model", "e.yaml holds a list, not keys"),
    ("f.yaml", "trainer:\n  max_steps: 1\n  max_steps: 2", "f.yaml: line 3: the key max_steps is given twice."),
    ("g.yaml", "model: [", "g.yaml: line 1:"),
])  # fmt: skip
def test_a_config_that_is_refused(folder, file, text, said):
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_config(file if "/base/" not in file else str(folder / file))
    assert "\n" not in str(error.value)


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
        c = load_config(name)
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
