from lit_align.methods import PAGE, page


def test_the_list_of_methods_is_up_to_date():
    assert PAGE.read_text() == page(), "run python -m lit_align.methods"


def test_every_method_has_a_config_on_shapes():
    rows = [line for line in page().splitlines() if line.startswith("| [`")]
    assert len(rows) > 30
    assert [r.split("`")[1] for r in rows if "`shapes/" not in r] == ["DDPO", "FKSteering"]
