"""A run's folder is that of its configuration, as a user types it: sweeps, tests, restarts, resumed and killed runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from parabola import BEST, CONFIG, LR, Parabola, complaint, run, weight_after

import lit_align.policies.adapters  # noqa: F401
from lit_align import paths
from lit_align.config_difference import differences, folder_name, tell, training
from lit_align.paths import unfinished
from lit_align.run_folder import locked

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning, on runs this short
ROOT = Path("checkpoints/small/parabola")
FIT = "fit --config parabola"


def saved(folder: Path | str, name: str = "config.yaml") -> dict:
    return yaml.safe_load(Path(folder, name).read_text())


def beta_of(folder) -> float:
    return saved(folder)["model"]["init_args"]["beta"]


def steps(folder, name: str = "last.ckpt") -> int:
    return torch.load(Path(folder, "checkpoints", name), weights_only=True)["global_step"]


def folder_of(command: str) -> Path:
    return Path(run(command).trainer.default_root_dir)


# Names


def config(beta=1.0, lr=0.1, path="pairs.csv", adapter=None, callbacks=(), **trainer) -> dict:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": lr, "momentum": 0.0}}
    policy = {"class_path": "p.Policy", "init_args": {"adapter": adapter, "compile": False}}
    model = {"beta": beta, "optimizer": optimizer, "policy": policy, "sampler": {"steps": 5}}
    return {
        "seed_everything": 42,
        "model": {"class_path": "m.Method", "init_args": model},
        "data": {"class_path": "d.Pairs", "init_args": {"path": path, "num_workers": 0, "val_prompts": None}},
        "trainer": {"max_steps": 4, "devices": 1, "callbacks": list(callbacks)} | trainer,
        "ckpt_path": None,
    }


LORA = {"class_path": "lit_align.policies.adapters.LoRA", "init_args": {"rank": 4, "alpha": None}}


@pytest.mark.parametrize(
    "changed, name",
    [
        (config(beta=100.0), "beta=100"),
        (config(lr=1e-5, beta=0.5), "beta=0.5,lr=1e-05"),
        (config(path="my/own pairs/"), "path=own-pairs"),
        (config(adapter=LORA), "adapter=LoRA-rank-4"),
        (config(max_steps=20, precision="bf16-mixed"), "max_steps=20,precision=bf16-mixed"),
        (config(max_time={"hours": 1, "minutes": 5}), "max_time=hours-1-minutes-5"),
        (config(callbacks=[{"class_path": "lit_align.callbacks.EMA", "init_args": {"decay": 0.5}}]), "EMA=decay-0.5"),
        (config(callbacks=[{"class_path": "lit_align.callbacks.EMA", "init_args": {"decay": 0.9999}}]), "EMA=on"),
        (config(devices=8, accelerator="gpu", logger=False, limit_val_batches=3), ""),
        (config(callbacks=[{"class_path": "lit_align.callbacks.ImageGrid"}]), ""),
        ({**config(), "ckpt_path": "last", "budget": 60}, ""),
        ({**config(), "seed_everything": 7}, "seed_everything=7"),
    ],
)
def test_what_changes_training_and_nothing_else_is_in_the_name(changed, name):
    found = differences(training(config()), training(changed))
    assert folder_name(found) == name and bool(found) == bool(name)


def test_two_options_of_one_name_are_told_apart_and_long_names_are_cut_apart():
    assert folder_name({"data.seed": (1, 2), "model.reward.seed": (1, 3)}) == "data.seed=2,model.reward.seed=3"
    long = [folder_name({f"model.an_option_with_a_long_name_{i}": (0, 1) for i in range(n)}) for n in (9, 10)]
    assert long[0] != long[1] and max(map(len, long)) <= 100


def test_an_argument_that_another_version_of_a_class_lacks_is_no_difference():
    old, new = training(config()), training(config())
    del old["model"]["init_args"]["beta"]
    assert differences(old, new) == differences(new, old) == {}
    new["model"]["class_path"] = "m.Other"
    assert differences(new, old) == {"model": ("m.Other", "m.Method")}
    assert tell({"model.beta": (500.0, 100.0)}) == "model.beta 500 in place of 100"


# Sweeps


def test_a_sweep_keeps_every_result_and_test_finds_each(configs, capsys):
    for beta in (5, 7):
        assert folder_of(f"{FIT} --model.beta {beta}") == ROOT / f"beta={beta}"
    run(f"{FIT} --model.optimizer.lr 0.2")
    assert [beta_of(ROOT / f"beta={beta}") for beta in (5, 7)] == [5, 7] and not (ROOT / "config.yaml").exists()
    kept = {path: path.read_bytes() for path in ROOT.rglob("*.ckpt")}
    for command in ("test", "predict"):
        assert run(f"{command} --config parabola --ckpt_path last --model.beta 7").trainer.default_root_dir == str(ROOT / "beta=7")
    other = run("predict --config parabola --model.optimizer.init_args.lr=2e-1 --ckpt_path last")  # the same number
    assert other.model.w.item() == pytest.approx(1 - (1 - 2 * 0.2) ** 4)
    saved_one = run(f"test --config {ROOT}/beta=5/config.yaml --ckpt_path best")
    assert saved_one.trainer.default_root_dir == str(ROOT / "beta=5") and saved_one.model.beta == 5
    assert kept == {path: path.read_bytes() for path in ROOT.rglob("*.ckpt")}

    said = complaint("test --config parabola --ckpt_path last --model.beta 100", capsys)
    assert "no run of this configuration in checkpoints/small/parabola." in said
    assert f"{ROOT}/beta=5 has model.beta 5 in place of 100; {ROOT}/beta=7 has model.beta 7 in place of 100; {ROOT}/lr=0.2" in said
    assert f"--config {ROOT}/beta=5/config.yaml" in said
    assert "in place of 1;" in complaint("predict --config parabola --ckpt_path best", capsys)


def test_flags_that_change_nothing_get_no_folder_of_their_own(configs):
    run(FIT)
    same = f"--model.beta 1 --trainer.max_steps=4 --model.optimizer.init_args.lr {LR} --trainer.log_every_n_steps 1 --trainer.logger false"
    assert folder_of(f"{FIT} {same} --trainer.callbacks+=Throughput --budget 3 --ckpt_path last") == ROOT
    assert folder_of("test --config parabola --trainer.devices 1 --trainer.limit_test_batches 1 --ckpt_path last") == ROOT
    assert folder_of("test --config parabola --trainer.precision bf16-mixed --ckpt_path last") == ROOT  # its weights at another precision
    assert [p.name for p in Path("checkpoints").iterdir()] == ["small"] and not list(ROOT.glob("*=*"))


def test_a_config_that_was_edited_gets_a_folder_of_its_own(configs):
    Path("mine.yaml").write_text(CONFIG)
    run("fit --config mine.yaml")
    Path("mine.yaml").write_text(CONFIG.replace("data:", "seed_everything: 3\ndata:"))
    assert folder_of("fit --config mine.yaml") == Path("checkpoints/mine/seed_everything=3")
    assert folder_of("test --config mine.yaml --ckpt_path last") == Path("checkpoints/mine/seed_everything=3")
    Path("mine.yaml").write_text(CONFIG)
    assert folder_of("test --config mine.yaml --ckpt_path last") == Path("checkpoints/mine")


def test_the_folder_that_is_typed_is_the_folder(configs, capsys):
    given = "--trainer.default_root_dir mine"
    assert folder_of(f"{FIT} {given} --model.beta 5") == Path("mine") and beta_of("mine") == 5
    assert folder_of(f"test --config parabola {given} --model.beta 5 --trainer.max_steps 9 --ckpt_path last") == Path("mine")
    for command in (FIT, f"{FIT} --ckpt_path last"):
        said = complaint(f"{command} {given} --model.beta 6", capsys)
        assert "mine holds a run with model.beta 5 in place of 6: give another --trainer.default_root_dir" in said
    assert "mine holds a run with model.beta 5 in place of 1: give that run's flags" in complaint(f"test --config parabola {given} --ckpt_path last", capsys)
    assert folder_of(f"{FIT} {given} --model.beta 5 --trainer.max_steps 6 --ckpt_path last") == Path("mine") and steps("mine") == 6
    assert folder_of("fit --config mine/config.yaml --model.beta 8") == Path("mine/beta=8") and beta_of("mine") == 5


def test_a_test_lacks_no_callback_of_its_run_and_may_have_more(configs, capsys):
    run(f"{FIT} --trainer.callbacks+=EMA")
    assert folder_of(f"{FIT} --model.beta 5") == ROOT / "beta=5"
    assert "EMA=on has trainer.callbacks.EMA on in place of null" in complaint("test --config parabola --ckpt_path last", capsys)
    more = "--trainer.callbacks+=EMA --trainer.callbacks.decay=0.3 --trainer.callbacks+=LoRAScaling --trainer.callbacks.scale=0.5"
    assert folder_of(f"test --config parabola --ckpt_path last {more}") == ROOT / "EMA=on"
    assert folder_of("test --config parabola --ckpt_path last --model.beta 5 --trainer.callbacks+=LoRAScaling") == ROOT / "beta=5"


# Again, and on


def test_the_same_command_starts_anew_says_so_and_keeps_the_last_checkpoint(configs, capsys, caplog, monkeypatch):
    run(FIT)
    monkeypatch.setattr(Parabola, "die_at", 2)
    with pytest.raises(RuntimeError, match="killed"), caplog.at_level("INFO"):
        run(FIT)
    said = caplog.text
    assert f"{ROOT} holds a run of this configuration: training starts anew and overwrites it; --ckpt_path last would" in said
    assert "the last checkpoint of the run before is" in said and steps(ROOT, "before-last.ckpt") == 4
    assert steps(ROOT) == 2
    monkeypatch.setattr(Parabola, "die_at", -1)
    assert run(f"{FIT} --ckpt_path last").model.w.item() == pytest.approx(weight_after(4))


def test_a_run_that_fails_before_its_first_step_leaves_the_one_before(configs, monkeypatch):
    run(FIT)
    monkeypatch.setattr(Parabola, "die_at", 0)
    with pytest.raises(RuntimeError, match="killed"):
        run(FIT)
    assert steps(ROOT) == 4 and beta_of(ROOT) == 1
    with pytest.raises(RuntimeError, match="killed"):
        run(f"{FIT} --model.beta 9")
    assert not (ROOT / "beta=9/config.yaml").exists() and not (ROOT / "beta=9/.lock").exists()


def test_another_learning_rate_or_length_continues_the_same_run(configs, caplog):
    run(FIT)
    with caplog.at_level("INFO"):
        resumed = run(f"{FIT} --ckpt_path last --model.optimizer.init_args.lr 0.3 --trainer.max_steps 5")
    assert f"continues the run in {ROOT}, which had model.optimizer.lr 0.1 in place of 0.3, trainer.max_steps 4 in place of 5" in caplog.text
    assert Path(resumed.trainer.default_root_dir) == ROOT and resumed.trainer.global_step == 5 and not list(ROOT.glob("*=*"))
    assert [saved(ROOT, name)["trainer"]["max_steps"] for name in ("config.yaml", "config.1.yaml")] == [5, 4]
    for flags in ("", "--model.optimizer.lr 0.3 --trainer.max_steps 5"):  # both are this run's
        assert run(f"test --config parabola --ckpt_path last {flags}").trainer.default_root_dir == str(ROOT)
    path = ROOT / f"checkpoints/step={BEST}.ckpt"
    assert folder_of(f"{FIT} --ckpt_path {path} --model.optimizer.lr 0.3 --trainer.max_steps 5") == ROOT


def test_last_of_a_sweep_never_continues_a_sibling(configs):
    """The command of a requeued job: the first time it starts, then it continues its own run."""
    for lr in (0.2, 0.3):
        for length in (4, 4):
            job = run(f"{FIT} --model.optimizer.lr {lr} --trainer.max_steps {length} --ckpt_path last")
            assert job.trainer.default_root_dir == str(ROOT / f"lr={lr}")
            assert job.model.w.item() == pytest.approx(1 - (1 - 2 * lr) ** 4)
    job = run(f"{FIT} --model.beta 5 --ckpt_path {ROOT}/lr=0.2/checkpoints/last.ckpt --trainer.max_steps 6")  # a branch of it
    assert job.trainer.default_root_dir == str(ROOT / "beta=5,max_steps=6") and steps(ROOT / "lr=0.2") == 4
    assert steps(ROOT / "beta=5,max_steps=6") == 6


def test_results_of_a_checkpoint_file_go_to_the_folder_of_its_run(configs, caplog):
    run(f"{FIT} --model.beta 5")
    with caplog.at_level("INFO"):
        test = run(f"test --config parabola --ckpt_path {ROOT}/beta=5/checkpoints/last.ckpt")
    assert test.trainer.default_root_dir == str(ROOT / "beta=5") and "is of a run with model.beta 5 in place of 1" in caplog.text


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_last_is_that_of_the_most_steps_whatever_the_clock_says(configs, command):
    run(FIT)
    folder = ROOT / "checkpoints"
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    (folder / "last.ckpt").rename(folder / "last-v1.ckpt")
    checkpoint["global_step"], checkpoint["state_dict"]["w"] = 2, torch.tensor(9.0)
    torch.save(checkpoint, folder / "last.ckpt")
    os.utime(folder / "last-v1.ckpt", (0, 0))  # the clock was set back
    assert run(f"{command} --config parabola --ckpt_path last").model.w.item() == pytest.approx(weight_after(4))


# Two writers

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 77 on elsewhere")
file.flush()
print("locked", flush=True)
time.sleep(600)
"""


def test_the_second_fit_is_refused_at_once_and_a_dead_ones_lock_is_free(configs, capsys):
    ROOT.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, ROOT / ".lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        assert f"process 77 on elsewhere is training in {ROOT}: wait for it" in complaint(FIT, capsys)
        assert folder_of(f"{FIT} --model.beta 5") == ROOT / "beta=5"
    finally:
        holder.kill()  # SIGKILL
        holder.wait()
    assert (ROOT / ".lock").exists()
    assert run(FIT).trainer.global_step == 4 and not (ROOT / ".lock").exists()


def test_a_command_that_fails_before_it_trains_leaves_no_folder(configs, capsys):
    complaint(f"{FIT} --model.beta -1", capsys)
    assert not Path("checkpoints").exists()
    with locked(Path("checkpoints/a")):
        assert f"process {os.getpid()} on " in Path("checkpoints/a/.lock").read_text()
    assert not Path("checkpoints").exists()


def test_unfinished_files_have_a_name_of_their_process(tmp_path):
    code = "import sys; from lit_align.paths import unfinished; print(unfinished(sys.argv[1]))"
    env = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    other = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], env=env, capture_output=True, text=True).stdout.strip()
    assert other.endswith(".part") and other != str(unfinished(tmp_path / "a")) == str(unfinished(f"{tmp_path}/a/"))


SLOW = """
import sys, time
from parabola import Method, Parabola, Source
from lit_align import cli
step = Parabola.training_step
def training_step(self, batch, i):
    time.sleep(600 if self.global_step == 2 else 0)
    return step(self, batch, i)
Parabola.training_step = training_step
cli.main(sys.argv[1:], Method, Source)
"""


@pytest.mark.slow
def test_a_killed_fit_and_the_next(configs, capsys):
    Path("mine.yaml").write_text(CONFIG)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (paths.ROOT, paths.ROOT / "tests")))}
    first = subprocess.Popen([sys.executable, "-c", SLOW, "fit", "--config", "mine.yaml"], env=env, stderr=subprocess.DEVNULL)
    last, until = Path("checkpoints/mine/checkpoints/last.ckpt"), time.time() + 300
    while not (last.exists() and steps("checkpoints/mine") == 2) and time.time() < until and first.poll() is None:
        time.sleep(0.1)
    assert f"process {first.pid} on " in complaint("fit --config mine.yaml --ckpt_path last", capsys)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    resumed = run("fit --config mine.yaml --ckpt_path last")
    assert resumed.trainer.global_step == 4 and resumed.model.w.item() == pytest.approx(weight_after(4))
