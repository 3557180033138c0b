"""Prompt-to-Prompt: an edited prompt is drawn with the attention of the original one."""

import copy
import difflib

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.state import State
from lit_align.policies.attention import Attention, cells, refuse
from lit_align.steering.attention_edit import check_halves, editing
from lit_align.steering.phrases import positions, words


def alignment(policy, source: str, target: str, swap: bool) -> tuple[Tensor, Tensor]:
    """How the target's attention is made from the source's: M (L, L) and own (L,), for A_source M + own A_target.

    Words that both prompts have keep the source's maps; with `swap` so do words that stand for another one. Other words
    keep their own. Tokens after the prompts' ends correspond to one another.
    """
    (of_source, of_target), (s, t) = (policy.spans(p) for p in (source, target)), (words(source), words(target))
    matrix, own = torch.zeros(len(of_target), len(of_target)), torch.ones(len(of_target))
    text = lambda prompt, spans: [prompt[a:b].lower() for a, b in spans]
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(None, text(source, s), text(target, t), False).get_opcodes():
        if tag == "equal" or (tag == "replace" and swap and i_end - i == j_end - j):
            for a, b in zip(s[i:i_end], t[j:j_end]):
                rows, columns = positions(of_source, a), positions(of_target, b)
                if len(rows) == len(columns):
                    matrix[rows, columns] = 1.0
                else:  # every token of the new word gets a share of the old word's attention
                    matrix[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1 / max(len(columns), 1)
                own[columns] = 0.0
    ends = [max((p for p, (a, b) in enumerate(spans) if b > a), default=-1) + 1 for spans in (of_source, of_target)]
    special = [(p, p) for p in range(max(ends) + 1, len(own))]  # padding
    special += [(ends[0], ends[1])] if max(ends) < len(own) else []  # end of text
    special += [(0, 0)] if of_source[0] == of_target[0] == (0, 0) else []  # beginning of text
    for row, column in special:
        matrix[row, column], own[column] = 1.0, 0.0
    return matrix, own


class PromptToPrompt(Hook):
    """Hertz et al., ICLR 2023 (arXiv 2208.01626), section 3.2 and algorithm 1. Beside each sample its original is
    drawn, from the same noise and the prompt in the data's column `source`. The sample's cross-attention takes the
    original's maps for the words they share (refinement), and for a word in place of another (word swap); `reweight`
    scales words' maps. Twice the evaluations.

    Only UNets have cross-attention. Samples of real images need their inversion as initial noise.

    Args:
        cross_until: fraction of the run in which cross-attention is the original's.
        self_until: fraction of the run in which self-attention is the original's, in layers of at most `self_cells`
            image tokens.
        self_cells: see self_until.
        swap: false lets a word in place of another keep its own maps.
        reweight: word of the prompt -> factor of its maps, in the whole run.
        blend: words of the prompts; outside of where their maps are above `blend_threshold` of the maximum, the latents
            stay the original's (local blend).
        blend_threshold: see blend.
        blend_cell: latents to a side of a cell of the maps that are blended by.
    """

    needs_start = True

    def __init__(
        self,
        cross_until: float = 0.8,
        self_until: float = 0.4,
        self_cells: int = 256,
        swap: bool = True,
        reweight: dict[str, float] | None = None,
        blend: list[str] | None = None,
        blend_threshold: float = 0.3,
        blend_cell: int = 4,
    ):
        self.cross_until, self.self_until, self.self_cells, self.swap = cross_until, self_until, self_cells, swap
        self.reweight, self.blend = reweight or {}, [word.lower() for word in blend or []]
        self.blend_threshold, self.blend_cell = blend_threshold, blend_cell

    def check(self, policy, sampler):
        refuse(policy, "PromptToPrompt")
        check_halves("PromptToPrompt", sampler)
        if policy.denoiser_name != "unet":
            raise ValueError(
                f"PromptToPrompt replaces cross-attention, which {type(policy).__name__} lacks: use a UNet."
            )
        if sampler.step_std(policy).any():
            raise ValueError("PromptToPrompt draws a sample and its original alike: set DDIM's eta to 0.")
        if self.blend and self.blend_cell not in cells(policy):
            known = ", ".join(map(str, sorted(cells(policy))))
            raise ValueError(f"PromptToPrompt: blend_cell is {self.blend_cell}; this UNet's maps have {known}.")

    def nfe(self, inside, steps):
        return 2 * inside

    def on_init(self, policy, state: State) -> None:
        if state.prompts is None or "source" not in state.columns:
            raise ValueError("PromptToPrompt edits an original: give the file of prompts a column source.")
        super().on_init(policy, state)
        sources = list(state.columns["source"])
        pairs = list(zip(sources, state.texts))
        aligned = [alignment(policy, source, target, self.swap) for source, target in pairs]
        matrix, own = (torch.stack(part).to(state.x.device) for part in zip(*aligned))
        state.extras[self] = {
            "x": state.x,
            "cond": policy.condition(sources),
            "prompts": sources,
            "matrix": matrix,  # (P, L, L)
            "own": own,  # (P, L)
            "scale": torch.stack([self.scales(policy, target) for target in state.texts]).to(state.x.device),
            "blend": [[self.blended(policy, prompt) for prompt in pair] for pair in pairs],
            "seen": torch.zeros(len(pairs), 2, *state.x.shape[-2:], device=state.x.device),  # words' maps so far
        }

    def scales(self, policy, prompt: str) -> Tensor:
        """Factors (L,) of the tokens."""
        spans = policy.spans(prompt)
        scale = torch.ones(len(spans))
        for word in words(prompt):
            scale[positions(spans, word)] = self.reweight.get(prompt[slice(*word)].lower(), 1.0)
        return scale

    def blended(self, policy, prompt: str) -> list[int]:
        """Positions of the words to blend by."""
        spans, chosen = policy.spans(prompt), [w for w in words(prompt) if prompt[slice(*w)].lower() in self.blend]
        if self.blend and not chosen:
            raise ValueError(f"PromptToPrompt: {prompt!r} has none of the words in blend.")
        return sum((positions(spans, word) for word in chosen), [])

    def predict(self, policy, state, sampler):
        own, n, maps = state.extras[self], len(state.x), {}
        original = copy.copy(state)
        original.x, original.cond, original.prompts, original.texts = own["x"], own["cond"], *[own["prompts"]] * 2

        def record(call):
            if call.kind == "cross" or call.query.shape[2] <= self.self_cells:
                maps[call.name] = call.rows(slice(-n, None)).probabilities()
                self.see(own, 0, call, maps[call.name])

        with policy.attention(record=record):
            super().predict(policy, original, sampler)
        own["next"] = super().transition(policy, original, sampler).mean
        with editing(policy, n, lambda call: self.edit(state, call, maps)):
            super().predict(policy, state, sampler)

    def edit(self, state: State, call: Attention, maps: dict[str, Tensor]) -> Tensor | None:
        own, done = state.extras[self], state.i / state.steps
        if call.kind == "self":
            shared = done < self.self_until and call.name in maps
            return call.output(maps[call.name]) if shared else None
        if not (done < self.cross_until or self.reweight or self.blend):
            return None
        p = call.probabilities()
        if done < self.cross_until:
            p = maps[call.name] @ own["matrix"][:, None] + p * own["own"][:, None, None]
        p = p * own["scale"][:, None, None]
        self.see(own, 1, call, p)
        return call.output(p)

    def see(self, own: dict, which: int, call: Attention, p: Tensor) -> None:
        """Adds the maps of the words to blend by, of the original (0) or the sample (1)."""
        if self.blend and call.kind == "cross" and call.cell == self.blend_cell:
            for k, tokens in enumerate(own["blend"]):
                maps = p[k, ..., tokens[which]].sum(-1).mean(0).view(1, 1, *call.grid)
                own["seen"][k, which] += F.interpolate(maps, own["seen"].shape[-2:])[0, 0]

    def after_step(self, policy, state):
        super().after_step(policy, state)
        own = state.extras[self]
        own["x"] = own.pop("next")
        if self.blend:
            pooled = F.max_pool2d(own["seen"], 3, 1, 1)
            mask = (pooled > self.blend_threshold * pooled.amax((2, 3), keepdim=True)).any(1, keepdim=True)  # (P,1,h,w)
            state.x = torch.where(mask, state.x, own["x"])
