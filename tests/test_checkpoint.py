"""Checkpoint files are whole or absent."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_align.checkpoint import AtomicCheckpointIO
from lit_align.paths import unfinished

WRITER = """
import os, sys, time, torch
from lit_align.checkpoint import AtomicCheckpointIO

def stuck(_):
    print("written", flush=True)
    time.sleep(600)

os.fsync = stuck
AtomicCheckpointIO().save_checkpoint({"w": torch.full((1000,), 2.0)}, sys.argv[1])
"""


@pytest.fixture
def last(tmp_path) -> Path:
    """A checkpoint of ones."""
    path = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.ones(1000), "step": 3}, path)
    return path


def is_the_old_one(path: Path) -> bool:
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    return checkpoint["step"] == 3 and bool((checkpoint["w"] == 1).all())


def test_what_is_saved_is_loaded(last):
    assert is_the_old_one(last)
    AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(2)}, last)
    assert AtomicCheckpointIO().load_checkpoint(last)["w"].tolist() == [0, 0]
    assert os.listdir(last.parent) == ["last.ckpt"]


def test_full_disk_leaves_the_previous_file(last):
    part = unfinished(last)
    part.symlink_to("/dev/full")  # every write to it finds no space
    with pytest.raises(OSError, match="last.ckpt") as error:
        AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(1000)}, last)
    assert error.value.errno == errno.ENOSPC
    assert not part.is_symlink() and is_the_old_one(last)


def test_killed_writer_leaves_the_previous_file(last):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, last], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert writer.stdout.readline() == "written\n"
    finally:
        writer.kill()  # SIGKILL
        writer.wait()
    (part,) = last.parent.glob(f"last.ckpt.*.{writer.pid}.part")
    assert is_the_old_one(last) and part != unfinished(last)


@pytest.mark.parametrize("kept", [0, 1, 100, -100, -1])
def test_truncated_file_is_named(last, kept):
    last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(ValueError, match="last.ckpt is cut short"):
        AtomicCheckpointIO().load_checkpoint(last)


def test_pickled_code_is_not_run(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"w": Path("a")}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
