import pytest
from hooked import draw, still

from lit_align.policies.flux2 import Flux2
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.attend_excite import AttendExcite
from lit_align.steering.phrases import phrases, positions

OBJECTS, ATTRIBUTES = ["circle", "squares", "dog"], ["red", "two", "small"]


def found(prompt, given=None, objects=OBJECTS, attributes=ATTRIBUTES):
    text = lambda span: prompt[slice(*span)]
    return [(text(p.object), [text(a) for a in p.attributes]) for p in phrases(prompt, given, objects, attributes)]


@pytest.mark.parametrize("prompt,want", [
    ("a small Red circle left of two squares", [("circle", ["small", "Red"]), ("squares", ["two"])]),
    ("a circle and a dog", [("circle", []), ("dog", [])]),
    ("a red hat on a dog", [("dog", [])]),  # red belongs to the hat
    ("reddish circles", []),
])  # fmt: skip
def test_objects_are_found_with_the_attributes_right_before_them(prompt, want):
    assert found(prompt) == want


def test_phrases_of_the_data_name_their_object_last():
    prompt = "a red car and the very old red car of a man"
    assert found(prompt, ["red car", "old red car", "a man"]) == [("car", ["red"]), ("car", ["old", "red"]), ("man", [])]
    assert [p.object for p in phrases(prompt, ["red car", "old red car"], [], [])] == [(6, 9), (31, 34)]
    with pytest.raises(ValueError, match="the phrase 'blue car' is not in"):
        found(prompt, ["blue car"])


@pytest.mark.parametrize("family,special", [(type(still()), 1), (StableDiffusion3, 1)], ids=["sd", "sd3"])
def test_positions_are_those_of_the_words_tokens(family, special):
    """A token per letter, after the beginning of text."""
    spans = still(family).spans("a red dog")
    assert positions(spans, (2, 5)) == [1 + special, 2 + special, 3 + special] and len(spans) >= 77
    assert positions(spans, (6, 9)) == [4 + special, 5 + special, 6 + special]


def test_the_shipped_words_are_single_tokens(shapes_sd):
    from lit_align.policies.adapters import Frozen
    from lit_align.policies.stable_diffusion import StableDiffusion

    policy = StableDiffusion(shapes_sd, Frozen())
    prompt = "a red circle left of a blue square"
    spans = policy.spans(prompt)
    assert [positions(spans, p.object) for p in phrases(prompt, None, ["circle", "square"], [])] == [[3], [8]]
    assert policy.condition([prompt])["text"].shape[1] == len(spans)


def test_what_is_not_found_or_cut_off_is_named():
    hook = AttendExcite(["dog"], cell=2)
    with pytest.raises(ValueError, match="AttendExcite finds no object in 'a red circle': give the data a column phrases"):
        draw(still(), hook, prompts=["a dog", "a red circle"])
    with pytest.raises(ValueError, match="is cut off before 'dog': shorten it"):
        draw(still(), hook, prompts=["x" * 80 + " dog", "a dog"])
    with pytest.raises(ValueError, match="was given conditioning alone"):
        draw(still(), hook, prompts=None, cond=still().condition(["a dog", "a dog"]))
    with pytest.raises(ValueError, match="which tokens a word has is not known of Flux2"):
        Flux2.spans(Flux2.__new__(Flux2), "a")


def test_phrases_come_with_the_rows():
    columns = {"phrases": [["a red circle"], ["b"]]}
    given = draw(still(), AttendExcite(cell=2), columns=columns)
    listed = draw(still(), AttendExcite(["circle", "b"], cell=2))
    assert (given - listed).abs().max() == 0
