"""RePrompt: rules add, drop and replace words until the prompt's features lie in the ranges of a rubric."""

from pathlib import Path

from lit_align.diffusion.hook import Hook
from lit_align.paths import fetch
from lit_align.steering.phrases import words


class RePrompt(Hook):
    """Wang, Shen & Lim, CHI 2023 (arXiv 2302.09466), the editor: features of a prompt's words are brought into the
    ranges that made images express more in the authors' study. The ranges are an option here, as the paper's are for
    its own model and emotions; its word classes come from a tagger, ours from lists.

    A noun with fewer adjectives than the range allows gets those of `add` that the prompt does not have yet, right
    before it; of one with more, the first are dropped. A noun whose concreteness is outside its range is replaced by
    the first of its `synonyms` whose concreteness is inside.

    Args:
        nouns: words, or a file with one a line.
        adjectives: likewise.
        per_noun: fewest and most adjectives right before a noun.
        add: adjectives to add, in this order; or, for each emotion in the data's column `emotion`, such a list.
        concreteness: lowest and highest rating of a noun; None: not looked at.
        ratings: word -> its concreteness (Brysbaert et al. 2014: 1 to 5); nouns without one are left alone.
        synonyms: noun -> words that may replace it.
    """

    def __init__(
        self,
        nouns: list[str] | str,
        adjectives: list[str] | str,
        per_noun: tuple[int, int] = (1, 2),
        add: list[str] | dict[str, list[str]] | None = None,
        concreteness: tuple[float, float] | None = None,
        ratings: dict[str, float] | None = None,
        synonyms: dict[str, list[str]] | None = None,
    ):
        self.nouns, self.adjectives = (set(word_list(given)) for given in (nouns, adjectives))
        self.per_noun, self.add, self.concreteness = tuple(per_noun), add or [], concreteness
        self.ratings, self.synonyms = ratings or {}, synonyms or {}
        if not 0 <= self.per_noun[0] <= self.per_noun[1]:
            raise ValueError(f"RePrompt: per_noun is {list(self.per_noun)}; give the fewest and the most adjectives.")
        if self.per_noun[0] and not self.add:
            raise ValueError("RePrompt: per_noun asks for adjectives, and add has none.")

    def rewrite(self, texts, columns):
        if not isinstance(self.add, dict):
            return [self.edit(text, self.add) for text in texts]
        if "emotion" not in columns:
            raise ValueError("RePrompt: add has a list for each emotion: give the file of prompts a column emotion.")
        if unknown := [emotion for emotion in columns["emotion"] if emotion not in self.add]:
            raise ValueError(f"RePrompt: add has no adjectives for the emotion {unknown[0]!r}.")
        return [self.edit(text, self.add[emotion]) for text, emotion in zip(texts, columns["emotion"], strict=True)]

    def edit(self, text: str, add: list[str]) -> str:
        """The text, edited by the rubric; what lies between its words stays."""
        spans = words(text)
        fresh = [a for a in add if a not in {text[a:b].lower() for a, b in spans}]
        pieces, end, before = [], 0, []  # `before`: the pieces that are adjectives right before this word
        for start, stop in spans:
            pieces.append(text[end:start])
            word, end = text[start:stop], stop
            if word.lower() in self.nouns:
                low, high = self.per_noun
                for index in before[: max(len(before) - high, 0)]:
                    pieces[index] = ""
                    pieces[index + 1] = ""  # and the space after it
                missing = max(low - len(before), 0)
                pieces += [f"{adjective} " for adjective in fresh[:missing]] + [self.replaced(word)]
                fresh, before = fresh[missing:], []
            else:
                before = [*before, len(pieces)] if word.lower() in self.adjectives else []
                pieces.append(word)
        return "".join(pieces) + text[end:]

    def replaced(self, noun: str) -> str:
        """The noun, or the synonym whose concreteness the rubric allows."""
        inside = lambda word: self.concreteness[0] <= self.ratings.get(word, -1.0) <= self.concreteness[1]
        if self.concreteness is None or noun.lower() not in self.ratings or inside(noun.lower()):
            return noun
        return next((word for word in self.synonyms.get(noun.lower(), []) if inside(word)), noun)


def word_list(given: list[str] | str) -> list[str]:
    """Words in lower case, from a list or from a file with one a line."""
    found = Path(fetch(given)).read_text().split("\n") if isinstance(given, str) else given
    return [word.strip().lower() for word in found if word.strip()]
