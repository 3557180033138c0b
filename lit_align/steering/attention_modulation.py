"""Attention modulation: sharper self-attention, cross-attention to one object per patch, and phases of emphasis."""

import torch

from lit_align.steering.attention_edit import check_halves, editing
from lit_align.steering.phrases import PhraseHook


class AttentionModulation(PhraseHook):
    """Wu et al. 2024 (arXiv 2404.13899), for SDXL. No code was released, and the paper's constants were not at hand:
    the defaults are ours.

    - Early, self-attention has the temperature `tau`: softmax(Q K^T / (tau sqrt(d))).
    - Early, each patch attends to one object only: of the prompt's phrases (an object with its attributes), the tokens
      of all but the one it attends to most are masked.
    - Objects weigh `emphasis` times as much in the first phase, their attributes in the second; attention is normalised
      again.

    In joint attention the temperature is that of image to image, and masks and weights are those of image to text.

    Args:
        objects, attributes: words of the prompt, see PhraseHook.
        tau: below 1 sharpens; 1 leaves self-attention as it is.
        sharpen_until, mask_until: fraction of the run with the temperature, and with the masks.
        emphasis: 1 leaves the weights as they are.
        phase: fraction of the run at which emphasis goes from objects to attributes.
    """

    needs_start = True

    def __init__(
        self,
        objects: list[str] | None = None,
        attributes: list[str] | None = None,
        tau: float = 0.8,
        sharpen_until: float = 0.2,
        mask_until: float = 0.5,
        emphasis: float = 1.2,
        phase: float = 0.4,
    ):
        super().__init__(objects, attributes)
        self.tau, self.sharpen_until, self.mask_until = tau, sharpen_until, mask_until
        self.emphasis, self.phase = emphasis, phase

    def check(self, policy, sampler):
        super().check(policy, sampler)
        check_halves("AttentionModulation", sampler)

    def predict(self, policy, state, sampler):
        with editing(policy, len(state.x), lambda call: self.edit(state, call)):
            super().predict(policy, state, sampler)

    def edit(self, state, call):
        """A layer's output (P, H, Q, D); None leaves it."""
        done = state.i / state.steps
        sharpen = self.tau != 1 and done < self.sharpen_until and call.kind != "cross"
        words = call.kind != "self" and (done < self.mask_until or self.emphasis != 1)
        if not sharpen and not words:
            return None
        logits = call.logits()
        if sharpen:
            seen = call.image if call.kind == "joint" else slice(None)
            logits[:, :, call.image, seen] = logits[:, :, call.image, seen] / self.tau
        if words:
            for p, phrases in enumerate(state.extras[self]["phrases"]):
                logits[p, :, call.image, call.text] += self.shift(logits[p, :, call.image, call.text], phrases, done)
        return call.output(logits.softmax(-1))

    def shift(self, logits, phrases, done):
        """What is added to one sample's logits (H, Q, L): -inf on masked words, and the log of the weights."""
        shift = torch.zeros_like(logits)
        tokens = [phrase.object + sum(phrase.attributes, []) for phrase in phrases]
        if done < self.mask_until and len(tokens) > 1:
            p = logits.softmax(-1)
            most = torch.stack([p[..., own].sum(-1).mean(0) for own in tokens]).argmax(0)  # (Q,)
            for k, own in enumerate(tokens):
                shift[..., own] = torch.where(most == k, 0.0, -torch.inf)[None, :, None]
        for phrase in phrases:
            strong = [phrase.object] if done < self.phase else phrase.attributes
            for own in strong:
                shift[..., own] += torch.log(torch.tensor(self.emphasis))
        return shift
