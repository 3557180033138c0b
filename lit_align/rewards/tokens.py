"""Prompts as token ids of a fixed length; what is cut is counted."""

from textwrap import shorten

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn


def tokenize(reader: nn.Module, tokenizer, prompts: list[str], length: int):
    """Token ids and attention mask, (B, length) each, of prompts for a reward or a step reward (`reader`).

    Longer prompts lose their end: `reader.truncated` counts them, and the first is reported.
    """
    lengths = [len(ids) for ids in tokenizer(prompts, verbose=False).input_ids]
    cut = [prompt for prompt, n in zip(prompts, lengths) if n > length]
    if cut and not reader.truncated:
        rank_zero_warn(
            f"{type(reader).__name__} reads {length} tokens of a prompt and does not see the end of "
            f"{shorten(cut[0], 80, placeholder=' ...')!r}. Validation and test log the share of such prompts as "
            "truncated/<name>."
        )
    reader.truncated = (reader.truncated or 0) + len(cut)
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
