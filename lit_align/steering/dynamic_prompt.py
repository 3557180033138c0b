"""PAE's dynamic prompts: words with a weight and the part of the run in which they are there."""

import re
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.state import State
from lit_align.steering.phrases import PhraseHook, positions
from lit_align.steering.prompt2prompt import PromptToPrompt

BRACKET = re.compile(r"\[([^\[\]:]*):([^\[\]:]*)-([^\[\]:]*):([^\[\]:]*)\]")


class Piece(NamedTuple):
    """A part of a prompt. The window counts the run down: 1 is the noisiest step's begin, 0 the last one's end."""

    text: str
    first: float = 0.0  # the window's end near the finished image
    last: float = 1.0  # the window's end near the noise
    weight: float = 1.0

    def active(self, i: int, steps: int) -> bool:
        """Whether it is there at step i of `steps`: from steps - int(last steps) on, before steps - int(first
        steps)."""
        return steps - int(self.last * steps) <= i < steps - int(self.first * steps)


def parse(prompt: str) -> list[Piece]:
    """The pieces of a prompt such as "a horse, [detailed:0.85-1:1.25]"; brackets that are no [text:a-b:weight] are
    text. Raises ValueError for a window outside [0, 1] or a weight that is not above 0."""
    pieces, end = [], 0
    for m in BRACKET.finditer(prompt):
        try:
            first, last, weight = map(float, m.groups()[1:])
        except ValueError:
            continue
        if not (0 <= first < last <= 1 and 0 < weight < 100):
            raise ValueError(f"{m[0]} in {prompt!r}: a window is a-b with 0 <= a < b <= 1, and a weight above 0.")
        pieces += [Piece(prompt[end : m.start()]), Piece(m[1], first, last, weight)]
        end = m.end()
    return [piece for piece in (*pieces, Piece(prompt[end:])) if piece.text]


def clean(prompt: str) -> str:
    """The words of a dynamic prompt, all of them, without brackets."""
    return "".join(piece.text for piece in parse(prompt))


def at_step(pieces: list[Piece], i: int, steps: int) -> tuple[str, tuple]:
    """The text at step i, and its weighted parts: (start, end, weight), in characters."""
    text, weighted = "", []
    for piece in pieces:
        if piece.active(i, steps):
            weighted += [(len(text), len(text) + len(piece.text), piece.weight)] if piece.weight != 1 else []
            text += piece.text
    return text, tuple(weighted)


def weigh(text: Tensor, spans: list[tuple[int, int]], weighted: tuple) -> Tensor:
    """Token embeddings (L, D) with the rows of weighted characters multiplied, at the mean (over tokens and channels)
    that they had before."""
    factor = torch.ones(len(text), 1, device=text.device)
    for start, end, weight in weighted:
        factor[positions(spans, (start, end))] = weight
    scaled = text.float() * factor
    return (scaled * (text.float().mean() / scaled.mean())).to(text)


class DynamicPrompt(Hook):
    """Mo et al., CVPR 2024 (arXiv 2404.04095): the prompt changes along the run. `[words:a-b:weight]` is there while
    the rest of the run is between b and a of it (1 is pure noise: 0.5-1 is the first half, 0-1 the whole run), and the
    embeddings of its tokens are multiplied by the weight, at an unchanged mean of the whole embedding. At each step the
    prompt without its absent words is encoded. (The release weighs, besides, the token that stands where one was before
    absent words were deleted; here none does.)

    Dynamic prompts come from the data's column `dynamic`, and images are judged by the prompt; without the column the
    prompt itself may have brackets. `PAE` writes them by a trained policy. A prompt without brackets is drawn as ever.
    """

    needs_start = True

    def check(self, policy, sampler):
        if reading := next((h for h in sampler.steering if isinstance(h, PhraseHook | PromptToPrompt)), None):
            name = type(reading).__name__
            raise ValueError(
                f"{name} looks at words whose places {type(self).__name__} changes at each step: leave one out."
            )

    def rewrite(self, texts, columns):
        return list(columns.get("dynamic", texts))

    def spoken(self, texts):
        return [clean(text) for text in texts]

    def on_init(self, policy, state: State) -> None:
        super().on_init(policy, state)
        if state.texts is None:
            raise ValueError(f"{type(self).__name__} reads the prompts, and was given conditioning alone.")
        pieces = [parse(text) for text in state.texts]
        plans = [[at_step(row, i, state.steps) for i in range(state.steps)] for row in pieces]  # (P, T)
        kinds = [list(dict.fromkeys([(clean(text), ()), *plan])) for text, plan in zip(state.texts, plans)]
        if all(len(own) == 1 for own in kinds):
            return
        most = max(map(len, kinds))
        encoded = {}
        for kind in dict.fromkeys(kind for own in kinds for kind in own[1:]):
            encoded[kind] = self.encoded(policy, *kind)
        rows = []
        for p, own in enumerate(kinds):
            plain = {k: v[p : p + 1] for k, v in state.cond.items()}  # as without this hook, to the last bit
            rows.append([plain, *(encoded[kind] for kind in own[1:]), *[plain] * (most - len(own))])
        state.extras[self] = {
            "at": torch.tensor([[own.index(step) for step in plan] for own, plan in zip(kinds, plans)]),  # (P, T)
            "cond": {
                key: torch.stack([torch.cat([cond[key] for cond in row]) for row in rows])  # (P, kinds, ...)
                for key in state.cond
            },
        }

    def encoded(self, policy, text: str, weighted: tuple) -> dict[str, Tensor]:
        """Conditioning (1, ...) of a text with weighted parts."""
        cond = policy.condition([text])
        return cond | {"text": weigh(cond["text"][0], policy.spans(text), weighted)[None]} if weighted else cond

    def turn(self, state: State) -> None:
        """Sets the conditioning of the step."""
        if own := state.extras.get(self):
            every = range(len(state.x))
            state.cond = {k: v[every, own["at"][:, state.i].to(v.device)] for k, v in own["cond"].items()}

    def before_step(self, policy, state, sampler):
        self.turn(state)
        super().before_step(policy, state, sampler)

    def predict(self, policy, state, sampler):
        self.turn(state)
        super().predict(policy, state, sampler)
