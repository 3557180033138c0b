"""The command line: configs by name, what is said when something is wrong, runs."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.plugins.io import TorchCheckpointIO
from parabola import BEST, CONFIG, LR, Parabola, Source, complaint, printed, run, weight_after

from lit_align import cli, cli_errors, overview, paths
from lit_align import configs as configs_module
from lit_align.checkpoint import AtomicCheckpointIO

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning, on runs this short

# Configs by name


@pytest.mark.parametrize(
    "name, file",
    [
        ("sdxl", "sdxl.yaml"),
        ("sdxl.yaml", "sdxl.yaml"),
        ("small/parabola", "small/parabola.yaml"),
        ("parabola.yaml", "small/parabola.yaml"),  # and not tall_parabola.yaml
        ("beta", "with/beta.yaml"),
        ("with/twice.yaml", "with/twice.yaml"),
    ],
)
def test_config_is_found_by_name(configs, name, file):
    assert configs_module.find_config(name) == configs / file


def test_a_file_of_the_working_directory_comes_first(configs):
    Path("sdxl.yaml").touch()
    assert configs_module.find_config("sdxl.yaml") == Path("sdxl.yaml").resolve()


@pytest.mark.parametrize("name, said", [("twice", "small/twice.yaml, with/twice.yaml"), ("sdlx", "are sdxl.yaml")])
def test_config_that_is_not_one_file(configs, capsys, name, said):
    assert said in complaint(f"fit --config {name}", capsys)


def test_later_configs_win_and_flags_win_over_all(configs, capsys):
    config = printed("fit --config parabola --config beta --trainer.max_steps 7", capsys)
    assert config["model"]["init_args"]["beta"] == 3 and config["trainer"]["max_steps"] == 7
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == LR  # of the first
    assert config["seed_everything"] == 42


def test_paths_in_configs_mean_the_project_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.find("configs/shapes/dpo.yaml") == str(Path(__file__).parents[1] / "configs/shapes/dpo.yaml")
    assert paths.find("stabilityai/sdxl") == "stabilityai/sdxl"
    Path("configs").mkdir()
    assert paths.find("configs") == "configs"


# What is said when something is wrong


@pytest.mark.parametrize(
    "flags, said",
    [
        ("fiit", "no command fiit; did you mean fit?"),
        ("train", "no command train; there are fit, validate, test, predict, export, list, "),
        ("serv", "no command serv; did you mean serve?"),
        ("fit", "--config"),
        ("fit --config parabola --model Parabolla", "no class Parabolla; did you mean Parabola"),
        ("fit --config parabola --model torch.nn.Linear", "not correspond to a subclass of Method, got torch.nn.L"),
        ("fit --config parabola --model nowhere.Parabola", "no module nowhere"),
        ("fit --config parabola --data Zeroes", "no class Zeroes; did you mean Zeros"),
        ("fit --config parabola --model.betta 2", "Parabola has no option betta; did you mean beta"),
        ("fit --config parabola --beta 2", "no option beta at this place; type --model.beta."),
        ("fit --config parabola --max_steps 2", "no option max_steps at this place; type --trainer.max_steps."),
        ("fit --config parabola --size=2", "no option size at this place; type --data.size."),
        ("fit --config parabola --lr 2", "no option lr at this place; type --model.optimizer.lr."),
        ("fit --config parabola --model.size 2", "Parabola has no option size; type --data.size."),
        ("fit --config parabola --decay 2", "no option decay at this place; decay is an option of "),
        ("fit --model Parabola --data Zeros --beta 2", "no option beta at this place; type --model.beta."),
        ("fit --config parabola --model.beta two", "beta: Expected a float, got two"),
        ("fit --config parabola --model.beta -1", "beta is -1.0: give a positive one."),
        ("fit --config parabola --model.optimizer torch.optim.Adm", "no class Adm; did you mean Adam"),
        ("fit --config parabola --model.optimizer.lrr 2", "SGD has no option lrr; did you mean lr"),
        ("fit --config parabola --trainer.max_stepps 2", "no option trainer.max_stepps; did you mean max_steps"),
        ("fit --config parabola --trainer.callbacks+=EMMA", "no class EMMA; did you mean EMA"),
        ("fit --config parabola --trainer.devices 0", "devices"),
        ("test --config parabola --ckpt_path last", "no last checkpoint in checkpoints/small/parabola"),
        ("predict --config parabola --ckpt_path best", "no last checkpoint in checkpoints/small/parabola"),
        ("fit --config parabola --trainer.max_steps 0", "trainer.max_steps is 0, with which fit does nothing"),
        ("fit --config parabola --trainer.limit_train_batches 0", "trainer.limit_train_batches is 0, with which fit does"),
        ("validate --config parabola --trainer.limit_val_batches 0", "trainer.limit_val_batches is 0, with which validate"),
        ("test --config parabola --trainer.limit_test_batches 0", "trainer.limit_test_batches is 0, with which test does"),
        ("predict --config parabola --trainer.limit_predict_batches 0", "trainer.limit_predict_batches is 0, with which pr"),
        ("fit --config parabola --ckpt_path nowhere.ckpt", "no checkpoint nowhere.ckpt"),
        ("fit --config parabola --model.base 2", "Parabola has no option base, which is one of Cubic."),
        ("fit --config parabola --model.optimizer os.system", "os.system makes no Optimizer"),
        ("fit --config with/beta", "with/beta changes a recipe: name the recipe first"),
        ("fit --config with/beta --config parabola", "with/beta changes a recipe: name the recipe first"),
        ("fit --config parabola --model.lr_scheduler subprocess.Popen", "Parabola has no option lr_scheduler"),
    ],
)
def test_wrong_flag(configs, capsys, flags, said):
    assert said in complaint(flags, capsys)


@pytest.mark.parametrize(
    "text, said",
    [
        ("modell: {class_path: Parabola}", "no option modell.class_path; did you mean model"),
        ("model: {class_path: Parabolla}", "wrong.yaml: there is no class Parabolla; did you mean Parabola"),
        ("model: {init_args: {size: 2}}", "wrong.yaml: Parabola has no option size; type --data.size."),
        ("model: {init_args: {betta: 2}}", "wrong.yaml: Parabola has no option betta; did you mean beta"),
        ("trainer: {max_stepps: 2}", "no option trainer.max_stepps; did you mean max_steps"),
        ("trainer: {callbacks: [{class_path: EMA, init_args: {deacy: 1}}]}", "EMA has no option deacy; did you mean decay"),
        ("trainer: {callbacks: [{class_path: EMA, init_args: {decay: x}}]}", "decay: Expected a float, got x"),
        ("model: [", "wrong.yaml: line 1"),
        ("", "wrong.yaml is empty"),
        ("trainer: {max_steps: 1, max_steps: 2}", "wrong.yaml: line 1: the key max_steps is given twice."),
        ("base: pairs", "wrong.yaml: only a file directly under configs/shapes may have a base"),
    ],
)
def test_wrong_key(configs, capsys, text, said):
    Path("wrong.yaml").write_text(text)
    assert said in complaint("fit --config parabola --config wrong.yaml", capsys)


@pytest.mark.parametrize(
    "config, said",
    [
        ("model: {init_args: {gamma: 1}}", "DiffusionDPO has no option gamma, which is one of DenseReward, DiffusionSimPO, SmPO."),
        ("model: {init_args: {samples_per_prompt: 2}}", "DiffusionDPO has no option samples_per_prompt, which is one of "),
        ("model: {class_path: DPO}", "there is no class DPO; did you mean DiffusionDPO?"),
        ("model: {init_args: {rank: 8}}", "DiffusionDPO has no option rank, which is one of NoiseHypernetwork"),
        ("model: {init_args: {sampler: {init_args: {gama: 1}}}}", "Sampler has no option gama; it has guidance_scale, "),
        ("model: {init_args: {policy: {init_args: {adapter: {class_path: LoRA, init_args: {rang: 1}}}}}}", "LoRA has no option rang; did you mean rank?"),
        ("model: {init_args: {optimizer: {class_path: os.system, init_args: {command: touch ran}}}}", "os.system makes no Optimizer"),
        ("model: {init_args: {optimizer: {class_path: os.system, dict_kwargs: {command: touch ran}}}}", "os.system makes no Optimizer"),
        ("model: {init_args: {lr_scheduler: {class_path: subprocess.Popen, init_args: {args: touch ran, shell: true}}}}", "subprocess.Popen makes no LRScheduler"),
    ],
)  # fmt: skip
def test_wrong_key_of_a_shipped_class(config, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text(config)
    with pytest.raises(SystemExit) as exit:
        cli.main(["fit", "--config", "shapes/dpo", "--config", "wrong.yaml", "--config", "smoke"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert exit.value.code == 2 and said in last
    if "samples_per_prompt" in said:
        assert re.search(r"one of \w+, \w+, \w+, \w+ and \d+ more\.$", last)
    assert os.listdir() == ["wrong.yaml"]


@pytest.mark.parametrize("raised, said", [("ValueError", True), ("KeyError", True), ("OSError", True), ("bug", False)])
def test_an_error_while_running(configs, capsys, monkeypatch, raised, said):
    """One that a `raise` of this project worded, or the system's, is one sentence; any other keeps its traceback."""

    def training_step(self, batch, batch_idx):
        if raised == "bug":
            return {}["nothing"]
        if raised == "OSError":
            open("/nowhere/at/all")
        Source.check(raised)

    monkeypatch.setattr(Parabola, "training_step", training_step)
    monkeypatch.setattr(cli_errors, "PACKAGE", Path(__file__).parent)
    if not said:
        with pytest.raises(KeyError):
            run("fit --config parabola")
        return
    with pytest.raises(SystemExit) as exit:
        run("fit --config parabola")
    error = capsys.readouterr().err
    assert exit.value.code == 1 and error.splitlines()[-1].startswith("lit_align: ") and "Traceback" not in error
    with pytest.raises(SystemExit):
        run("fit --config parabola --debug")
    assert "Traceback" in capsys.readouterr().err


# Runs


def test_killed_run_resumes(configs, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Parabola, "die_at", 2)
        run("fit --config parabola")
    part = Path("checkpoints/small/parabola/checkpoints/last.ckpt.elsewhere.1.part")
    part.write_bytes(b"half")
    resumed = run("fit --config parabola --ckpt_path last")
    assert resumed.trainer.fit_loop.epoch_loop.batch_progress.total.completed == 4
    assert resumed.model.w.item() == pytest.approx(weight_after(4)) and not part.exists()


@pytest.mark.parametrize("how, code", [("SIGTERM", 128 + signal.SIGTERM), ("SIGINT", 1)])
def test_a_run_that_is_stopped_saves_where_it_is_and_does_not_look_finished(configs, monkeypatch, how, code):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    rarely = CONFIG.replace("every_n_train_steps: 1", "every_n_train_steps: 100")
    (configs / "small/parabola.yaml").write_text(rarely)

    def training_step(self, batch, batch_idx, step=Parabola.training_step):
        if self.global_step == 2:
            os.kill(os.getpid(), getattr(signal, how))
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(Parabola, "training_step", training_step)
        run("fit --config parabola")
    signal.signal(signal.SIGINT, before)  # Lightning ignores further ones
    assert exit.value.code == code
    last = torch.load("checkpoints/small/parabola/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] in (2, 3) and last["state_dict"]["w"].item() == pytest.approx(weight_after(last["global_step"]))
    resumed = run("fit --config parabola --ckpt_path last")
    assert resumed.trainer.global_step == 4 and resumed.model.w.item() == pytest.approx(weight_after(4))


def test_an_error_saves_nothing_more(configs, monkeypatch):
    (configs / "small/parabola.yaml").write_text(CONFIG.replace("every_n_train_steps: 1", "every_n_train_steps: 100"))
    monkeypatch.setattr(Parabola, "die_at", 2)
    with pytest.raises(RuntimeError, match="killed"):
        run("fit --config parabola")
    assert not list(Path().rglob("*.ckpt"))


def test_last_where_there_is_none_starts_a_run(configs):
    with pytest.warns(match="no last checkpoint available"):
        assert run("fit --config parabola --ckpt_path last").trainer.global_step == 4


@pytest.mark.parametrize("which, step", [("last", 4), ("best", BEST), (f"step={BEST}.ckpt", BEST)])
def test_test_and_predict_use_the_weights_of_the_run(configs, which, step):
    run("fit --config parabola")
    Path("checkpoints/small/parabola").rename("moved")
    path = f"moved/checkpoints/{which}" if which.endswith(".ckpt") else which
    test = run(f"test --config parabola --trainer.default_root_dir moved --ckpt_path {path}")
    assert test.model.w.item() == pytest.approx(weight_after(step))
    assert not test.model.inference_mode  # so that steered sampling can take gradients
    predict = run(f"predict --config parabola --trainer.default_root_dir moved --ckpt_path {path}")
    assert predict.model.w.item() == pytest.approx(weight_after(step))


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_what_is_typed_wins_over_the_checkpoint(configs, subcommand):
    run("fit --config parabola --model.beta 2 --trainer.max_steps 2")
    path = "checkpoints/small/parabola/beta=2,max_steps=2/checkpoints/last.ckpt"
    assert torch.load(path, weights_only=True)["hyper_parameters"]["beta"] == 2  # Lightning would put it back
    assert run(f"{subcommand} --config parabola --ckpt_path {path} --model.beta 5").model.beta == 5


def test_checkpoints_are_atomic_unless_told_otherwise(configs):
    assert isinstance(run("fit --config parabola").trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    own = "--trainer.plugins lightning.pytorch.plugins.io.TorchCheckpointIO"
    assert type(run(f"fit --config parabola {own}").trainer.strategy.checkpoint_io) is TorchCheckpointIO


# The module itself


def test_help_and_list_import_nothing_heavy():
    for words, said in (([], "three minutes"), (["--help"], "--config shapes/dpo.yaml"), (["list"], "DiffusionDPO")):
        command = [sys.executable, "-X", "importtime", "-m", "lit_align", *words]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(paths.ROOT)}, capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout
        assert not re.search(r"\| +(torch|lightning|jsonargparse)$", done.stderr, re.M)


def test_the_terminal_of_a_run_is_ours(tmp_path):
    """From the shell, as in `make quickstart`: what a user wants to know, and no third-party message."""
    command = [sys.executable, "-m", "lit_align", "fit", "--config", "shapes/dpo.yaml", "--config", "smoke.yaml"]
    env = os.environ | {"PYTHONPATH": str(paths.ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    noise = "float32: \\[|torchvision|torch_dtype|Loading|LeafSpec|eval mode|litlogger|PU available|Writing model|Seed set|Epoch|\r|Already"
    assert not re.findall(f".*(?:{noise}).*", done.stdout)
    for said in ("DiffusionDPO trains", "with a reference", "results in checkpoints/shapes/dpo+smoke", "2/2 steps (100 %)", "last.ckpt resumes"):
        assert said in done.stdout
    assert len(done.stdout.splitlines()) < 25, done.stdout


def test_list_names_what_there_is(capsys):
    assert overview.answer(["list"]) and not overview.answer(["fit"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert {"DiffusionDPO", "DDPO", "FKSteering", "dpo_sdxl", "shapes/dpo", "with/smoke", "ShapesJudge", "CLIPScore", "PickAPic", "StableDiffusionXL", "VendiScore"} <= set(lines)
    assert not {"Algorithm", "Preference", "OnlinePreference", "PolicyGradient", "Reward", "AlignData", "Policy", "shapes/base/pairs"} & set(lines)
    assert all(len(line.split()) > 2 for name, line in lines.items() if line.startswith("  "))  # each says something
    with pytest.raises(SystemExit, match="no list of recipe; there are methods, steering, recipes"):
        overview.answer(["list", "recipe"])


def test_python_m_lit_align_from_another_directory(tmp_path):
    """One method's manual, out of its docstring, with nothing heavy imported."""
    command = [sys.executable, "-X", "importtime", "-m", "lit_align", "fit", "--model.help", "DiffusionDPO"]
    env = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert "--model.beta" in done.stdout and "coefficient of D" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "lit_align.cli" in imported
    assert not imported & {"diffusers", "peft", "datasets", "bitsandbytes"}


def test_a_published_config_from_another_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "shapes/dpo", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"].endswith(".DiffusionDPO")


def test_null_on_the_command_line_is_no_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "dpo_sdxl", "--model.policy.vae", "null", "--model.policy.revision", "null", "--print_config"])
    policy = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["policy"]["init_args"]
    assert policy["vae"] is None and policy["revision"] is None


def test_what_a_constructor_deep_inside_says_is_the_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "dpo_sd15", "--config", "smoke", "--model.policy.scheduler", '{"rescale_betas_zero_snr": true}'])
    said = capsys.readouterr().err.splitlines()[-1]
    why = "epsilon prediction says nothing at zero SNR; use v_prediction."
    assert said == f"lit_align: the scheduler has zero SNR at its end: {why}"


@pytest.mark.parametrize("flags,said", [
    ("--model.optimizer.init_args.lr -1", "optimizer or lr_scheduler: Invalid learning rate: -1.0"),
    ("--model.optimizer.init_args.betas [2,0.9]", "optimizer or lr_scheduler: Invalid beta parameter at index 0: 2.0"),
    ("--model.lr_scheduler torch.optim.lr_scheduler.LinearLR --model.lr_scheduler.start_factor 3", "optimizer or lr_scheduler: Starting multiplicative factor"),
])  # fmt: skip
def test_what_pytorch_says_of_an_optimizer_is_the_sentence(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "shapes/dpo", "--config", "smoke", *flags.split()])
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"lit_align: {said}")
