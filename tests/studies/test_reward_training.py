"""The study of reward modelling: what it measures, and its page."""

import pytest

from lit_align.studies import reward_training as study
from lit_align.studies.runs import read_records


def fake(accuracy=0.7, limit=0.8, **more):
    return {"accuracy": accuracy, "limit": limit, "agreement": 0.9, "n": 100, "steps": 200, "world": 2, "cpu_seconds": 1} | more


def test_a_row_is_the_mean_over_seeds_with_its_interval_over_pairs():
    cells = study.row("BradleyTerry", [fake(0.7), fake(0.8)])
    assert cells[0] == "`BradleyTerry`" and cells[3] == "0.750 [0.690, 0.810]" and cells[4:6] == ["0.800", "83%"] and cells[-1] == "2"


def test_what_is_special_to_an_objective_is_said():
    records = {
        "PreferenceMixture": {"1": fake(groups=0.75)},
        "BradleyTerry, mixed": {"1": fake(0.55)},
        "BootstrapEnsemble": {"1": fake() | {"agreement where sure": 0.95, "agreement where unsure": 0.75}},
        "RaoKupper": {"1": fake(theta=1.5) | {"tie margin": 0.2, "other margin": 1.4}},
    }
    said = study.notes(records)
    assert "75% of the 12 annotators" in said and "0.550" in said and "0.950" in said and "theta 1.50" in said and said.count("\n") == 3


def test_the_page_is_up_to_date(tmp_path, monkeypatch):
    text = study.PAGE.read_text()
    monkeypatch.setattr(study, "PAGE", tmp_path / "page.md")
    study.write(read_records(study.RECORDS))
    assert (tmp_path / "page.md").read_text() == text, "run python -m lit_align.studies.reward_training"


@pytest.mark.slow
@pytest.mark.parametrize("name", study.RUNS)
def test_every_objective_is_trained_and_tested(name):
    run = study.RUNS[name]
    found = study.tested(run, study.train(run, 1, steps=2), 1, n=60)
    assert 0.5 < found["limit"] <= 1 and 0 <= found["accuracy"] <= 1 and found["n"] <= 60
