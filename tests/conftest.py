import os
from pathlib import Path

import pytest

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # side by side, each with its share of the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(workers))))

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shapes_sd():
    return str(ROOT / "checkpoints/shapes-sd")


@pytest.fixture(scope="session")
def shapes_flow():
    return str(ROOT / "checkpoints/shapes-flow")


@pytest.fixture
def configs(tmp_path, monkeypatch) -> Path:
    """The configs of tests/parabola.py, and an empty working directory beside them."""
    import parabola

    from lit_align import configs

    folder = tmp_path / "configs"
    parabola.write_configs(folder)
    monkeypatch.setattr(configs, "CONFIGS", folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder
