"""The page on steering: what it runs, what it keeps, what it shows."""

import json

import pytest
from PIL import Image

from lit_align.configs import CONFIGS, load_config
from lit_align.studies import results, steering


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, file in (("RECORDS", "steering.json"), ("PAGE", "steering.md"), ("FIGURE", "steering.png")):
        monkeypatch.setattr(steering, name, tmp_path / file)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "results.json")
    return tmp_path


def run(gain, reward, forward, backward=0, world=steering.WORLD):
    """What a run might have measured."""
    part = lambda g: {"n": 256, "before": 0.5, "after": 0.5 + g, "gain_interval": [g - 0.1, g + 0.1]}
    found = {"exact": part(gain), "proxy": part(reward), "world": world, "cores": 1, "machine": "m"}
    return found | {"test/cost/nfe_forward": forward, "test/cost/nfe_backward": backward}


def test_every_config_of_steering_stands_in_the_guide_once():
    steered = {p.stem for p in (CONFIGS / "shapes").glob("*.yaml") if load_config(str(p))["model"]["class_path"] == "Steered"}
    assert len(steering.methods()) == len(set(steering.methods())) and set(steering.methods()) == steered


@pytest.mark.parametrize("method", [*steering.BUDGETED, *steering.COUNTED])
def test_a_knob_is_an_option_of_its_class(method):
    from lit_align.cli import import_all
    from lit_align.cli_errors import options, subclasses
    from lit_align.diffusion.hook import Hook
    from lit_align.diffusion.sampler import Sampler

    import_all()
    classes = {c.__name__: c for base in (Hook, Sampler) for c in subclasses(base)}
    before, after = (config["model"]["init_args"]["sampler"] for config in (load_config(f"shapes/{method}"), steering.steered(method, "8")))
    part = after if "sampler" in after["init_args"] or method in steering.BUDGETED else after["init_args"]["steering"][0]
    knob = {**steering.BUDGETED, **steering.COUNTED}[method]
    assert {knob} <= options(classes[part["class_path"]]) and after != before
    if method in steering.BUDGETED:
        inner = after["init_args"]["sampler"]["init_args"]
        assert after["init_args"]["max_nfe"] == 8 * inner["steps"] * (1 if inner["guidance_scale"] == 1 else 2)


def test_rows_are_of_this_world_and_say_what_is_missing():
    records = {"best_of_n": {"2": {"1": run(0.1, 1.0, 20), "2": run(0.2, 1.5, 20)}, "4": {"1": run(0.3, 2.0, 40, world=1)}}}
    records["dps"] = {"own": {"1": run(-0.1, 3.0, 10, 10)}}
    table = {"cfgpp": {"1": {"exact": {"all": run(0.05, 0, 0)["exact"]}, "world": steering.WORLD, "test/cost/nfe_forward": 30.0}}}
    rows = {row[0]: row[1:] for row in steering.rows(records, table)}
    assert rows["`best_of_n`"] == ["2 x", "20", "0.500 -> 0.650", "+0.150 [+0.050, +0.250]", "+0.50 -> +1.75", "2"]
    assert rows["`dps`"] == ["", "20", "0.500 -> 0.400", "-0.100 [-0.200, +0.000]", "+0.50 -> +3.50", "1"]
    assert rows["`cfgpp`"][:3] == ["256 prompts", "30", "0.500 -> 0.550"] and rows["`fk_steering`"][1] == "not measured yet"


def test_page_and_figure(folder):
    steering.write()
    assert "not measured yet" in steering.PAGE.read_text() and not steering.FIGURE.exists()
    (folder / "steering.json").write_text(json.dumps({"best_of_n": {f: {"1": run(0.1, 1.0, 10 * int(f))} for f in "248"}, "dps": {"own": {"1": run(0, 1.0, 20)}}}))
    steering.main([])
    assert "steering.png" in steering.PAGE.read_text() and min(Image.open(steering.FIGURE).size) > 300


def test_a_run_is_kept_and_not_repeated(folder, monkeypatch):
    """Through the command line, on one batch; a second process that is at the same run is left alone."""
    asked, real = [], steering.lit_align

    def small(command, *flags):
        asked.append(flags)
        real(command, *flags, "--data.val_batch_size", "2", "--model.sampler.sampler.steps", "2")

    monkeypatch.setattr(steering, "lit_align", small)
    words = ["--methods", "best_of_n", "--factors", "2", "--seeds", "1", "--test_batches", "1"]
    with steering.alone(steering.RUNS / "claims/best_of_n-2-1"):
        steering.main(words)
    assert not asked and not steering.RECORDS.exists()
    steering.main(words)
    kept = json.loads(steering.RECORDS.read_text())["best_of_n"]["2"]["1"]
    assert kept["world"] == steering.WORLD and kept["exact"]["n"] == 2 and kept["test/cost/nfe_forward"] == 20 and "proxy" in kept
    steering.main(words)
    assert len(asked) == 1
    with pytest.raises(SystemExit):
        steering.main(["--methods", "dpo"])
