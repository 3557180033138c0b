"""The list of methods."""

import pytest

from lit_align.studies.methods import PAGE, configs, methods, page


@pytest.fixture(scope="module")
def text():
    return page()


def test_the_page_is_up_to_date(text):
    assert PAGE.read_text() == text, "run python -m lit_align.studies.methods"


def test_every_method_has_a_config_on_shapes():
    used = configs()
    without = [
        cls.__name__
        for family, classes in methods().items()
        for cls in classes
        if not any(name.startswith("shapes/") for name in used.get(cls.__name__, []))
    ]
    assert not without


def test_a_class_lies_in_the_family_of_its_folder_and_bases_are_left_out():
    found = {family: {cls.__name__ for cls in classes} for family, classes in methods().items()}
    assert "DiffusionDPO" in found["preference"] and "Preference" not in found["preference"]
    assert "SPO" in found["trajectory_preference"] and "FlowGRPO" in found["policy_gradient"]
    assert not any("Algorithm" in names for names in found.values())
