"""Every recipe is parsed and run for two steps with tiny weights; in one process, so that start-up is paid once."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lit_align import configs
from lit_align.algorithms.reward_modeling.reward_modeling import RewardModeling
from lit_align.cli import import_all, main
from lit_align.cli_errors import subclasses
from lit_align.configs import CONFIGS, load_config
from lit_align.data.datamodule import AlignData
from lit_align.data.tables import read_prompts
from lit_align.paths import ROOT
from lit_align.studies import recipes

NAMES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml") if p.parent.name not in ("base", "evaluate"))  # tests/tools/test_evaluate.py runs those
RECIPES = [name for name in NAMES if not name.startswith("with/")]
PUBLISHED = [name for name in RECIPES if "/" not in name]
import_all()
MODELS = {cls.__name__ for cls in subclasses(RewardModeling)}
REWARD_MODELS = [name for name in PUBLISHED if load_config(name)["model"]["class_path"] in MODELS]
OTHERS = {"ValueRegression", "PromptSFT", "PromptistPPO", "PAEPPO", "NoisePromptLearning", "NoiseHypernetwork"}  # what they train is no policy
VALUES = [name for name in PUBLISHED if load_config(name)["model"]["class_path"] in OTHERS]  # they sample nothing to see
UNVALIDATED = [name for name in PUBLISHED if load_config(name)["trainer"].get("limit_val_batches") == 0]
STEERED = [name for name in RECIPES if load_config(name)["model"]["class_path"] == "Steered"]  # they train nothing
TRAINED = [name for name in RECIPES if name not in STEERED]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


QUICK = {f"{name}.yaml" for name in "dpo_sd15 dpo_sdxl kto_sd15 d3po_sd15 ddpo_sd15 flow_grpo_flux nft_qwen_image draft_sd15 raft_sd15 lrm_sd15 pickscore flow_grpo_wan21 fk_steering_sdxl reno_sdxl_turbo".split()}  # the others are slow


def slow_but(quick, names: list[str]) -> list:
    return [name if quick(name) else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("recipe", slow_but(QUICK.__contains__, TRAINED))
def test_recipe_runs_two_steps_under_smoke(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # found by name from anywhere
    cli = main(["fit", "--config", recipe, "--config", "smoke.yaml", *QUIET])
    assert cli.trainer.global_step >= 2
    assert cli.trainer.callback_metrics["train/loss"].isfinite() if "train/loss" in cli.trainer.callback_metrics else True
    run = tmp_path / "checkpoints" / (recipe.removesuffix(".yaml") + "+smoke")
    assert (run / "config.yaml").exists() and any(run.glob("events*"))
    assert any(any((run / made).glob("*")) for made in ("policy", "reward", "value", "writer", "noise"))
    if recipe in PUBLISHED and recipe not in REWARD_MODELS + VALUES:
        assert any((run / "samples").glob("step_*.png"))


@pytest.mark.parametrize("recipe", slow_but(QUICK.__contains__, STEERED))
def test_steering_runs_test_and_predict_under_smoke(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("test", "predict"):
        cli = main([command, "--config", recipe, "--config", "smoke.yaml", *QUIET])
    assert cli.trainer.state.finished
    run = tmp_path / "checkpoints" / (recipe.removesuffix(".yaml") + "+smoke")
    assert (run / "comparison.png").is_file() and len((run / "predict/metadata.jsonl").read_text().splitlines()) == 2
    assert load_config(recipe)["data"]["init_args"].keys().isdisjoint(("path", "batch_size"))


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
    if recipe in PUBLISHED and recipe not in UNVALIDATED and c["model"]["class_path"] != "LaSRO":  # validated whenever a checkpoint is saved
        assert t["val_check_interval"] * a_batch == save * t.get("accumulate_grad_batches", 1)


def max_side(resolution) -> int:
    return max(resolution) if isinstance(resolution, list) else resolution


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_shows_its_samples(recipe):
    c = load_config(recipe)
    data, t = c["data"]["init_args"], c["trainer"]
    if recipe in STEERED:  # the command line adds Comparison and SampleWriter
        assert "callbacks" not in t and (ROOT / data["test_prompts"]).is_file()
        return
    assert t["check_val_every_n_epoch"] is None
    if recipe in REWARD_MODELS + VALUES:  # validate on pairs, where there are some
        assert "val_prompts" not in data and (recipe in UNVALIDATED) != bool({"val_split", "val_share"} & set(data))
        return
    assert {"ImageGrid", "Comparison", "SampleWriter"} <= {cb["class_path"] for cb in t["callbacks"]}
    assert (ROOT / data["val_prompts"]).is_file() and (ROOT / data["test_prompts"]).is_file()
    assert data["val_batch_size"] * t["limit_val_batches"] <= (8 if max_side(data["resolution"]) > 768 else 16)


def test_the_prompts_that_ship():
    rows = read_prompts("configs/prompts/small.jsonl")
    skills = Counter(rows["columns.skill"])
    assert len(set(rows["prompt"])) == 32 and len(skills) == 8 and set(skills.values()) == {4}
    assert max(len(prompt.split()) for prompt in rows["prompt"]) < 50  # CLIP reads 77 tokens


def test_every_hub_repository_of_a_config_stands_in_the_table():
    import_all()
    table, removed = (ROOT / "docs/hub.md").read_text().split("## Removed")
    listed = re.findall(r"^\| `([\w.-]+/[\w.-]+)` \|", table, re.M)
    named = {i for name in NAMES for i in recipes.hub_ids(load_config(name))}
    named |= {recipes.default_sources(cls.__name__).get("path") for cls in subclasses(AlignData)}
    named = {i for i in named if i and not i.startswith("checkpoints/")}
    assert len(listed) == len(set(listed)) and named <= set(listed)
    code = "".join(path.read_text() for path in (ROOT / "lit_align/data").glob("*.py"))
    assert all(i in code for i in set(listed) - named)  # copies that an error message names
    assert not named & set(re.findall(r"`([\w.-]+/[\w.-]+)`", removed.split("use |")[1])) - set(listed)


def sources(part) -> list[dict]:
    """The mappings inside a config that name a hub repository to load a pipeline from."""
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    own = [part] if isinstance(part, dict) and "pretrained" in part else []
    return own + [source for value in inside for source in sources(value)]


def test_recipes_load_the_revision_that_the_table_gives():
    table = (ROOT / "docs/hub.md").read_text()
    given = dict(re.findall(r"^\| `([\w.-]+/[\w.-]+)` \|.*revision (\w{7}) \|$", table, re.M))
    pinned = [s for name in PUBLISHED for s in sources(load_config(name)) if "revision" in s]
    assert {s["pretrained"]: s["revision"][:7] for s in pinned} == given
    assert all(re.fullmatch("[0-9a-f]{40}", s["revision"]) for s in pinned)  # the hub wants all of it
    assert all(s["revision"][:7] == given[s["pretrained"]] for s in pinned)


def test_the_page_of_recipes_is_up_to_date():
    assert recipes.PAGE.read_text() == recipes.page(), "run python -m lit_align.studies.recipes"


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


@pytest.mark.parametrize("name", slow_but(lambda name: not name.startswith("shapes/"), NAMES))
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
    assert given["budget"] in (120, 300) if given["model"].get("class_path") != "Steered" else "budget" not in given
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


def test_two_rewards_are_normalised_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = main(["fit", "--config", "shapes/flow_grpo", "--config", "with/gdpo", "--config", "smoke", *QUIET])
    assert {"train/reward/right", "train/reward/small"} <= set(cli.trainer.callback_metrics)
    assert type(cli.model.advantage).__name__ == "PerReward" and cli.model.advantage.weights == [1.0, 0.2]


@pytest.mark.parametrize("flag,instead", [("gradient_clip_val", "model.max_grad_norm"), ("accumulate_grad_batches", "data.batch_size")])
def test_a_method_with_optimizer_steps_of_its_own_names_its_own_option(flag, instead, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "shapes/ddpo", "--config", "smoke", f"--trainer.{flag}", "2", *QUIET])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"lit_align: DDPO makes its own optimizer steps: set --{instead} in place of --trainer.{flag}."


TINY = """--model.policy.pretrained tiny --model.policy.resolution 32 --model.policy.dtype float32 --data.resolution 32
    --model.sampler.steps 2 --trainer.accelerator cpu --trainer.precision 32-true""".split()


def test_own_pairs_on_one_device(tmp_path, monkeypatch, capsys):
    """The README's command, with tiny weights on a CPU: 20 pairs are 5 batches of 4, so 2 steps an epoch."""
    monkeypatch.chdir(tmp_path)
    with open("pairs.jsonl", "w") as file:
        for i in range(20):
            for key in ("win", "lose"):
                Image.new("RGB", (40, 32), (10 * i, 99, 200 * (key == "win"))).save(f"{i}_{key}.png")
            file.write(json.dumps({"prompt": f"pattern {i}", "win": f"{i}_win.png", "lose": f"{i}_lose.png"}) + "\n")
    own = ["--data", "PreferencePairs", "--data.path", "pairs.jsonl"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]
    cli = main(["fit", "--config", "dpo_sd15", "--config", "one_gpu", *own, *TINY, *quiet])
    said = capsys.readouterr().out
    assert "20 pairs, 16 a step (batch 4 x 1 device x accumulation 4), 4 steps, 2 epochs" in said
    assert cli.trainer.global_step == 4 and type(cli.model.optimizers().optimizer).__name__ == "AdamW8bit"
    run = tmp_path / cli.trainer.default_root_dir
    assert run.parent == tmp_path / "checkpoints/dpo_sd15+one_gpu" and run.name.startswith("data=PreferencePairs,path=pairs.jsonl,")
    made = sorted(p.relative_to(run).as_posix() for p in run.glob("*/*") if "step" in p.name)
    epochs = ["checkpoints/epoch=0-step=2.ckpt", "checkpoints/epoch=1-step=4.ckpt"]
    assert made == [*epochs, *(f"samples/step_{n:06d}.png" for n in (0, 2, 4))]
    assert (run / "policy/pytorch_lora_weights.safetensors").is_file()


def test_methods_that_sample_on_one_device(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na fish\n")
    small = ["--model.rollout.steps", "2", "--trainer.max_steps", "4", "--trainer.enable_progress_bar", "false"]
    flags = [*TINY, *small, "--data.path", "prompts.txt"]
    cli = main(["fit", "--config", "ddpo_sd15", "--config", "one_gpu_online", *flags])
    assert "3 prompts, 2 a batch (batch 2 x 1 device), 4 optimizer steps in all" in capsys.readouterr().out
    assert cli.model.policy.adapter.rank == 16 and cli.model.samples_per_prompt == 8 and cli.trainer.global_step == 4


def test_a_command_writes_whatever_the_callbacks(tmp_path, monkeypatch, capsys):
    """Without callbacks of its own, and without a reward."""
    monkeypatch.chdir(tmp_path)
    run, bare = tmp_path / "checkpoints/dpo_sd15+one_gpu+smoke", ["--trainer.callbacks", "null", *QUIET]
    files = ["--config", "dpo_sd15", "--config", "one_gpu", "--config", "smoke"]
    main(["predict", *files, *bare])
    lines = (run / "predict/metadata.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all((run / "predict" / json.loads(line)["file_name"]).is_file() for line in lines)
    capsys.readouterr()
    main(["test", *files, *bare])
    said = capsys.readouterr().out.strip().splitlines()
    assert (run / "comparison.png").is_file()
    assert said[-1] == "there is no reward to compare by: name one in --model.rewards for figures and a win rate."
    main(["validate", *files, *QUIET])
    assert "samples: checkpoints/dpo_sd15+one_gpu+smoke/samples/validate.png" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["validate", *files, *QUIET, "--data.val_prompts", "null"])
    assert "nothing to validate on: set --data.val_prompts" in capsys.readouterr().err


@pytest.mark.parametrize("gpus,flags,said", [
    (0, "", "trainer.accelerator is gpu and PyTorch finds no GPU on this machine"),
    (0, "--trainer.accelerator cpu --trainer.devices 4096", "trainer.devices is 4096 and this machine has {cores} CPU core"),
    (0, "--trainer.accelerator auto --trainer.devices 4096", "trainer.devices is 4096 and this machine has {cores} CPU core"),
    (1, "", "trainer.devices is 16 and this machine has 1 GPU: set --trainer.devices 1, or add --config one_gpu.yaml"),
    (2, "--trainer.devices [0,2]", "trainer.devices is [0, 2] and this machine has 2 GPUs: set --trainer.devices 2"),
])  # fmt: skip
def test_missing_devices_are_named_before_anything_is_loaded(gpus, flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("lit_align.cli.CLI.instantiate_classes", lambda self: pytest.fail("something was loaded"))
    with pytest.raises(SystemExit):
        main(["fit", "--config", "dpo_sd15", *flags.split()])
    lines = capsys.readouterr().err.strip().splitlines()
    assert said.format(cores=os.cpu_count()) in lines[-1] and not (tmp_path / "checkpoints").exists()


def test_a_missing_dataset_names_its_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "dpo_sd15", *TINY, "--model.rewards", "[]", "--trainer.devices", "1", "--trainer.strategy", "auto", *QUIET])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "liuhuohuo2/pick-a-pic-v2 is neither a file" in said and "pickapic-anonymous/pickapic_v1" in said
    assert "--data.path" in said
