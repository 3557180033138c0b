"""Layout guidance: cross-attention of an object is drawn into its box."""

import math
import warnings

import torch
from torch import Tensor

from lit_align.diffusion.process import append_dims
from lit_align.diffusion.state import State
from lit_align.policies.attention import matches
from lit_align.steering.phrases import Phrase, PhraseHook
from lit_align.steering.reward_guidance import check_gradient

Box = tuple[float, float, float, float]  # left, top, right, bottom, in [0, 1]
HALVES = {  # by the word between two objects
    "left": ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)),
    "right": ((0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0)),
    "above": ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)),
    "below": ((0.0, 0.5, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5)),
}


class LayoutGuidance(PhraseHook):
    """Backward guidance of Chen et al., WACV 2024 (arXiv 2304.03373), eq. 2: the loss is (1 - sum of A in the box / sum
    of A)^2, the mean over objects, their tokens and some layers' maps A, times `weight`; x_t <- x_t - sigma_t^2 grad L,
    while the loss without its weight is above `threshold`, at most `refinements` times a step.

    Boxes come from the column `boxes` of the data, one [left, top, right, bottom] in [0, 1] for each phrase; without
    it, two objects with left, right, above or below between them get the two halves of the image. A prompt without
    boxes is not guided.

    Args:
        objects, attributes: words of the prompt, see PhraseHook; boxes are the objects'.
        weight: of the loss.
        threshold: of the loss.
        end: the fraction of the run that is guided.
        refinements: gradient steps at most, at each step.
        layers: parts of the names of the layers whose maps are taken (default: the middle and the first up block with
            attention, of SD 1.5). In a transformer name some of its blocks.
    """

    def __init__(
        self,
        objects: list[str] | None = None,
        attributes: list[str] | None = None,
        weight: float = 30.0,
        threshold: float = 0.2,
        end: float = 0.2,
        refinements: int = 5,
        layers: list[str] | None = None,
    ):
        super().__init__(objects, attributes)
        self.weight, self.threshold, self.end, self.refinements = weight, threshold, end, refinements
        self.layers = layers or ["mid_block", "up_blocks.1"]

    def check(self, policy, sampler):
        super().check(policy, sampler)
        check_gradient("LayoutGuidance")
        names = [name for name in policy.denoiser.attn_processors if "attn1." not in name]
        if not any(matches(name, self.layers) for name in names):
            called = ", ".join(self.layers)
            raise ValueError(f"LayoutGuidance: no layer with text is called {called}; there are {names[0]}, ...")

    def on_init(self, policy, state):
        super().on_init(policy, state)
        own, given = state.extras[self], state.columns.get("boxes", [None] * len(state.prompts))
        own["boxes"] = [self.boxes(*row) for row in zip(state.texts, given, own["characters"], strict=True)]
        if missing := [prompt for prompt, boxes in zip(state.prompts, own["boxes"]) if not boxes]:
            warnings.warn(
                f"LayoutGuidance: {len(missing)} of {len(state.prompts)} prompts, such as {missing[0]!r}, have no "
                "boxes and are not guided."
            )

    def boxes(self, prompt: str, given: list | None, found: list[Phrase]) -> list[Box]:
        """A box for each phrase of the prompt, or none."""
        if given is not None:
            if len(given) != len(found):
                raise ValueError(f"{prompt!r} has {len(found)} phrases and {len(given)} boxes: give each phrase one.")
            return [tuple(box) for box in given]
        between = prompt[found[0].object[1] : found[1].object[0]].lower().split() if len(found) == 2 else []
        return next((list(halves) for word, halves in HALVES.items() if word in between), [])

    def nfe(self, inside, steps):
        return inside + 2 * self.refinements * math.ceil(self.end * steps)

    def losses(self, policy, state: State, x: Tensor) -> Tensor:
        """The loss of each particle (P,), without its weight; 0 without boxes."""

        def record(call):
            if call.kind != "self" and matches(call.name, self.layers):
                return call.words().mean(1).unflatten(1, call.grid)  # (P, h, w, L)

        with policy.attention(record=record) as layers:
            policy.denoise(x, state.t, state.cond)
        own, losses = state.extras[self], []
        for p, (phrases, boxes) in enumerate(zip(own["phrases"], own["boxes"])):
            each = [
                (1 - inside(maps[p][..., phrase.object], box)).square().mean()
                for phrase, box in zip(phrases, boxes)
                for maps in layers
            ]
            losses.append(torch.stack(each).mean() if each else 0 * layers[0].sum())
        return torch.stack(losses)

    def before_step(self, policy, state, sampler):
        super().before_step(policy, state, sampler)
        if state.i >= self.end * state.steps:
            return
        rows = torch.tensor([p for p, boxes in enumerate(state.extras[self]["boxes"]) if boxes], dtype=torch.long)
        state.x = state.x.clone()
        for _ in range(self.refinements):
            if not len(rows):
                break
            part = state.part(rows)
            x = part.x.detach().requires_grad_()
            with torch.enable_grad():
                loss = self.losses(policy, part, x)
                (gradient,) = torch.autograd.grad(loss.sum(), x)
            policy.calls["nfe_backward"] += len(x)  # through the maps, past the prediction that is counted otherwise
            size = self.weight * policy.process.sigma(part.t).square() * (loss.detach() > self.threshold)
            state.x[rows] = part.x - append_dims(size, x) * gradient
            rows = rows[(loss > self.threshold).cpu()]


def inside(maps: Tensor, box: Box) -> Tensor:
    """The share (n,) of maps (h, w, n) that lies in a box, of at least one cell."""
    h, w = maps.shape[:2]
    left, right = (round(side * w) for side in box[::2])
    top, bottom = (round(side * h) for side in box[1::2])
    part = maps[top : max(bottom, top + 1), left : max(right, left + 1)]
    return part.sum((0, 1)) / maps.sum((0, 1))
