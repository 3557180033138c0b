"""What the README tells a newcomer to type works as it stands there."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_align import configs
from lit_align.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture
def hinge(tmp_path, monkeypatch):
    """The README's method, at the import path the README gives it."""
    import lit_align.algorithms.preference as package

    (tmp_path / "hinge.py").write_text(blocks("python")[0])
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    module = sys.modules.pop("lit_align.algorithms.preference.hinge", None)
    if module is not None:
        module.HingeDPO.__module__ = "readme"  # the class lives on; other tests list those of the library


def test_the_method_of_the_readme_passes_its_test_and_trains_from_its_yaml(hinge, monkeypatch):
    (hinge / "test_hinge.py").write_text(blocks("python")[1])
    assert pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(hinge), str(hinge / "test_hinge.py")]) == 0
    shutil.copytree(configs.CONFIGS, hinge / "configs")
    monkeypatch.setattr(configs, "CONFIGS", hinge / "configs")
    (hinge / "configs/shapes/hinge.yaml").write_text(blocks("yaml")[0])
    cli = main(["fit", "--config", "shapes/hinge", "--config", "smoke"])
    assert type(cli.model).__name__ == "HingeDPO" and cli.model.beta == 500 and cli.trainer.global_step == 2


def test_every_config_the_readme_names_exists():
    from lit_align.configs import find_config

    names = set(re.findall(r"--config (\S+?)(?=[\s`)]|$)", README)) - {"shapes/hinge"}
    names = {n for n in names if "<" not in n}
    assert len(names) >= 5 and all(find_config(name).exists() for name in names)


def test_the_reward_of_the_readme_scores_a_batch():
    scope = {}
    exec(blocks("python")[2], scope)
    reward, images = scope["Brightness"](), torch.stack([torch.full((3, 8, 8), v) for v in (0.25, 0.75)])
    assert reward.columns == {"brightness": True}
    assert reward(images, ["dark", "dark"], brightness=[0.25, 0.25]).tolist() == [0.0, -0.5]


def test_the_library_example_of_the_readme_trains_and_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, scope = blocks("python")[3], {}
    assert "max_steps=20" in code
    exec(code.replace("max_steps=20", "max_steps=2"), scope)
    assert scope["trainer"].global_step == 2
    written = load_file("checkpoints/mine/policy/pytorch_lora_weights.safetensors")
    assert any(w.abs().max() > 0 for name, w in written.items() if "up" in name)
    assert scope["again"].beta == 500 and scope["again"].policy is scope["policy"]
