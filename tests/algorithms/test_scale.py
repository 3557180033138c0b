"""Two gloo processes on the CPU: DDP and FSDP2 do what one process does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

def run(folder, strategy, adapter="lora", precision="32-true", ckpt=None, steps=4):
    """What a run of tests/sharded.py in one process, or two, leaves in its folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = ["--adapter", adapter, "--precision", precision, "--steps", str(steps), *(["--ckpt", ckpt] if ckpt else [])]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ranks = [{}]
    if strategy != "auto":
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "t"}
        ranks = [{"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]
    command = [sys.executable, "-m", "sharded", str(folder), strategy, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, env=env | rank, **pipes) for rank in ranks]
    try:
        outputs = [p.communicate(timeout=240)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert all(p.returncode == 0 for p in processes), outputs[0][-3000:]
    return torch.load(folder / "result.pt", weights_only=False)


@pytest.fixture(scope="module", params=["lora", "full"])
def one(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"one_{request.param}")
    return request.param, run(folder, "auto", request.param), folder


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a["losses"], b["losses"], atol=atol, rtol=1e-4)
    assert a["weights"].keys() == b["weights"].keys()
    for name in a["weights"]:
        torch.testing.assert_close(a["weights"][name], b["weights"][name], atol=atol, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_of_ddp_equal_one(one, tmp_path):
    adapter, alone, _ = one
    close(run(tmp_path, "ddp", adapter), alone, atol=2e-4)


@pytest.mark.slow
def test_two_processes_of_fsdp2_equal_one_and_every_tensor_gets_a_gradient(one, tmp_path):
    adapter, alone, _ = one
    sharded = run(tmp_path, "fsdp", adapter)
    close(sharded, alone, atol=2e-4)
    assert sharded["missing"] == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_single"])
def test_sharded_and_single_file_checkpoints_resume(tmp_path, strategy):
    whole = run(tmp_path / "whole", strategy, steps=4)
    run(tmp_path / "parts", strategy, steps=2)
    last = tmp_path / "parts/checkpoints/last.ckpt"  # a link, set once what it names is written: never half a checkpoint
    assert last.is_symlink() and last.is_dir() == (strategy == "fsdp")
    rest = run(tmp_path / "parts", strategy, steps=4, ckpt=str(last))
    for name, w in whole["weights"].items():
        torch.testing.assert_close(rest["weights"][name], w, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_bf16_mixed_trains_sharded(tmp_path):
    result = run(tmp_path, "fsdp", "lora", "bf16-mixed", steps=2)
    assert all(torch.isfinite(torch.tensor(result["losses"]))) and result["missing"] == []
    assert result["losses"][0] == pytest.approx(0.6931, abs=0.02)
    assert all(w.dtype == torch.float32 for w in result["weights"].values())
