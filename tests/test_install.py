"""What a user has after cloning, after `pip install -e .` and after installing a wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_align.paths import ROOT

pytestmark = pytest.mark.slow
SMOKE = ["fit", "--config", "shapes/dpo.yaml", "--config", "smoke.yaml"]


def command(folder: Path, path: Path, *args: str) -> subprocess.CompletedProcess:
    """`python -m lit_align` in a folder, with one more place where Python looks for packages."""
    env = os.environ | {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-m", "lit_align", *args], cwd=folder, env=env, capture_output=True, text=True)


def pip(*args: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository without its checkpoints and tests, so that a build leaves nothing in ours."""
    copy = tmp_path_factory.mktemp("clone") / "lit_align"
    away = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("lit_align", "callbacks", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=away)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory) -> Path:
    """An empty folder into which the wheel was installed, without what it depends on."""
    wheels, installed = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip("wheel", str(copy), "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels))
    (file,) = wheels.glob("*.whl")
    pip("install", "--no-deps", "--target", str(installed), str(file))
    return installed


@pytest.fixture(scope="module")
def editable(copy, tmp_path_factory) -> Path:
    installed = tmp_path_factory.mktemp("editable")
    pip("install", "--no-deps", "--no-build-isolation", "--target", str(installed), "--editable", str(copy))
    # Python reads the .pth files of site-packages only, so a sitecustomize makes one of this folder
    (installed / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(installed)!r})\n")
    return installed


@pytest.mark.parametrize("kind", ["clone", "editable", "wheel"])
def test_a_folder_named_callbacks_does_not_hide_ours(kind, request, tmp_path):
    """`fit` runs in a working directory with a `callbacks` package of the user's own."""
    path = ROOT if kind == "clone" else request.getfixturevalue(kind)
    whose = [sys.executable, "-c", "import lit_align; print(lit_align.__file__)"]
    where = Path(subprocess.check_output(whose, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(path)}, text=True).strip())
    assert where.parents[1] == (request.getfixturevalue("copy") if kind == "editable" else path)
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/__init__.py").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/shapes-sd").symlink_to(ROOT / "checkpoints/shapes-sd")  # copied, for a wheel
    done = command(tmp_path, path, *SMOKE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "checkpoints/shapes/dpo+smoke/checkpoints/last.ckpt").is_file()


def test_the_wheel_has_the_configs_and_their_prompts(wheel, tmp_path):
    names = {p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*") if p.is_file()}
    assert names == {p.relative_to(wheel / "lit_align").as_posix() for p in (wheel / "lit_align/configs").rglob("*") if p.is_file()}
    assert sorted(p.name for p in wheel.iterdir() if p.suffix != ".dist-info") == ["lit_align"]  # no top-level callbacks
    done = command(tmp_path, wheel, "fit", "--config", "dpo_sdxl.yaml", "--print_config")
    assert yaml.safe_load(done.stdout)["model"]["class_path"].endswith(".DiffusionDPO"), done.stderr[-2000:]


def test_the_wheel_says_how_to_get_the_checkpoints(wheel, tmp_path):
    done = command(tmp_path, wheel, "fit", "--config", "shapes/dpo.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "checkpoints/shapes-sd is not here" in done.stderr and "clone the repository" in done.stderr
