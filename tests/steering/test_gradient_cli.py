"""Gradients and attention under the command line's test and predict, from an empty folder."""

import json

import pytest

from lit_align.cli import main

POLICY = "{class_path: StableDiffusion, init_args: {pretrained: tiny, resolution: 32, adapter: {class_path: Frozen}}}"
REWARD = "{class_path: CLIPScore, init_args: {pretrained: tiny}}"
HOOKS = """[
  {class_path: PAG, init_args: {scale: 1.0}},
  {class_path: AttendExcite, init_args: {cell: 2, refinements: 1}},
  {class_path: DPS, init_args: {reward: REWARD, scale: 0.1}},
]"""
INSIDE = f"{{class_path: Sampler, init_args: {{steps: 3, guidance_scale: 2.0, steering: {HOOKS}}}}}"
AROUND = f"{{class_path: ReNO, init_args: {{reward: REWARD, iterations: 2, sampler: {INSIDE}}}}}"
REST = """
data: {class_path: Prompts, init_args: {val_prompts: p.jsonl, test_prompts: p.jsonl}}
trainer: {accelerator: cpu}
"""


def write(folder, sampler):
    head = f"model:\n  class_path: Steered\n  init_args:\n    policy: {POLICY}\n    sampler: {sampler}\n    rewards: [REWARD]"
    (folder / "run.yaml").write_text(head.replace("REWARD", REWARD) + REST)
    rows = [{"prompt": "a red dog", "phrases": ["red dog"]}, {"prompt": "a cat", "phrases": ["cat"]}]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("sampler", [INSIDE, AROUND], ids=["hooks", "around"])
def test_steering_by_gradients_and_attention(sampler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, sampler)
    main(["test", "--config", "run.yaml"])
    report = json.loads((tmp_path / "checkpoints/run/comparison.json").read_text())["clip_score"]["all"]
    assert report["after"] != report["before"]
    main(["predict", "--config", "run.yaml"])
    lines = [json.loads(line) for line in (tmp_path / "checkpoints/run/predict/metadata.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["a red dog", "a cat"]
    assert all(line["cost"]["nfe_backward"] > 0 for line in lines)


@pytest.mark.parametrize("change,said", [
    ({"trainer: {accelerator": "trainer: {inference_mode: true, accelerator"}, "which inference mode forbids: set --trainer.inference_mode false."),
    ({"cell: 2": "cell: 8"}, "AttendExcite: cell is 8; this denoiser's maps have 2: set one."),
    ({"class_path: CLIPScore, init_args: {pretrained: tiny}}, scale": "class_path: JPEGCompressibility}, scale"}, "DPS needs the reward's gradient and compressibility has none"),
    ({"scale: 0.1": "scale: 0.1, size: guidance", "guidance_scale: 2.0": "guidance_scale: 1.0"}, "guidance_scale is 1: set another scale, or size absolute."),
])  # fmt: skip
def test_what_cannot_work_is_one_sentence(change, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, INSIDE)
    text = (tmp_path / "run.yaml").read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["predict", "--config", "run.yaml"])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("lit_align: ") and said in line
