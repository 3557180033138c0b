"""Text encoders that read a template before every prompt but the empty one."""

from torch import Tensor


def encode(pipe, prompts: list[str], **options) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, D) and mask (B, L), bool, of a diffusers pipeline whose `encode_prompt` puts a template before
    a prompt, and none before the negative one. The empty prompt, to which dropped captions are set, is encoded as
    diffusers' negative prompt is, so that guidance leads away from it."""
    dropped = "" in prompts
    text, mask, null, null_mask = pipe.encode_prompt(prompts, dropped, negative_prompt="", **options)
    if dropped:
        empty = [not prompt for prompt in prompts]
        text[empty], mask[empty] = null[empty], null_mask[empty]
    return text, mask.bool()
