"""What the studies share."""

import json
import subprocess
import sys

import pytest
from torch.utils.tensorboard import SummaryWriter

from lit_align.studies import runs


def test_fifths():
    logged = {"a": [float(i) for i in range(10)], "b": [7.0]}
    assert runs.fifth(logged, 0) == {"a": 0.5, "b": 7.0} and runs.fifth(logged, -1) == {"a": 8.5, "b": 7.0}


def test_more_seeds_on_the_same_prompts_do_not_narrow_the_interval():
    run = lambda low, high: {"exact": {"all": {"gain_interval": [low, high]}}}
    assert runs.half_interval([run(-1, 2)]) == 1.5
    assert runs.half_interval([run(-1, 1), run(0, 2)]) == 1.0


def test_a_table_and_a_list_of_values():
    assert runs.markdown(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"
    assert runs.alternatives([2, 1, 2]) == "1 or 2"


def test_records_survive_the_disk(tmp_path):
    assert runs.read_records(tmp_path / "r.json") == {}
    runs.write_records(tmp_path / "r.json", {"600 s": {"dpo": {"1": {"x": 0.5}}}})
    assert runs.read_records(tmp_path / "r.json") == {"600 s": {"dpo": {"1": {"x": 0.5}}}}


def test_two_writers_lose_no_record(tmp_path):
    code = "import sys; from pathlib import Path; from lit_align.studies.runs import add_record as a; [a(Path(sys.argv[1]), ('120 s', 'dpo', sys.argv[2] + str(i)), {}) for i in range(30)]"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r.json"), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(runs.read_records(tmp_path / "r.json")["120 s"]["dpo"]) == 60
    with runs.alone(tmp_path / "run") as mine, runs.alone(tmp_path / "run", wait=False) as other:
        assert (mine, other) == (True, False)
    with runs.alone(tmp_path / "run", wait=False) as later:
        assert later


def test_measurements_of_a_run_folder(tmp_path):
    log = SummaryWriter(tmp_path)
    for step in range(10):
        log.add_scalar("train/reward", step, step)
        log.add_scalar("perf/peak_memory_mb", 100 - step, step)
    log.add_scalar("test/drift", 0.25, 10)
    log.close()
    exact = {"all": {"n": 4, "before": 0.25, "after": 0.5, "gain_interval": [-0.1, 0.6]}}
    (tmp_path / "comparison.json").write_text(json.dumps({"exact": exact}))
    (tmp_path / "fit_seconds.json").write_text("12.5")
    found = runs.measurements(tmp_path)
    assert found["exact"] == exact and found["fit_seconds"] == 12.5 and found["batches"] == 10
    assert found["train/reward"] == [0.5, 8.5] and found["test/drift"] == 0.25
    assert found["perf/peak_memory_mb"] == 100 and found["cores"] == runs.cores()


def test_fit_and_test_run_one_after_the_other_with_the_same_flags(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(runs, "lit_align", lambda command, *flags: called.append((command, flags)))
    monkeypatch.setattr(runs, "measurements", lambda folder: {"folder": folder})
    old = tmp_path / "dpo-120s/3/old"
    old.mkdir(parents=True)
    assert runs.fit_and_test("dpo", 3, 120, 2, tmp_path, ["--data.path", "p"]) == {"folder": tmp_path / "dpo-120s/3"}
    (fit, fit_flags), (test, test_flags) = called
    assert (fit, test) == ("fit", "test") and test_flags[: len(fit_flags)] == fit_flags and not old.exists()
    assert ("--data.path", "p") == fit_flags[-5:-3] and fit_flags[-1] == "120"
    assert "--trainer.limit_test_batches" in test_flags and test_flags[-2:] == ("--ckpt_path", "last")


def test_steering_is_tested_alone(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(runs, "lit_align", lambda command, *flags: called.append((command, flags)))
    log = SummaryWriter(tmp_path / "das/3")
    (tmp_path / "das/3/comparison.json").write_text('{"exact": {}}')
    monkeypatch.setattr(runs.shutil, "rmtree", lambda folder, **kwargs: None)
    log.add_scalar("test/cost/nfe_backward", 20.0, 0)
    log.close()
    found = runs.steer_and_test("das", 3, 2, tmp_path)
    assert found["fit_seconds"] == 0 and found["test/cost/nfe_backward"] == 20
    ((command, flags),) = called
    assert command == "test" and flags[:2] == ("--config", "shapes/das") and flags[-2:] == ("--trainer.limit_test_batches", "2")


def test_a_command_that_fails_ends_the_study_with_one_sentence(monkeypatch):
    monkeypatch.setattr(runs.sys, "executable", "false")  # a program that always exits with 1
    with pytest.raises(SystemExit, match="its records are kept: exit code 1 of false -m lit_align fit --config x"):
        runs.lit_align("fit", "--config", "x")
