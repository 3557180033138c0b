from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shapes_sd():
    return str(ROOT / "checkpoints/shapes-sd")



@pytest.fixture(scope="session")
def shapes_flow():
    return str(ROOT / "checkpoints/shapes-flow")
