"""Rewards that need further columns of the data, through the command line."""

import json

import pytest

from lit_align.cli import main

REWARD = '''
import torch

from lit_align.rewards.reward import Reward


class Wanted(Reward):
    """Minus the distance of the mean pixel from the row's `target`; notes what it was given."""

    name, differentiable = "wanted", False
    seen = []

    def forward(self, images, prompts, target, include=None):
        Wanted.seen += zip(prompts, target, include)
        return -(images.mean((1, 2, 3)) - torch.tensor(target, device=images.device)).abs()
'''
CONFIG = """
model:
  class_path: DDPO
  init_args:
    policy: {class_path: StableDiffusion, init_args: {pretrained: tiny, resolution: 32, adapter: {class_path: LoRA, init_args: {rank: 2}}}}
    reward: {class_path: wanted.Wanted}
    rewards: [{class_path: wanted.Wanted}]
    rollout: {class_path: Sampler, init_args: {steps: 2, guidance_scale: 1.0, transition: {class_path: DDIM, init_args: {eta: 1.0}}}}
    sampler: {class_path: Sampler, init_args: {steps: 2, guidance_scale: 1.0}}
    samples_per_prompt: 2
data: {class_path: Prompts, init_args: {path: prompts.jsonl, val_prompts: prompts.jsonl, test_prompts: prompts.jsonl, resolution: 32, batch_size: 2}}
trainer: {accelerator: cpu, max_steps: 1, num_sanity_val_steps: 0, enable_progress_bar: false, enable_model_summary: false}
"""
ROWS = [{"prompt": f"p{i}", "target": i / 4, "include": [{"class": "dog", "count": i}]} for i in range(4)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wanted.py").write_text(REWARD)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_reward_gets_the_columns_it_names_in_the_order_of_the_batch(folder, command):
    main([command, "--config", "run.yaml"])
    import wanted

    assert len(wanted.Wanted.seen) >= 4
    for prompt, target, include in wanted.Wanted.seen:
        i = int(prompt[1:])
        assert target == i / 4 and include[0]["count"] == i
    wanted.Wanted.seen.clear()


@pytest.mark.parametrize("command,missing", [("fit", "path"), ("fit", "val_prompts"), ("test", "test_prompts")])
def test_a_column_that_the_data_lacks_is_named_before_anything_is_sampled(folder, command, missing):
    (folder / "poor.jsonl").write_text('{"prompt": "a"}\n' * 4)
    said = "the reward wanted needs the column `target`; the data has none besides the prompt: add it"
    with pytest.raises((ValueError, SystemExit)) as error:
        main([command, "--config", "run.yaml", f"--data.{missing}", "poor.jsonl"])
    if isinstance(error.value, ValueError):
        assert error.match(said)
