"""Robustness to wrong labels: the pairs of each condition, what is run, table and figure."""

import json

import pytest
import torch
from datasets import Dataset
from PIL import Image

from lit_align.data.tables import read_table
from lit_align.paths import ROOT
from lit_align.shapes import WORLD
from lit_align.studies import robustness
from lit_align.studies.robustness import COLORS, CONDITIONS, Condition, disagreement, pair_file


@pytest.fixture(scope="module")
def lists():
    """Lists of four: two right and two wrong ones; large is independent of that, and all its values differ."""
    values = torch.rand(400, 4, generator=torch.Generator().manual_seed(0)).tolist()
    picture = lambda i, j: f"{i} {j}".encode()
    return [
        {"prompt": f"p{i}", "images": [picture(i, j) for j in range(4)], "correct": [0.0, 1.0, 1.0, 0.0], "large": four}
        for i, four in enumerate(values)
    ]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, lists):
    """Everything is written to a temporary folder."""
    for name in ("RECORDS", "PAGE", "FIGURE"):
        monkeypatch.setattr(robustness, name, tmp_path / getattr(robustness, name).name)
    Dataset.from_list(lists).to_parquet(tmp_path / "lists.parquet")
    monkeypatch.setattr(robustness, "LISTS", str(tmp_path / "lists.parquet"))
    monkeypatch.setattr(robustness, "FILES", tmp_path / "files")
    return tmp_path


@pytest.mark.parametrize("flip", [0, 0.1, 0.2, 0.3, 0.4])
def test_the_asked_share_of_labels_is_wrong(lists, flip):
    found = disagreement(read_table(str(pair_file(Condition(flip=flip), lists))), lists)
    assert found["pairs"] == 800 and found["tied"] == 0
    assert found["wrong"] == pytest.approx(flip, abs=4 * (flip * (1 - flip) / 800) ** 0.5)


def larger_wins(pairs, lists):
    """Of each pair, whether the winner is the larger one."""
    large = dict(zip((image for one in lists for image in one["images"]), (v for one in lists for v in one["large"])))
    return [(large[p["jpg_0"]] > large[p["jpg_1"]]) == (p["label_0"] == 1) for p in pairs]


def test_a_bias_of_more_than_half_overrides_the_judge(lists):
    pairs = {x: read_table(str(pair_file(Condition(strength=x), lists))) for x in (0.4, 0.75, 1)}
    wrong = [disagreement(p, lists)["wrong"] for p in pairs.values()]
    assert wrong[0] == 0 < wrong[1] < wrong[2] and all(larger_wins(pairs[1], lists))


@pytest.mark.parametrize("opposed", [0.25, 0.5])
def test_two_annotators_share_the_lists(lists, opposed):
    pairs = read_table(str(pair_file(Condition(strength=1, opposed=opposed), lists)))
    won = larger_wins(pairs, lists)
    assert sum(won) / len(won) == 1 - opposed
    assert {w for w, p in zip(won, pairs) if p["user_id"] < 4 * opposed} == {False}


def record(condition, method):
    """What a run might have measured: methods differ by 0.01, inverted labels cost a quarter of their fraction."""
    after = 0.6 - CONDITIONS[condition].flip / 4 + 0.01 * list(COLORS).index(method)
    exact = {"n": 64, "before": 0.5, "after": after, "gain_interval": [after - 0.52, after - 0.48]}
    return {"exact": {"all": exact}, "cores": 1, "machine": "m", "world": WORLD}


def test_what_is_recorded_is_not_run_again(monkeypatch, folder):
    asked = {}

    def run(method, seed, seconds, test_batches, runs, extra):
        (runs / "weights").mkdir(parents=True)
        asked[runs.name, method, seed] = dict(zip(extra[::2], extra[1::2]))
        return record(runs.name, method)

    monkeypatch.setattr(robustness, "fit_and_test", run)
    argv = ["--methods", "dpo", "rdpo", "--conditions", "judge", "flip-0.3", "--seconds", "5", "--seeds", "1"]
    robustness.main(argv)
    assert set(asked) == {(c, m, 1) for c in ("judge", "flip-0.3") for m in ("dpo", "rdpo")}
    first = asked.copy()
    asked.clear()
    robustness.main([*argv, "2"])
    assert set(asked) == {(c, m, 2) for c, m, _ in first}
    records = json.loads((folder / "robustness.json").read_text())["5 s"]
    for (name, method, seed), flags in asked.items():  # rdpo is given the fraction of wrong labels, dpo is not
        assert flags.pop("--data.path").endswith(f"{name}.parquet")
        rate = {"--model.flip_rate": records[name][method][str(seed)]["wrong"]} if method == "rdpo" else {}
        assert {flag: float(value) for flag, value in flags.items()} == rate
    assert sorted(p.name for p in (folder / "files").iterdir()) == ["flip-0.3.parquet", "judge.parquet"]  # no weights


def test_table_and_plot_show_every_condition_and_method(folder):
    labels = {"pairs": 800, "wrong": 0.1, "tied": 0.2}
    robustness.write({c: {m: {"1": record(c, m) | labels} for m in COLORS} for c in CONDITIONS}, 5)
    rows = [line.split(" | ") for line in (folder / "robustness.md").read_text().splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `") for row in rows] == list(CONDITIONS)
    assert [row[4] for row in rows[:3]] == ["0.600 ± 0.020", "0.575 ± 0.020", "0.550 ± 0.020"]  # dpo: 0.6 - flip / 4
    assert {tuple(row[1:4]) for row in rows} == {("800", "0.300", "0.200")}
    picture = Image.open(folder / "robustness.png").convert("RGB")
    colors = {color for _, color in picture.getcolors(picture.width * picture.height)}
    assert {tuple(bytes.fromhex(color[1:])) for color in COLORS.values()} <= colors


def test_the_page_is_what_the_records_say(folder, monkeypatch):
    """The shipped page is generated: no number in it was typed."""
    monkeypatch.setattr(robustness, "draw", lambda done, before: None)

    ((time, done),) = json.loads((ROOT / "docs/robustness.json").read_text()).items()
    robustness.write(done, int(time.split()[0]))
    assert (folder / "robustness.md").read_text() == (ROOT / "docs/robustness.md").read_text(), "run the study"
