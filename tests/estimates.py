"""The command `estimate`: its peak is that of a real step, and what it says."""

import os
import subprocess
import sys

import pytest

from lit_align.cli import main
from lit_align.paths import ROOT
from lit_align.weightless.report import Row, advice, rows

SLOW = pytest.mark.slow
CHECKPOINTING = ["--model.policy.gradient_checkpointing", "true"]
LORA = ["--model.policy.adapter", "LoRA"]


def estimate(capsys, *args):
    """The command's measurements and what it printed."""
    cli = main(["estimate", *args, "--chip", "cpu", "--given_only", "true"])
    return cli.trainer.estimated[0], capsys.readouterr().out


def measure(folder, *args):
    """Bytes that a real step of the same command needs, in a process that holds nothing else."""
    quiet = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    peak = ["--trainer.callbacks", "measured.PeakMemory", "--trainer.enable_checkpointing", "false"]
    flags = [*quiet, *peak, "--trainer.default_root_dir", str(folder), "--trainer.log_every_n_steps", "1"]
    here = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    subprocess.run([sys.executable, "-m", "lit_align", "fit", *args, *flags], check=True, env=here)
    return int((folder / "peak").read_text())


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["shapes/dpo", "--data.encode_once", "false"], id="full", marks=SLOW),
        pytest.param(["shapes/dpo", "--data.encode_once", "false", *CHECKPOINTING], id="checkpointing", marks=SLOW),
        pytest.param(["shapes/dpo", "--data.encode_once", "false", *LORA], id="lora", marks=SLOW),
        pytest.param(["shapes/ddpo", "--data.batch_size", "4"], id="policy gradient", marks=SLOW),
    ],
)
def test_the_peak_is_that_of_a_real_step(args, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--config", *args]
    one, _ = estimate(capsys, *args)
    measured = measure(tmp_path / "run", *args)
    assert one.peaks["given"].total == pytest.approx(measured, rel=0.1)


@SLOW
def test_the_parts_of_a_row_add_up_and_fsdp_shares_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = main(["estimate", "--config", "shapes/dpo", "--data.encode_once", "false", "--chip", "h100", "--devices", "4", "--given_only", "true"])
    assert "GiB on each of 4 at its peak" in capsys.readouterr().out
    table = {row.name: row for row in rows(cli.trainer.estimated, 4, fsdp=False)}
    assert list(table) == ["as given", "8-bit", "FSDP", "8-bit, FSDP"]
    for row in table.values():
        assert sum(row.of.values()) == pytest.approx(row.peak)
    plain, sharded, bits = table["as given"].of, table["FSDP"].of, table["8-bit"].of
    assert sharded["reference"] == pytest.approx(plain["reference"] / 4) and sharded["optimizer"] < plain["optimizer"] / 3
    assert plain["weights"] / 4 < sharded["weights"] < plain["weights"] * 1.25  # and what is gathered
    assert bits["optimizer"] == pytest.approx(plain["optimizer"] / 8 * (2 + 8 / 256), rel=0.05)  # two moments of 4 bytes


def test_the_advice_is_the_row_with_the_fewest_changes_that_fits():
    table = [Row(name, peak, {}) for name, peak in {"as given": 40, "8-bit": 30, "no checkpointing": 20, "checkpointing": 22, "checkpointing, 8-bit": 12, "LoRA": 10}.items()]
    assert advice(table, 50).startswith("It fits: 40.0 of 50.0")
    assert advice(table, 35).endswith("It fits with checkpointing (22.0): --model.policy.gradient_checkpointing true")
    assert advice(table, 15).endswith("gradient_checkpointing true --model.optimizer bitsandbytes.optim.AdamW8bit")
    assert "LoRA (10.0)" in advice(table, 11) and "nor does any row" in advice(table, 5)


@pytest.mark.parametrize(
    "flags,sentence",
    [(["--chip", "b200"], "chip is b200: give h200, h100, a100, 4090, cpu."), (["--utilisation", "40"], "utilisation is 40.0; it must lie in (0, 1].")],
)
def test_wrong_options_are_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit):
        main(["estimate", "--config", "shapes/dpo", *flags])
    assert sentence in capsys.readouterr().err
