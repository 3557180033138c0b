"""Two gloo processes on the CPU: methods that draw their own samples use all ranks' rewards, and stay in step."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

from lit_align.algorithms.parts.advantages import Group, LeaveOneOut, PerPrompt

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def seen(request, tmp_path_factory) -> list[dict]:
    """What each of the two ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    env |= {"TORCHELASTIC_RUN_ID": "t", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    start = lambda r: subprocess.Popen(
        [sys.executable, "-m", "ranks", request.param, str(folder)],
        env=env | {"RANK": str(r), "LOCAL_RANK": str(r)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    processes = [start(r) for r in range(2)]
    try:
        outputs = [p.communicate(timeout=900)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert all(p.returncode == 0 for p in processes), outputs[0][-3000:]
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.METHODS)
def test_ranks_draw_for_themselves_and_stay_in_step(seen, name):
    if isinstance(seen[0][name], str):
        assert "set --trainer.strategy ddp" in seen[0][name] and name in ("tdpo_r", "elegant", "lasro")  # FSDP does not shard their critics
        return
    a, b = (r[name] for r in seen)
    assert not torch.equal(a["reward"], b["reward"])  # other prompts, other noise
    assert a["steps"] == b["steps"] > 0 and a["place"] == b["place"] == a["steps"]
    assert torch.equal(a["weights"], b["weights"]) and a["weights"].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name, times", [("ddpo", 2), ("nft", 1), ("raft", 1), ("alignprop", 1), ("seiko", 2)])
def test_gradients_are_exchanged_once_in_an_optimizer_step(seen, name, times):
    """`times`: backward passes of a step. (FSDP exchanges in every one.)"""
    for r in seen:
        assert r[name]["backwards"] == times * r[name]["steps"]
        assert r[name]["exchanges"] in (r[name]["steps"], r[name]["backwards"] * (r["strategy"] == "fsdp"))


@pytest.mark.slow
def test_what_is_remembered_is_of_all_ranks(seen):
    a, b = (r["raft"]["state"] for r in seen)
    assert torch.equal(a, b) and a[0].tolist() == [16, 16]  # 2 steps of 2 x 4 samples
    a, b = (r["seiko"]["state"] for r in seen)
    assert all(torch.equal(a[k], b[k]) for k in a) and len(a["y"]) == 16  # 2 loops of 2 x 4 queries
    if isinstance(seen[0]["lasro"], str):  # refused under FSDP
        return
    a, b = (r["lasro"]["state"] for r in seen)
    assert a["replay"]["prompt"] == b["replay"]["prompt"] and {"p0", "p1"} < set(a["replay"]["prompt"])
    assert all(torch.equal(a["replay"][k], b["replay"][k]) for k in ("step", "win", "lose")) and torch.equal(a["moments"], b["moments"])


@pytest.mark.slow
@pytest.mark.parametrize("name, advantage", [("ddpo", PerPrompt(4, 3)), ("rloo", LeaveOneOut()), ("tdpo_r", Group()), ("nft", Group())])
def test_advantages_come_from_the_samples_of_all_ranks(seen, name, advantage):
    if isinstance(seen[0][name], str):
        assert "set --trainer.strategy ddp" in seen[0][name] and name == "tdpo_r"  # FSDP does not shard its critic
        return
    a, b = (r[name] for r in seen)
    advantage = copy.deepcopy(advantage)  # it remembers
    assert len(a["advantage"]) == len(b["advantage"]) == 2
    for (ids, reward, found), (ids_b, reward_b, found_b) in zip(a["advantage"], b["advantage"]):
        assert torch.equal(ids, ids_b) and torch.equal(reward, reward_b) and torch.equal(found, found_b)
        assert len(ids) == 8 and ids.unique(return_counts=True)[1].sort()[0].tolist() == [2, 2, 4]  # p0, p1, both
        torch.testing.assert_close(found, advantage(ids, reward))
    rewards = torch.cat([x.sort()[0] for _, x, _ in a["advantage"]])
    own = [torch.cat([a["reward"].chunk(2)[i], b["reward"].chunk(2)[i]]).sort()[0] for i in range(2)]
    torch.testing.assert_close(rewards, torch.cat(own))


@pytest.mark.slow
def test_a_sample_that_one_rank_could_not_score_is_in_nobodys_statistics(seen):
    a, b = (r["masked"] for r in seen)
    assert a["reward"].isnan().nonzero().flatten().tolist() == [1, 5] and not b["reward"].isnan().any()
    for (ids, reward, found), (_, reward_b, found_b) in zip(a["advantage"], b["advantage"], strict=True):
        assert torch.equal(reward, reward_b) and torch.equal(found, found_b) and len(reward) == 7
        torch.testing.assert_close(found, LeaveOneOut()(ids, reward))
