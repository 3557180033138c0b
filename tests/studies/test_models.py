"""The table of model families. What its cells say is run by tests/policies/test_families*.py and test_single_file.py."""

import re

import pytest

from lit_align.paths import ROOT
from lit_align.policies.adapters import Frozen
from lit_align.studies import models


@pytest.fixture(scope="module")
def text():
    return models.page()


def test_the_page_is_up_to_date(text):
    assert models.PAGE.read_text() == text, "run python -m lit_align.studies.models"


def test_every_family_stands_on_it_with_a_recipe_or_a_dash(text):
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| [`")]
    assert [re.search(r"`(\w+)`", row[0])[1] for row in rows] == [cls.__name__ for cls in models.families()]
    named = {name for row in rows for name in re.findall(r"configs/(\w+)\.yaml", row[-1])}
    assert named and all((ROOT / f"configs/{name}.yaml").is_file() for name in named)


def test_single_files_that_are_said_to_be_read_are_read_in_a_test():
    code = (ROOT / "tests/policies/test_single_file.py").read_text()
    assert all(re.search(rf"\b{name}\(", code) for name in models.SINGLE_FILES)


@pytest.mark.parametrize("family", models.families(), ids=lambda c: c.__name__)
def test_gradient_checkpointing_is_as_said(family):
    policy = family("tiny", Frozen())
    if type(policy.denoiser)._supports_gradient_checkpointing:
        policy.denoiser.enable_gradient_checkpointing()
    else:
        with pytest.raises(ValueError, match="gradient checkpointing"):
            family("tiny", Frozen(), gradient_checkpointing=True)
