"""A replay buffer of recently sampled pairs."""

import torch
from torch import nn

from lit_align.algorithms.algorithm import Algorithm
from lit_align.diffusion.state import select_rows


def gather_pairs(method: Algorithm, pairs: dict) -> dict:
    """Pairs (prompts, and tensors with one row per pair) of all ranks, the same on every rank, so that the checkpoint
    holds them all."""
    if method.trainer.world_size == 1:
        return pairs
    prompts = [None] * method.trainer.world_size
    torch.distributed.all_gather_object(prompts, pairs["prompt"])
    gathered = {k: method.all_gather(v).flatten(0, 1) for k, v in pairs.items() if k != "prompt"}
    return {"prompt": sum(prompts, []), **gathered}


class Replay(nn.Module):
    """Buffer of the last `size` pairs (prompts, and tensors with one row per pair), saved in the checkpoint."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.pairs = size, {}

    def add(self, new: dict) -> None:
        """Adds pairs, and drops the oldest ones beyond `size`."""
        old = self.pairs or {k: v[:0] for k, v in new.items()}
        join = lambda a, b: torch.cat([a.to(b.device), b]) if torch.is_tensor(a) else a + b
        self.pairs = {k: join(old[k], v)[-self.size :] for k, v in new.items()}

    def draw(self, n: int) -> dict | None:
        """n random pairs, repeated only if the buffer holds fewer; None if it is empty."""
        count = len(self.pairs.get("prompt", ()))
        rows = torch.cat([torch.randperm(count) for _ in range(-(-n // count))])[:n] if count else None
        return None if rows is None else select_rows(self.pairs, rows.tolist())

    def get_extra_state(self) -> tuple:
        return tuple(self.pairs.items())  # one leaf of a sharded checkpoint

    def set_extra_state(self, state: tuple) -> None:
        self.pairs = dict(state)
