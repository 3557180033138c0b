"""Steering from YAML: any policy's sampler takes hooks, and a sampler goes around it."""

import json

import pytest

from lit_align.cli import main

POLICY = "{class_path: StableDiffusion, init_args: {pretrained: tiny, resolution: 32, adapter: {class_path: ADAPTER}}}"
REWARD = "{class_path: JPEGCompressibility}"
STEERED = f"""
      steps: 3
      guidance_scale: 2.0
      transition: {{class_path: DDIM, init_args: {{eta: 1.0}}}}
      steering: [{{class_path: FKSteering, init_args: {{reward: {REWARD}, particles: 2, lmbda: 1.0}}}}]
"""
FK = f"{{class_path: Sampler, init_args: {{{STEERED.strip()}}}}}".replace("\n", ",").replace("      ", "")
AROUND = f"{{class_path: BestOfN, init_args: {{reward: {REWARD}, n: 2, sampler: {FK}}}}}"
MODELS = {
    "steered": "class_path: Steered\n  init_args:",
    "trained": f"class_path: DDPO\n  init_args:\n    reward: {REWARD}\n    samples_per_prompt: 2\n    rollout: {FK}",
}
REST = """
data: {class_path: Prompts, init_args: {path: p.txt, val_prompts: p.txt, test_prompts: p.txt, batch_size: 2}}
trainer: {accelerator: cpu, max_steps: 1, num_sanity_val_steps: 0, callbacks: [{class_path: SampleWriter}, {class_path: Comparison}]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a dog\na cat\n")
    return tmp_path


def write(folder, model, sampler):
    policy = POLICY.replace("ADAPTER", "Frozen" if model == "steered" else "LoRA")
    head = f"model:\n  {MODELS[model]}\n    policy: {policy}\n    sampler: {sampler}\n    rewards: [{REWARD}]"
    (folder / "run.yaml").write_text(head + REST)


@pytest.mark.parametrize("sampler", [FK, AROUND], ids=["hook", "around"])
@pytest.mark.parametrize("model,command", [
    ("steered", "validate"), ("steered", "test"), ("steered", "predict"), ("trained", "fit"), ("trained", "predict"),
])  # fmt: skip
def test_steering_runs_under_every_command(folder, model, command, sampler):
    write(folder, model, sampler)
    cli = main([command, "--config", "run.yaml"])
    if command == "predict":
        lines = (folder / "checkpoints/run/predict/metadata.jsonl").read_text().splitlines()
        assert [json.loads(line)["prompt"] for line in lines] == ["a dog", "a cat"]
    if command == "test":
        report = json.loads((folder / "checkpoints/run/comparison.json").read_text())["compressibility"]["all"]
        assert report["after"] > report["before"]  # steering prefers small files, and compares with plain sampling
    assert cli.trainer.state.finished


def test_what_trains_nothing_says_so(folder, capsys):
    write(folder, "steered", FK)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "run.yaml"])
    assert capsys.readouterr().err.splitlines()[-1] == "lit_align: Steered trains nothing: use validate, test or predict."
