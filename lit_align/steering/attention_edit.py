"""Editing the attention of the conditional half of a forward, which several methods do."""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.attention import Attention


def check_halves(who: str, sampler: Sampler) -> None:
    """Raises ValueError if a hook of the sampler makes the predictions of guidance one by one."""
    for hook in sampler.steering:
        if "predict" in hook.replaces:
            other = type(hook).__name__
            raise ValueError(f"{who} edits half of a guided forward, which {other} does not make: leave one out.")


def editing(policy, n: int, edit: Callable[[Attention], Tensor | None]):
    """Inside, `edit` gives what a layer's output is for the n conditional samples, from their evaluation; None leaves
    it."""

    def replaced(call: Attention) -> Tensor | None:
        edited = edit(call.rows(slice(-n, None)))
        if edited is None or len(call.query) == n:
            return edited
        return torch.cat([call.rows(slice(None, -n)).fused(), edited])

    return policy.attention(replace=replaced)
