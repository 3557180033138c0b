"""The over-optimization page: where the callback stops, what the table says, and the figures."""

import json
import math

import pytest
from PIL import Image

from lit_align.paths import ROOT
from lit_align.studies import overoptimization
from lit_align.studies.overoptimization import COLORS, RUNS, SCALED, SHOWN, samples, stopped, write


def points(peak: int, n: int = 9) -> list[dict]:
    """A proxy that always rises; the held-out and the exact reward rise until `peak`."""
    fall = lambda i: -abs(i - peak)
    return [{"step": 10 * i, "proxy": float(i), "second": fall(i) / 2, "exact": 0.6 + fall(i) / 50, "diversity": 1.0} for i in range(n)]


@pytest.mark.parametrize("peak", [1, 4, 6])
def test_the_callback_keeps_the_peak_and_ends_two_validations_after_it(peak):
    kept = stopped(points(peak))
    assert kept["step"] == 10 * peak and kept["ended"] == 10 * (peak + 2)


def test_the_callback_does_not_see_the_exact_reward():
    changed = [p | {"exact": math.nan} for p in points(4)]
    assert stopped(changed)["step"] == stopped(points(4))["step"] == 40


def test_without_over_optimization_it_runs_to_the_end():
    kept = stopped(points(8))
    assert kept["step"] == kept["ended"] == 80


def test_table_and_plot(tmp_path, monkeypatch):
    for name in ("PAGE", "FIGURE"):
        monkeypatch.setattr(overoptimization, name, tmp_path / getattr(overoptimization, name).name)
    records = {name: {"curve": points(4), "cores": 2} for name in RUNS}
    records[SCALED] |= {"curve": points(3), "scaled": {"0.5": points(3)[2]}}
    write(records)
    text = (tmp_path / "overoptimization.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `") for row in rows] == list(RUNS)
    assert rows[0][1:] == ["+0.00, 0.520", "+4.00, 0.600 (step 40)", "+8.00, 0.520 (step 80)", "step 60", "+4.00, 0.600 (step 40)", "100% |"]
    assert "| 0.5 | +2.00 | 0.580 |" in text
    picture = Image.open(tmp_path / "overoptimization.png").convert("RGB")
    shown = {color for _, color in picture.getcolors(picture.width * picture.height)}
    assert {tuple(bytes.fromhex(color[1:])) for color in COLORS.values()} <= shown


def test_the_samples_show_base_best_kept_and_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overoptimization, "SAMPLES", tmp_path / "samples.png")
    curve = points(4)
    curve[2]["exact"] = 0.9  # the best exact reward, which the callback does not read
    grids = overoptimization.folder(SHOWN) / "samples"
    grids.mkdir(parents=True)
    for p in curve:  # a grid is named by the number of steps made, a validation by the index of the last of them
        Image.new("RGB", (400, 100), (p["step"], 0, 0)).save(grids / f"step_{p['step'] + (p['step'] > 0):06d}.png")
    samples(SHOWN, curve)
    picture = Image.open(tmp_path / "samples.png").convert("RGB")
    assert [picture.getpixel((430 * i + 200, 90))[0] for i in range(4)] == [0, 20, 40, 80]


def test_the_page_is_what_the_records_say(tmp_path, monkeypatch):
    """The shipped page is generated: no number in it was typed."""

    monkeypatch.setattr(overoptimization, "PAGE", tmp_path / "overoptimization.md")
    monkeypatch.setattr(overoptimization, "draw", lambda records: None)
    write(json.loads((ROOT / "docs/overoptimization.json").read_text()))
    assert (tmp_path / "overoptimization.md").read_text() == (ROOT / "docs/overoptimization.md").read_text(), "run the study"


def test_a_long_run_trains_longer_and_every_run_starts_with_its_base(tmp_path, monkeypatch):
    called = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overoptimization, "lit_align", lambda *words: called.append(words))
    monkeypatch.setattr(overoptimization, "curve", lambda folder: [folder])
    assert overoptimization.fit("draft") == [overoptimization.folder("draft")]
    overoptimization.fit(SHOWN)
    assert [words[0] for words in called] == ["validate", "fit"] * 2
    assert [words[-1] for words in called[1::2]] == ["600", "1800"]
    assert called[1][1 : 1 + len(called[0]) - 1] == called[0][1:]  # the same flags
