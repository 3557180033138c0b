"""The results page: what it trains, what it shows, and what it marks."""

import json

import pytest

from lit_align.paths import ROOT
from lit_align.studies import results


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Records, page and runs are written to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "results.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    return tmp_path


def run(gain, seconds, world=results.WORLD):
    """What a run might have measured."""
    exact = {"n": 64, "before": 0.5, "after": 0.5 + gain, "gain_interval": [gain - 0.1, gain + 0.1]}
    return {"exact": {name: exact for name in ("all", *results.SKILLS)}, "fit_seconds": seconds, "cores": 1, "machine": "m", "world": world}


def rows(page):
    """{method cell: its cells} of a page's tables of measurements."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {cells[0]: dict(zip(results.HEADS, cells)) for cells in lines}


def test_every_method_of_the_table_names_its_budget():
    budget = results.budgets()
    assert {"dpo", "ddpo", "draft_k", "nft", "sft"} <= set(budget) and all(seconds >= 0 for seconds in budget.values())
    assert budget["d3po"] == budget["ddpo"] == budget["spo"] == budget["lpo"]  # all of them sample while they train


def test_a_row_that_was_measured_at_another_time_is_marked_and_listed(monkeypatch):
    monkeypatch.setattr(results, "budgets", lambda: {"dpo": 120, "spo": 600, "lpo": 600, "ddpo": 600})
    seeds = lambda gain, seconds: {"1": run(gain, seconds), "2": run(gain + 0.1, seconds + 2)}
    records = {"120 s": {"dpo": seeds(0.1, 120), "spo": seeds(0.2, 130), "lpo": seeds(0.0, 121)}, "600 s": {"ddpo": seeds(0.1, 600)}}
    results.write(records)
    page = results.PAGE.read_text()
    found = rows(page)
    assert list(found) == ["`spo` †", "`dpo`", "`lpo` †", "`ddpo`"]  # in each table the largest gain first
    assert [cells["training seconds"] for cells in found.values()] == ["131", "121", "122", "601"]
    assert found["`dpo`"]["gain, 95 % interval"] == "+0.150 [+0.050, +0.250]"
    assert "† `lpo`, `spo`: measured at 120 s; its budget is 600 s: to be run again." in page
    results.write(records | {"600 s": records["600 s"] | {"spo": seeds(0.3, 600)}})
    page = results.PAGE.read_text()
    assert "† `lpo`: measured at 120 s; its budget is 600 s: to be run again." in page
    assert "† `spo`: measured at 120 s; its budget is 600 s: compare its row at 600 s." in page and "`spo`" in rows(page)


def test_rows_of_an_earlier_world_stand_apart_and_are_repeated(monkeypatch):
    old = run(0.3, 120, world=1)
    del old["world"]  # records of world 1 do not name it
    results.write({"120 s": {"dpo": {"1": run(0.1, 120), "2": old}, "ipo": {"1": old}}})
    now, before = results.PAGE.read_text().split("# Measured in an earlier world")
    assert rows(now).keys() == {"`dpo`"} and rows(now)["`dpo`"]["seeds: least .. most (n)"] == "+0.100 .. +0.100 (1)"
    assert rows(before).keys() == {"`dpo`", "`ipo`"} and "## World 1: 120 s of training" in before
    results.RECORDS.write_text(json.dumps({"120 s": {"dpo": {"1": run(0.1, 120), "2": old}}}))
    asked = []
    monkeypatch.setattr(results, "fit_and_test", lambda method, seed, *rest: asked.append(seed) or run(0.2, 120))
    results.main(["--methods", "dpo", "--seeds", "1", "2"])
    assert asked == [2] and "earlier" not in results.PAGE.read_text()


def test_steering_has_a_table_of_its_own_with_its_cost(monkeypatch):
    budget = results.budgets()
    assert budget["best_of_n"] == budget["das"] == 0 and "train_reward" not in budget
    asked, cost = [], {"test/cost/nfe_forward": 40.0, "test/cost/reward_calls": 4.0}
    monkeypatch.setattr(results, "steer_and_test", lambda method, seed, *rest: asked.append((method, seed)) or run(0.2, 0) | cost)
    results.main(["--methods", "best_of_n", "--seeds", "1", "2", "--seconds", "7"])
    page = results.PAGE.read_text()
    assert asked == [("best_of_n", 1), ("best_of_n", 2)] and "## Steering, without training" in page
    heads = next(line for line in page.splitlines() if line.startswith("| method")).strip("| ").split(" | ")
    cells = dict(zip(heads, next(line for line in page.splitlines() if line.startswith("| `best_of_n`")).strip("| ").split(" | ")))
    assert cells["gain, 95 % interval"] == "+0.200 [+0.100, +0.300]" and "training seconds" not in cells
    assert [cells[name] for name in results.COSTS] == ["40", "0", "0", "4"]


def test_the_page_is_what_the_records_say():
    """The shipped page is generated: no number in it was typed."""

    results.write(json.loads((ROOT / "docs/results.json").read_text()))
    assert results.PAGE.read_text() == (ROOT / "docs/results.md").read_text(), "run make results METHODS="


def test_a_method_without_a_config_is_refused(capsys):
    with pytest.raises(SystemExit):
        results.main(["--methods", "dop"])
    assert "no configs/shapes/dop.yaml has a budget; there are " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="has gone, but no configs/shapes/gone.yaml"):
        results.write({"120 s": {"gone": {"1": run(0.1, 120)}}})


def test_each_method_gets_its_budget_and_what_is_recorded_is_not_repeated(monkeypatch):
    asked = []

    def measured(method, seed, seconds, test_batches, runs):
        asked.append((method, seed, seconds))
        return run(0.1, seconds)

    monkeypatch.setattr(results, "fit_and_test", measured)
    budget = results.budgets()
    results.main(["--methods", "dpo", "ddpo", "--seeds", "1"])
    assert asked == [("dpo", 1, budget["dpo"]), ("ddpo", 1, budget["ddpo"])] and budget["dpo"] < budget["ddpo"]
    results.main(["--methods", "dpo", "ddpo", "--seeds", "1", "2"])
    assert asked[2:] == [("dpo", 2, budget["dpo"]), ("ddpo", 2, budget["ddpo"])] and "†" not in "".join(rows(results.PAGE.read_text()))


@pytest.mark.slow
def test_two_methods_end_to_end():
    results.main("--methods ipo online_dpo --seeds 1 --seconds 4 --test_batches 1".split())
    runs = json.loads(results.RECORDS.read_text())["4 s"]
    assert set(runs) == {"ipo", "online_dpo"}
    for seeds in runs.values():
        assert seeds["1"]["exact"]["all"]["n"] == 32 and 4 <= seeds["1"]["fit_seconds"] < 300
        assert seeds["1"]["batches"] >= 1
    assert runs["ipo"]["1"]["exact"]["all"]["before"] == runs["online_dpo"]["1"]["exact"]["all"]["before"]
    assert runs["online_dpo"]["1"]["train/reward"][0] is not None and runs["ipo"]["1"]["train/reward"] == [None, None]
    assert set(rows(results.PAGE.read_text())) == {"`ipo` †", "`online_dpo` †"}
