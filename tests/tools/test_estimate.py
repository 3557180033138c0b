import pytest

from lit_align.cli import main

CHECKPOINTING = ["--model.policy.gradient_checkpointing", "true"]
LORA = ["--model.policy.adapter", "LoRA"]


def estimate(capsys, *args):
    """The command's measurements and what it printed."""
    cli = main(["estimate", *args, "--chip", "cpu", "--given_only", "true"])
    return cli.trainer.estimated[0], capsys.readouterr().out


def measure(folder, *args):
    """GB that a real step of the same command needs."""
    quiet = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    peak = ["--trainer.callbacks", "measured.PeakMemory", "--trainer.enable_checkpointing", "false"]
    cli = main(["fit", *args, *quiet, *peak, "--trainer.default_root_dir", str(folder), "--trainer.log_every_n_steps", "1"])
    return next(c.peak for c in cli.trainer.callbacks if type(c).__name__ == "PeakMemory")


@pytest.mark.parametrize(
    "args",
    [
        ["shapes/dpo", "--data.encode_once", "false"],
        ["shapes/dpo", "--data.encode_once", "false", *CHECKPOINTING],
        ["shapes/dpo", "--data.encode_once", "false", *LORA],
        ["shapes/ddpo", "--data.batch_size", "4"],
        ["shapes/draft_k"],
    ],
    ids=["full", "checkpointing", "lora", "policy gradient", "reward gradient"],
)
def test_the_peak_is_that_of_a_real_step(args, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--config", *args]
    one, _ = estimate(capsys, *args)
    measured = measure(tmp_path / "run", *args)
    print({k: v / 1e6 for k, v in one.peaks["given"].of.items()}, measured / 1e6)
    assert one.peaks["given"].total == pytest.approx(measured, rel=0.1)
