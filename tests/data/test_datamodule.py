import pickle

import pytest
import torch
from data_parts import fit, pick_a_pic, trainer
from jsonargparse import ArgumentError, ArgumentParser

from lit_align.data.datamodule import AlignData
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.prompts import Prompts


def test_loading_leaves_the_global_random_state_alone(tmp_path, many):
    data = Prompts(many, batch_size=2)
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    state = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_rows_for_a_batch(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="3 training rows do not fill one batch of 64"):
        fit(PickAPic(path, resolution=8, batch_size=64), tmp_path)


def test_worker_processes_can_be_handed_the_collate_function(tmp_path):
    data = PickAPic(pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0]), resolution=8, batch_size=2)
    fit(data, tmp_path)
    copy = pickle.loads(pickle.dumps(data.collate))
    rows = [data.train[i] for i in range(2)]
    assert torch.equal(copy(rows)["win"], data.collate(rows)["win"])


def test_validation_takes_pairs_then_prompts(tmp_path, many):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0])
    data = PickAPic(path, val_split=path, val_prompts=many, resolution=8, batch_size=2, val_batch_size=20)
    data.setup("validate")
    pairs, prompts = map(list, data.val_dataloader())
    assert [set(batch) for batch in pairs] == [{"prompt", "index", "columns", "win", "lose"}]
    assert [len(batch["prompt"]) for batch in prompts] == [20, 3] and prompts[1]["index"] == [20, 21, 22]
    data = PickAPic(path, test_prompts=many)
    assert data.val_dataloader() == [] and next(iter(data.predict_dataloader()))["prompt"][0] == "prompt 0"
    with pytest.raises(ValueError, match="set --data.test_prompts"):
        PickAPic(path).test_dataloader()


def test_data_is_configured_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AlignData, "data")
    init = {"path": "x", "ties": "keep", "batch_size": 3, "val_prompts": "p.jsonl", "encode_once": True}
    data = parser.instantiate_classes(parser.parse_object({"data": {"class_path": "PickAPic", "init_args": init}})).data
    assert (data.path, data.ties, data.batch_size, data.prompt_files["val"]) == ("x", "keep", 3, "p.jsonl")
    with pytest.raises(ArgumentError, match="batchsize"):
        parser.parse_object({"data": {"class_path": "PickAPic", "init_args": {"batchsize": 3}}})
