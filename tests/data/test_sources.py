"""Rows with a source image: read, cached and passed on to the policy, the rewards and the advantages."""

import json

import pytest
import torch
from data_parts import BLUE, RED
from parts import trainer

from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.data.preference_pairs import PreferencePairs
from lit_align.data.prompts import Prompts
from lit_align.policies.adapters import LoRA
from lit_align.policies.instruct_pix2pix import InstructPix2Pix


def write(tmp_path):
    for name, data in (("red.png", RED), ("blue.png", BLUE)):
        (tmp_path / name).write_bytes(data)
    rows = [{"prompt": "turn it", "source": s, "win": w, "lose": s} for s, w in (("red.png", "blue.png"), ("blue.png", "red.png"))]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(tmp_path / "pairs.jsonl")


def set_up(data, tmp_path):
    module = DiffusionDPO(policy=InstructPix2Pix("tiny", LoRA(rank=2)))
    t = trainer(tmp_path)
    t.datamodule = data
    data.trainer = module.trainer = t
    t.strategy.connect(module)
    t.strategy._lightning_module = module
    data.setup("fit")
    return data, module


@pytest.mark.parametrize("cls", [Prompts, PreferencePairs])
def test_the_source_is_an_image_of_the_policys_size(cls, tmp_path):
    path = write(tmp_path)
    data, _ = set_up(cls(path, batch_size=2, val_prompts=path), tmp_path)
    batch = data.collate_rows([data.train[0] | {"index": 0}, data.train[1] | {"index": 1}])
    for given in (batch, next(iter(data.prompt_loader("val")))):
        red, blue = given["columns"]["source"]
        assert red.shape == (3, 16, 16) and red[0].min() == 1 and red[2].max() == 0 and blue[2].min() == 1
    assert "stamp" not in batch


def test_the_cache_holds_the_source_and_is_made_anew_when_its_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path)
    data, module = set_up(PreferencePairs(path, batch_size=2, encode_once=True), tmp_path)
    batch = data.collate_rows([data.train[0], data.train[1]])
    source = module.policy.condition(["turn it"] * 2, {"source": batch["columns"]["source"]})["source"]
    torch.testing.assert_close(batch["cond"]["source"], source)
    torch.manual_seed(0)
    module.trainer.state.fn = module.trainer.training = True
    loss = module.loss(module.errors(batch)).mean()
    assert loss.isfinite() and batch["columns"]["source"][0].shape == (3, 16, 16)
    (tmp_path / "red.png").write_bytes(BLUE)
    again, _ = set_up(PreferencePairs(path, batch_size=2, encode_once=True), tmp_path)
    changed = again.collate_rows([again.train[0], again.train[1]])["cond"]["source"]
    assert not torch.allclose(changed[0], source[0]) and torch.allclose(changed[1], source[1])


def test_a_missing_source_is_named(tmp_path):
    path = write(tmp_path)
    (tmp_path / "red.png").unlink()
    with pytest.raises(FileNotFoundError, match="row 0, column source of .*pairs.jsonl: there is no file .*red.png"):
        set_up(Prompts(path), tmp_path)
    (tmp_path / "plain.jsonl").write_text('{"prompt": "a", "skill": "b"}')
    with pytest.raises(ValueError, match=r"the policy edits images, and .*plain.jsonl has no column `source` with them \(further columns: skill\)"):
        set_up(Prompts(str(tmp_path / "plain.jsonl")), tmp_path)
