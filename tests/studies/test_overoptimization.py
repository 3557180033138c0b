"""The over-optimization page: where the callback would stop, and what the table says of it."""

import math

import pytest
from lit_align.overoptimization import COLORS, RUNS, SCALED, SHOWN, sheet, stopped, write
from PIL import Image

from lit_align import overoptimization


def points(peak: int, n: int = 9) -> list[dict]:
    """A proxy that rises for ever; what it stands for, and the second proxy, rise until `peak`."""
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
    for name in ("PAGE", "PLOT"):
        monkeypatch.setattr(overoptimization, name, tmp_path / getattr(overoptimization, name).name)
    records = {name: {"curve": points(4), "cores": 2} for name in RUNS}
    records[SCALED] |= {"curve": points(3), "scaled": {"0.5": points(3)[2]}}
    write(records)
    text = (tmp_path / "overoptimization.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `") for row in rows] == list(RUNS)
    assert rows[0][1:] == ["+0.00, 0.520", "+4.00, 0.600 (step 40)", "+8.00, 0.520 (step 80)", "step 60", "+4.00, 0.600 (step 40)", "100% |"]
    assert "0.5: +2.00, 0.580." in text
    picture = Image.open(tmp_path / "overoptimization.png")
    shown = {color for _, color in picture.getcolors(picture.width * picture.height)}
    assert {tuple(bytes.fromhex(color[1:])) for color in COLORS.values()} <= shown


def test_the_sheet_shows_base_best_kept_and_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overoptimization, "SHEET", tmp_path / "sheet.png")
    curve = points(4)
    curve[2]["exact"] = 0.9  # the best, which the callback does not see
    samples = overoptimization.folder(SHOWN) / "samples"
    samples.mkdir(parents=True)
    for p in curve:  # a grid is named by the steps that were made, a validation by the last of them
        Image.new("RGB", (400, 100), (p["step"], 0, 0)).save(samples / f"step_{p['step'] + (p['step'] > 0):06d}.png")
    sheet(SHOWN, curve)
    picture = Image.open(tmp_path / "sheet.png")
    assert [picture.getpixel((430 * i + 200, 90))[0] for i in range(4)] == [0, 20, 40, 80]
