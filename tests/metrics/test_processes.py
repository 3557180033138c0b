"""Every metric gives the same on one process and on two, also where one of them sees nothing, and after a reset."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from metric_parts import CASES, measure

from lit_align.cli import import_all
from lit_align.cli_errors import subclasses
from lit_align.metrics.metric import Measure
from lit_align.studies.methods import is_base

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    started = [subprocess.Popen([sys.executable, "-m", "metric_ranks", str(folder)], env=env | {"RANK": str(r)}) for r in range(2)]
    assert [process.wait(900) for process in started] == [0, 0]
    return [json.loads((folder / f"{r}.json").read_text()) for r in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_measure_what_one_does(ranks, name, tmp_path):
    make, updates = CASES[name]
    alone = measure(make(tmp_path), updates)
    assert alone
    for how in ("uneven", "one"):
        for rank in ranks:
            assert rank[f"{name} {how}"] == pytest.approx(alone, rel=1e-5, abs=1e-7, nan_ok=True), how


@pytest.mark.parametrize("name", CASES)
def test_a_reset_forgets_the_samples_and_the_order_does_not_matter(name, tmp_path):
    make, updates = CASES[name]
    metric = make(tmp_path)
    first = measure(metric, updates)
    metric.reset()
    again = measure(metric, updates[::-1])
    assert again == pytest.approx(first, rel=1e-5, abs=1e-7, nan_ok=True)


def test_every_metric_has_a_case(tmp_path):
    import_all()
    mine = {cls for cls in subclasses(Measure) if cls.__module__.startswith("lit_align.metrics.") and not is_base(cls)}
    assert {cls.__name__ for cls in mine} == {type(make(tmp_path)).__name__ for make, _ in CASES.values()}
