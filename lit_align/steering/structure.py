"""StructureDiffusion: values of cross-attention from each noun phrase by itself."""

import torch

from lit_align.diffusion.state import State
from lit_align.steering.attention_edit import check_halves, editing
from lit_align.steering.phrases import Phrase, PhraseHook, positions


class StructureDiffusion(PhraseHook):
    """Feng et al., ICLR 2023 (arXiv 2212.05032), eq. 5 and 6: cross-attention with the keys of the whole prompt, and
    the mean over j of its values and those of prompts in which phrase j is encoded by itself. Values are linear in the
    embeddings, so that they are the values of the mean embedding.

    Only UNets have cross-attention to fixed text; in an MM-DiT text changes from block to block.

    Args:
        objects, attributes: words of the prompt, see PhraseHook; a phrase is an object with its attributes.
    """

    needs_start = True

    def check(self, policy, sampler):
        super().check(policy, sampler)
        check_halves("StructureDiffusion", sampler)
        if policy.denoiser_name != "unet":
            raise ValueError(
                f"StructureDiffusion replaces values of cross-attention, which {type(policy).__name__} lacks: use a "
                "UNet (StableDiffusion, StableDiffusionXL)."
            )

    def on_init(self, policy, state: State) -> None:
        super().on_init(policy, state)
        rows = zip(state.texts, state.extras[self]["characters"], state.cond["text"].float(), strict=True)
        state.extras[self]["text"] = torch.stack([self.mean_text(policy, *row) for row in rows])

    def mean_text(self, policy, prompt: str, found: list[Phrase], text: torch.Tensor) -> torch.Tensor:
        """Mean of the prompt's embedding (L, D) and its copies with one phrase encoded by itself."""
        copies, spans = [text], policy.spans(prompt)
        for phrase in found:
            start, end = min(span[0] for span in (phrase.object, *phrase.attributes)), phrase.object[1]
            there = positions(spans, (start, end))
            alone = prompt[start:end]
            own = positions(policy.spans(alone), (0, len(alone)))
            copy = text.clone()
            copy[there] = policy.condition([alone])["text"][0].float()[own[: len(there)]]
            copies.append(copy)
        return torch.stack(copies).mean(0)

    def predict(self, policy, state, sampler):
        text = state.extras[self]["text"]

        def edit(call):
            if call.kind != "cross":
                return None
            value = call.layer.to_v(text.to(call.value.dtype)).unflatten(-1, (call.layer.heads, -1)).transpose(1, 2)
            return call.output(call.probabilities(), value)

        with editing(policy, len(state.x), edit):
            super().predict(policy, state, sampler)
