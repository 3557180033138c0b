"""Every command of docs/own_data.md, in its order and from one folder, on tiny weights and with real tables and images."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from lit_align.cli import main
from lit_align.policies.sdxl import StableDiffusionXL

PAGE = (Path(__file__).parents[1] / "docs/own_data.md").read_text()
SMALL = """--model.policy.pretrained tiny --model.policy.vae null --model.policy.dtype float32 --model.policy.resolution 32
    --data.resolution 32 --data.num_workers 0 --model.sampler.steps 2 --trainer.accelerator cpu --trainer.precision 32-true
    --trainer.max_epochs 1 --trainer.limit_test_batches 1 --model.optimizer torch.optim.AdamW --model.optimizer.lr 1e-3""".split()


def commands() -> list[list[str]]:
    text = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", PAGE, re.S | re.M)).replace("\\\n", " ")
    return [shlex.split(line)[3:] for line in text.splitlines() if line.startswith("python -m lit_align ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's files: tables whose rows are as the page shows them."""
    monkeypatch.chdir(tmp_path)
    header, first, second = re.search(r"```\n(prompt,win,lose)\n(.*)\n(.*)\n```", PAGE).groups()
    (tmp_path / "images").mkdir()
    for i, name in enumerate(re.findall(r"images/(\w+\.png)", first + second)):
        Image.new("RGB", (40, 32), (60 * i, 90, 200)).save(tmp_path / "images" / name)
    for name in ("pairs", "held_out", "more_pairs"):
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *[first, second] * 4]) + "\n")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("a dog", "a boat")))
    return tmp_path


def test_every_command_of_the_page_works(folder):
    seen = [args[0] for args in commands()]
    assert seen == ["fit", "fit", "test", "export", "export", "fit"]
    for args in commands():
        main(args + (SMALL if "dpo_sdxl.yaml" in args and "smoke.yaml" not in args else []))
    run = folder / "checkpoints/first"
    for name in re.findall(r"`(checkpoints/\S+?/)`", PAGE):
        assert (folder / name).is_dir()
    assert list((run / "samples").iterdir()) and (folder / "checkpoints/second/policy").is_dir()
    StableDiffusionXL("tiny").pipe.save_pretrained("base")
    code = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
    scope = {}
    exec(code.replace("stabilityai/stable-diffusion-xl-base-1.0", "base"), scope)
    lora = {n: p for n, p in scope["pipe"].unet.named_parameters() if "lora_B" in n}
    assert lora and any(p.abs().max() > 0 for p in lora.values())
    merged, base = StableDiffusionXL("my_sdxl"), StableDiffusionXL("tiny")
    changed = [n for n, p in merged.denoiser.named_parameters() if not torch.equal(p, base.denoiser.get_parameter(n))]
    assert changed and all(re.search(r"attn\d\.to_", n) for n in changed)
