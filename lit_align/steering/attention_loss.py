"""Moving x_t down the gradient of a loss of attention maps, which several methods do."""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.diffusion.process import append_dims
from lit_align.diffusion.state import State
from lit_align.policies.attention import cells
from lit_align.steering.phrases import Phrase, PhraseHook
from lit_align.steering.reward_guidance import check_gradient


def smoothed(maps: Tensor, std: float = 0.5 * 2**0.5) -> Tensor:
    """Maps (..., h, w) under a 3 x 3 Gaussian. (Attend-and-Excite's kernel, said to have sigma 0.5, has this one.)"""
    line = torch.exp(-torch.tensor([-1.0, 0.0, 1.0], device=maps.device).square() / (2 * std**2))
    kernel = line[:, None] * line
    flat = F.pad(maps.view(-1, 1, *maps.shape[-2:]), (1, 1, 1, 1), mode="reflect")
    return F.conv2d(flat, (kernel / kernel.sum())[None, None]).view(maps.shape)


class AttentionLoss(PhraseHook):
    """Base of the methods that, before each of the first steps, move x_t down the gradient of a loss of the
    cross-attention maps (h, w) of the prompt's words. At some steps x_t is refined until the words' worst score has
    reached a threshold. A method overrides `judge_maps`.

    Maps are averaged over heads and over the layers whose image tokens have `cell` latents to a side, times 100,
    softmaxed over text tokens. Steps are moved by `step_size` sqrt(l), with l falling from 1 to 1/2 over the run.

    Args:
        objects, attributes: see PhraseHook.
        step_size: of the gradient.
        end: the fraction of the run that is steered.
        thresholds: fraction of the run -> the score to be reached there.
        refinements: gradient steps at most, at each of them.
        cell: latents to a side of a map's cell: 4 gives 16 x 16 maps for 64 x 64 latents.
        padding: false leaves padding and special tokens out of the softmax; true leaves out the first token and the
            last alone.
    """

    def __init__(
        self,
        objects: list[str] | None = None,
        attributes: list[str] | None = None,
        step_size: float = 20.0,
        end: float = 0.5,
        thresholds: dict[float, float] | None = None,
        refinements: int = 20,
        cell: int = 4,
        padding: bool = True,
    ):
        super().__init__(objects, attributes)
        self.step_size, self.end, self.refinements = step_size, end, refinements
        self.thresholds, self.cell, self.padding = thresholds or {}, cell, padding

    @abstractmethod
    def judge_maps(self, maps: Tensor, phrases: list[Phrase], progress: float) -> tuple[Tensor, Tensor]:
        """Loss and score, scalars, from one particle's softmaxed maps (h, w, L); positions are theirs."""

    def check(self, policy, sampler) -> None:
        super().check(policy, sampler)
        check_gradient(type(self).__name__)
        if self.cell not in (known := cells(policy)):
            known = ", ".join(map(str, sorted(known)))
            raise ValueError(f"{type(self).__name__}: cell is {self.cell}; this denoiser's maps have {known}: set one.")

    def nfe(self, inside, steps):
        return inside + 2 * (math.ceil(self.end * steps) + self.refinements * len(self.thresholds))

    def record(self, call):
        """What is kept of a layer's evaluation: words' maps (P, h w, L)."""
        return call.words().mean(1) if call.kind != "self" and call.cell == self.cell else None

    def maps(self, policy, x: Tensor, t: Tensor, cond: dict) -> Tensor:
        """Mean maps (P, h, w, L) of the conditional prediction at x."""
        with policy.attention(record=self.record) as layers:
            policy.denoise(x, t, cond)
        h, w = (-(-side // self.cell) for side in x.shape[-2:])
        return torch.stack(layers).mean(0).unflatten(1, (h, w))

    def softmaxed(self, policy, maps: Tensor, prompt: str) -> Tensor:
        """One particle's maps (h, w, L), softmaxed over the text tokens that count; the others are 0."""
        spans = policy.spans(prompt)
        counts = torch.tensor([end > start for start, end in spans], device=maps.device)
        if self.padding:
            counts = torch.ones_like(counts)
            counts[[0, -1]] = False
        return (100 * maps).masked_fill(~counts, -torch.inf).softmax(-1)

    @torch.enable_grad()
    def gradient(self, policy, state: State, rows: Tensor, judged=None) -> tuple[Tensor, ...]:
        """What `judged` gives of some particles (n,) each, and the first's gradient in x (n, ...), a minibatch at a
        time."""
        found, judged = [], judged or self.judged
        for some in rows.split(state.minibatch or len(rows)):
            part = state.part(some)
            x = part.x.detach().requires_grad_()
            maps = self.maps(policy, x, part.t, part.cond)
            values = [judged(policy, part, maps[p], p) for p in range(len(x))]
            columns = [torch.stack(column) for column in zip(*values, strict=True)]
            (gradient,) = torch.autograd.grad(columns[0].sum(), x)
            found.append((*(column.detach() for column in columns), gradient))
            policy.calls["nfe_backward"] += len(x)  # through the maps, past the prediction that is counted otherwise
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def judged(self, policy, state: State, maps: Tensor, p: int) -> tuple[Tensor, ...]:
        """Loss and score of a particle from its maps (h, w, L)."""
        maps = self.softmaxed(policy, maps, state.texts[p])
        return self.judge_maps(maps, state.extras[self]["phrases"][p], state.i / state.steps)

    def threshold(self, i: int, steps: int) -> float | None:
        """The score that step i refines to, if it does."""
        return next((v for at, v in self.thresholds.items() if i == round(at * steps)), None)

    def before_step(self, policy, state, sampler) -> None:
        super().before_step(policy, state, sampler)
        if state.i >= self.end * state.steps:
            return
        size = self.step_size * math.sqrt(1 - 0.5 * state.i / max(state.steps - 1, 1))
        every = torch.arange(len(state.x), device=state.x.device)
        loss, score, gradient = self.gradient(policy, state, every)
        goal = self.threshold(state.i, state.steps)
        for _ in range(self.refinements if goal is not None else 0):
            rows = (score < goal).nonzero().flatten()
            if not len(rows):
                break
            below = append_dims(score < goal, state.x)
            state.x = torch.where(below, state.x - size * gradient, state.x)
            loss[rows], score[rows], gradient[rows] = self.gradient(policy, state, rows)
        state.x = state.x - size * gradient
