"""Videos and edits as a user types them: fit, test and predict of tiny models, from an empty folder."""

import json

import pytest
from PIL import Image

from lit_align.cli import main

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def frames(path):
    image = Image.open(path)
    return image.n_frames


@pytest.mark.slow
def test_a_video_recipe_fits_tests_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = ["--config", "flow_grpo_wan21", "--config", "smoke", *QUIET]
    main(["fit", *files])
    run = tmp_path / "checkpoints/flow_grpo_wan21+smoke"
    assert (run / "policy/pytorch_lora_weights.safetensors").is_file()
    assert frames(run / "samples/step_000002.gif") == 9 and (run / "samples/step_000002.png").is_file()
    main(["test", *files, "--ckpt_path", "last"])
    assert frames(run / "comparison.gif") == 9 and "ocr" in json.loads((run / "comparison.json").read_text())
    main(["predict", *files, "--ckpt_path", "last"])
    lines = [json.loads(line) for line in (run / "predict/metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all((run / "predict" / line["file_name"]).stat().st_size > 0 for line in lines)
    assert all(line["file_name"].endswith((".mp4", ".gif")) for line in lines)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", *files, "--model.reward", "AestheticScore"])
    assert "scores images, and the policy makes videos: put it into Frames" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_recipe_of_edits_fits_tests_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = ["--config", "dpo_instruct_pix2pix", "--config", "smoke", *QUIET]
    main(["fit", *files])
    run = tmp_path / "checkpoints/dpo_instruct_pix2pix+smoke"
    for command in ("validate", "test", "predict"):
        main([command, *files, "--ckpt_path", "last"])
    assert (run / "comparison.png").is_file() and len((run / "predict/metadata.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["predict", *files, "--ckpt_path", "last", "--data.test_prompts", "configs/prompts/small.jsonl", "--model.rewards", "[]"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the policy edits images, and configs/prompts/small.jsonl has no column `source` with them (further columns: skill)" in said
