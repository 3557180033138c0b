import pytest

from lit_align.steering.reprompt import RePrompt

NOUNS, ADJECTIVES = ["dog", "tree", "thing", "animal"], ["big", "old", "sad", "dark", "wet"]


def edit(text, **kwargs):
    how = {"nouns": NOUNS, "adjectives": ADJECTIVES, "add": ["sad", "dark"]} | kwargs
    return RePrompt(**how).rewrite([text], {})[0]


@pytest.mark.parametrize("text, edited", [
    ("a dog, and a Tree!", "a sad dog, and a dark Tree!"),  # each gets one that the prompt lacks
    ("a sad dog and a tree", "a sad dog and a dark tree"),
    ("a big old wet dog", "a old wet dog"),  # at most two: the first goes
    ("a cat", "a cat"),
    ("three dog tree thing", "three sad dog dark tree thing"),  # `add` has no more
])  # fmt: skip
def test_adjectives_per_noun(text, edited):
    assert edit(text) == edited


def test_a_rubric_that_asks_for_nothing_changes_nothing():
    for text in ("a big old wet dog  ,", "a dog", ""):
        assert edit(text, per_noun=(0, 9)) == text


def test_concreteness_chooses_among_synonyms():
    how = {"per_noun": (0, 9), "concreteness": (4.0, 5.0), "ratings": {"thing": 2.0, "animal": 4.6, "item": 3.0, "dog": 4.8}}
    how["synonyms"] = {"thing": ["item", "animal"], "tree": ["oak"]}
    assert edit("a thing, a dog, a tree", **how) == "a animal, a dog, a tree"  # what has no rating is left alone


def test_adjectives_of_the_rows_emotion(tmp_path):
    (tmp_path / "nouns.txt").write_text("Dog\n\ntree\n")
    hook = RePrompt(str(tmp_path / "nouns.txt"), ADJECTIVES, add={"fear": ["dark"], "joy": ["bright"]})
    assert hook.rewrite(["a dog", "a dog"], {"emotion": ["joy", "fear"]}) == ["a bright dog", "a dark dog"]
    with pytest.raises(ValueError, match="give the file of prompts a column emotion"):
        hook.rewrite(["a dog"], {})
    with pytest.raises(ValueError, match="no adjectives for the emotion 'rage'"):
        hook.rewrite(["a dog"], {"emotion": ["rage"]})
    with pytest.raises(ValueError, match="per_noun asks for adjectives, and add has none"):
        RePrompt(NOUNS, ADJECTIVES)
