"""The results table: what it counts, and that a base is sampled once."""

import json

import pytest
import torch
from lit_align.methods import family_of

from lit_align import results


class Base:
    """Stands for a method under test: draws `offset` + row, and counts."""

    def __init__(self, offset: float):
        self.offset, self.drawn = offset, 0

    def baseline(self, batch):
        self.drawn += 1
        return {"image": torch.tensor(batch["index"]) + self.offset}


def test_a_base_is_sampled_once_for_all_tests_and_known_by_its_first_batch():
    baseline = results.remembering(Base.baseline)
    batches = [{"index": [0, 1]}, {"index": [2, 3]}, {"index": [4]}]
    one, same, other = Base(0.0), Base(0.0), Base(0.5)
    for module, drawn in ((one, 3), (same, 1), (other, 3)):
        images = torch.cat([baseline(module, batch)["image"] for batch in batches])
        assert images.tolist() == [i + module.offset for i in range(5)] and module.drawn == drawn


def test_a_method_that_moves_its_base_is_not_compared():
    baseline = results.remembering(lambda module, batch: None)
    assert baseline(object(), {"index": [0]}) is None


def test_fifths():
    logged = {"a": [float(i) for i in range(10)], "b": [7.0]}
    assert results.fifth(logged, 0) == {"a": 0.5, "b": 7.0} and results.fifth(logged, -1) == {"a": 8.5, "b": 7.0}


def test_families():
    assert family_of("shapes/dpo") == "preference" and family_of("shapes/flow_grpo") == "policy_gradient"


def test_more_seeds_on_the_same_prompts_do_not_narrow_the_interval():
    run = lambda low, high: {"exact": {"all": {"gain_interval": [low, high]}}}
    assert results.half_interval([run(-1, 2)]) == 1.5
    assert results.half_interval([run(-1, 1), run(0, 2)]) == 1.0


@pytest.mark.slow
def test_two_methods_end_to_end(tmp_path, monkeypatch, capsys):
    """Trains and tests, writes the table, and does not run again what is recorded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "results.json")
    monkeypatch.setattr(results, "TABLE", tmp_path / "results.md")
    command = "results --methods ipo online_dpo --seeds 1 --seconds 4 --test_batches 1"
    monkeypatch.setattr("sys.argv", command.split())
    results.main()
    runs = json.loads(results.RECORDS.read_text())["4 s"]
    assert set(runs) == {"ipo", "online_dpo"}
    for seeds in runs.values():
        assert seeds["1"]["exact"]["all"]["n"] == 32 and 4 <= seeds["1"]["fit_seconds"] < 60
        assert seeds["1"]["batches"] >= 1
    assert runs["ipo"]["1"]["exact"]["all"]["before"] == runs["online_dpo"]["1"]["exact"]["all"]["before"]
    assert runs["online_dpo"]["1"]["train/reward"][0] is not None and runs["ipo"]["1"]["train/reward"] == [None, None]
    assert results.TABLE.read_text().count("\n| `") == 2
    monkeypatch.setattr(results, "run", None)  # would fail if it were called
    results.main()
