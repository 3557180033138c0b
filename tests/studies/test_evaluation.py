"""The page of evaluation: up to date, complete, every link leads to a file, its commands parse."""

import re

import pytest

from lit_align.configs import find_config
from lit_align.paths import ROOT
from lit_align.studies.evaluation import DATASETS, MEASURES, METRICS, PAGE, metrics, page, row


@pytest.fixture(scope="module")
def text():
    return page()


def test_the_page_is_up_to_date(text):
    assert PAGE.read_text() == text, "run python -m lit_align.studies.evaluation"


def test_every_metric_stands_in_a_row_of_the_survey_or_of_what_came_after():
    named = {name for names, _ in MEASURES.values() for name in names}
    assert named == {cls.__name__ for cls in metrics()}


@pytest.mark.parametrize("cls", metrics(), ids=lambda c: c.__name__)
def test_every_metric_has_a_test_and_says_what_it_loads(cls):
    told = dict(zip(METRICS, row(cls)))
    assert told["test"] != "-" and told["numbers"]


def test_every_dataset_has_a_test_of_its_format(text):
    rows = [line for line in text.splitlines() if line.startswith(tuple(f"| {name} |" for name in DATASETS))]
    assert len(rows) == len(DATASETS) and all(re.search(r"\[`test_\w+\.py`\]", line) for line in rows)


def test_links_and_configs_exist(text):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (PAGE.parent / target).resolve().is_file(), target
    for name in re.findall(r"--config (\S+)", text):
        assert "<" in name or find_config(name).is_file()
    assert (ROOT / "configs/evaluate").is_dir()
