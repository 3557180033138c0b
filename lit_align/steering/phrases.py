"""The words of a prompt that attention methods look at."""

import re
from typing import NamedTuple

from lit_align.diffusion.hook import Hook
from lit_align.policies.attention import refuse

Span = tuple[int, int]
LITTLE = {"a", "an", "the", "of", "with", "in", "on", "and", "very"}  # words of a phrase that are no attributes


class Phrase(NamedTuple):
    """An object and its attributes: characters of the prompt, or positions of its tokens."""

    object: Span | list[int]
    attributes: list[Span] | list[list[int]]


def words(text: str, start: int = 0) -> list[Span]:
    return [(start + m.start(), start + m.end()) for m in re.finditer(r"\w+", text)]


def phrases(prompt: str, given: list[str] | None, objects: list[str], attributes: list[str]) -> list[Phrase]:
    """The phrases of a prompt, as characters: those `given`, whose last word is the object; or, without them, every
    word of `objects` with the words of `attributes` right before it."""
    found, pending = [], []
    if given is None:
        for span in words(prompt):
            word = prompt[slice(*span)].lower()
            if word in objects:
                found.append(Phrase(span, pending))
            pending = [*pending, span] if word in attributes else []
        return found
    at = 0
    for phrase in given:
        start = prompt.lower().find(phrase.lower(), at)
        if start < 0:
            raise ValueError(f"the phrase {phrase!r} is not in {prompt!r} after the phrases before it.")
        *rest, last = words(prompt[start : start + len(phrase)], start)
        found.append(Phrase(last, [span for span in rest if prompt[slice(*span)].lower() not in LITTLE]))
        at = start + len(phrase)
    return found


def positions(spans: list[Span], word: Span) -> list[int]:
    """The positions of the tokens that overlap a word's characters."""
    return [p for p, (start, end) in enumerate(spans) if start < word[1] and end > word[0]]


class PhraseHook(Hook):
    """Base of the hooks that know the objects of a prompt. `state.extras[self]` lists each particle's phrases, as
    positions of tokens ("phrases") and as characters of the prompt ("characters").

    Objects come from the column `phrases` of the data, a list such as ["a red circle", "a blue square"] for each
    prompt, each in the prompt with its object last; without that column, from the lists of words.

    Args:
        objects: words that are objects.
        attributes: words that are attributes of the object right after them.
    """

    def __init__(self, objects: list[str] | None = None, attributes: list[str] | None = None):
        self.objects = [word.lower() for word in objects or []]
        self.attributes = [word.lower() for word in attributes or []]

    def check(self, policy, sampler) -> None:
        refuse(policy, type(self).__name__)
        policy.spans("a")

    def on_init(self, policy, state) -> None:
        if state.texts is None:
            raise ValueError(f"{type(self).__name__} reads the prompts' words, and was given conditioning alone.")
        given = state.columns.get("phrases", [None] * len(state.texts))
        found = [self.find(*row) for row in zip(state.texts, given, strict=True)]
        tokens = [self.tokens(policy, *row) for row in zip(state.texts, found)]
        state.extras[self] = {"characters": found, "phrases": tokens}
        super().on_init(policy, state)

    def find(self, prompt: str, given: list[str] | None) -> list[Phrase]:
        if found := phrases(prompt, given, self.objects, self.attributes):
            return found
        raise ValueError(
            f"{type(self).__name__} finds no object in {prompt!r}: give the data a column phrases, or list the words "
            "in objects."
        )

    def tokens(self, policy, prompt: str, found: list[Phrase]) -> list[Phrase]:
        spans = policy.spans(prompt)
        for phrase in found:
            if not positions(spans, phrase.object):
                raise ValueError(f"{prompt!r} is cut off before {prompt[slice(*phrase.object)]!r}: shorten it.")
        return [Phrase(positions(spans, p.object), [positions(spans, a) for a in p.attributes]) for p in found]
