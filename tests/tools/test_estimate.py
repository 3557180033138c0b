"""The command `estimate` and the networks without weights that it runs: the tests of tests/estimates.py and
tests/stand_ins.py, each kind in a process of its own. A process that held tensors without values can die of a signal when
they are freed (its heap is damaged, the cause is not known yet): what counts is what its tests said before, and one that
died earlier is started again."""

import os
import re
import subprocess
import sys

import pytest

from lit_align.paths import ROOT

CASES = ["full", "checkpointing", "lora", "policy gradient", "parts_of_a_row"]


@pytest.mark.parametrize(
    "file,case",
    [
        ("estimates.py", "advice or wrong"),
        ("stand_ins.py", ""),
        *(pytest.param("estimates.py", case, marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_in_a_process_of_its_own(file, case, tmp_path):
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    select = ["-k", " and ".join(case.split()) if case in CASES else case]
    for attempt in range(3):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / str(attempt))]
        done = subprocess.run([*command, *select, f"tests/{file}"], cwd=ROOT, env=here, capture_output=True, text=True)
        said = re.findall(r"(?m)^=*.*\d (?:passed|failed|error).*$", done.stdout)
        if said or done.returncode >= 0:
            break
    assert said and " passed" in said[-1] and "failed" not in said[-1] and "error" not in said[-1], done.stdout[-3000:] + done.stderr[-1000:]
