import json
import pickle

import pytest
import torch
from data_parts import fit, pick_a_pic, trainer
from jsonargparse import ArgumentError, ArgumentParser

from lit_align.cli import main
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


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """fit, validate, test and predict of a shipped config, from an empty folder with a prompt file of the user's."""
    folder = tmp_path_factory.mktemp("empty")
    rows = [
        {"prompt": "a red circle", "index": 9, "seed": "s", "file": None, "image": "i", "skill": "color"},
        {"prompt": "a cross", "index": 9, "seed": "s", "file": None, "image": "i", "skill": None},
        {"prompt": "a square", "index": 9, "seed": "s", "file": None, "image": "i", "skill": "color"},
    ]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("dpo", "ddpo"):
            files = ["--config", f"shapes/{name}.yaml", "--config", "with/smoke.yaml", "--trainer.max_steps", "2"]
            options = [f"--data.{split}_prompts=p.jsonl" for split in ("val", "test")] + ["--data.val_batch_size=2"]
            options += [f"--trainer.limit_{stage}_batches=2" for stage in ("test", "predict")] + ["--trainer.enable_progress_bar=false"]
            for command in ("fit", "validate", "test", "predict"):
                last = [] if command == "fit" else ["--ckpt_path", "last"]
                main([command, *files, *options, *last])
    return folder / "checkpoints/shapes"


@pytest.mark.parametrize("name", ["dpo", "ddpo"])
def test_every_command_works_and_predict_writes(commands, name):
    run = commands / f"{name}+smoke"
    lines = [json.loads(line) for line in (run / "predict/metadata.jsonl").read_text().splitlines()]
    assert [(x["file_name"], x["prompt"], x["seed"]) for x in lines] == [
        ("00000.png", "a red circle", 0),
        ("00001.png", "a cross", 1),
        ("00002.png", "a square", 2),
    ]
    assert all((run / "predict" / x["file_name"]).is_file() for x in lines)
    report = json.loads((run / "comparison.json").read_text())["exact"]
    assert {group: figures["n"] for group, figures in report.items()} == {"all": 3, "color": 2}


def test_columns_a_reward_may_ask_for(tmp_path, many):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "include": [{"class": "dog"}], "skill": null}')
    data = Prompts(str(tmp_path / "p.jsonl"), val_prompts=many, test_prompts=str(tmp_path / "p.jsonl"))
    names = [data.column_names(split) for split in ("train", "val", "test", "predict")]
    assert names == [["include", "skill"], [], ["include", "skill"], ["include", "skill"]]
    batch = next(iter(data.test_dataloader()))
    assert batch == {
        "prompt": ["a"],
        "index": [0],
        "seed": [0],
        "columns": {"include": [[{"class": "dog"}]], "skill": [None]},
    }


@pytest.mark.parametrize("name", ["batch_size", "val_batch_size"])
def test_no_batches_of_nothing(many, name):
    with pytest.raises(ValueError, match=f"data.{name} is 0: give 1 or more"):
        Prompts(many, **{name: 0})
