"""What was drawn lately, to be learnt from again."""

import torch
from torch import nn

from lit_align.algorithms.algorithm import Algorithm
from lit_align.diffusion.state import select_rows


def gather_pairs(method: Algorithm, pairs: dict) -> dict:
    """The pairs (prompts, and tensors with as many rows) of every rank, the same on each, so that a checkpoint holds
    all that was drawn."""
    if method.trainer.world_size == 1:
        return pairs
    prompts = [None] * method.trainer.world_size
    torch.distributed.all_gather_object(prompts, pairs["prompt"])
    gathered = {k: method.all_gather(v).flatten(0, 1) for k, v in pairs.items() if k != "prompt"}
    return {"prompt": sum(prompts, []), **gathered}


class Replay(nn.Module):
    """The last `size` pairs (prompts, and tensors with as many rows), in the checkpoint."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.pairs = size, {}

    def add(self, new: dict) -> None:
        """Forgets the oldest where there are too many."""
        old = self.pairs or {k: v[:0] for k, v in new.items()}
        join = lambda a, b: torch.cat([a.to(b.device), b]) if torch.is_tensor(a) else a + b
        self.pairs = {k: join(old[k], v)[-self.size :] for k, v in new.items()}

    def draw(self, n: int) -> dict | None:
        """n of the pairs, each at most once unless there are fewer; None where there are none."""
        count = len(self.pairs.get("prompt", ()))
        rows = torch.cat([torch.randperm(count) for _ in range(-(-n // count))])[:n] if count else None
        return None if rows is None else select_rows(self.pairs, rows.tolist())

    def get_extra_state(self) -> tuple:
        return tuple(self.pairs.items())  # a leaf to a sharded checkpoint

    def set_extra_state(self, state: tuple) -> None:
        self.pairs = dict(state)
