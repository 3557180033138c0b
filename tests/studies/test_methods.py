import pytest
from lit_align.methods import PAGE, page


def test_the_list_of_methods_is_up_to_date():
    assert PAGE.read_text() == page(), "run python -m lit_align.methods"


@pytest.mark.parametrize("family", ["preference", "policy_gradient", "reward_modeling"])
def test_every_method_has_a_config_on_shapes(family):
    rows = page().split(f"## {family}\n")[1].split("\n## ")[0].splitlines()
    without = [row.split("`")[1] for row in rows if row.startswith("| [`") and "`shapes/" not in row]
    assert not without
