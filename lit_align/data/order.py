"""Which rows a training run sees, and in what order, also when it is resumed."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler


class Rows(Dataset):
    """A table's rows as dicts with `index`: the table's own column of that name, or the position."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"index": index, **self.rows[index]}


class ResumableSampler(DistributedSampler):
    """Shuffled row numbers of this rank, starting where training stands. The order depends on (seed, pass) alone.

    Lightning restores its counters on resume but skips no data, so the sampler skips: whenever a pass begins it asks
    `seen`, the number of batches that this rank has trained on in all passes and runs. A pass is `per_pass` batches.
    """

    def __init__(self, dataset, batch_size: int, per_pass: int, seen: Callable[[], int], **kwargs):
        super().__init__(dataset, shuffle=True, drop_last=True, **kwargs)
        self.batch_size, self.per_pass, self.seen = batch_size, per_pass, seen

    def __iter__(self):
        self.epoch, batches = divmod(self.seen(), self.per_pass)
        return islice(self.shuffled(), batches * self.batch_size, None)

    def shuffled(self) -> Iterable[int]:
        """This rank's row numbers of one pass."""
        return super().__iter__()


class Curriculum(ResumableSampler):
    """Row numbers from easy to hard, of this rank (Curriculum-DPO, arXiv 2405.13637): in stage k of K the batches come
    from the k / K rows that are easiest, in random order; the last stage, on all rows, has no end.

    Args:
        ease: how easy each row is.
        stages: K.
        stage_batches: batches of a stage on each rank.
    """

    def __init__(self, ease: Sequence[float], stages: int, stage_batches: int, *args, **kwargs):
        super().__init__(ease, *args, **kwargs)
        self.easiest = torch.tensor(ease, dtype=torch.float64).argsort(descending=True, stable=True)
        self.stages, self.stage_batches = stages, stage_batches

    def __iter__(self):
        seen, order = self.seen(), {}
        for batch in range(seen, (seen // self.per_pass + 1) * self.per_pass):
            stage = min(batch // self.stage_batches, self.stages - 1)
            pool = self.easiest[: max(1, len(self.easiest) * (stage + 1) // self.stages)]
            first = (batch - stage * self.stage_batches) * self.batch_size * self.num_replicas
            for place in range(first + self.rank, first + self.batch_size * self.num_replicas, self.num_replicas):
                which = (stage, place // len(pool))
                if which not in order:
                    order = {which: self.permutation(len(pool), *which)}
                yield int(pool[order[which][place % len(pool)]])

    def permutation(self, n: int, stage: int, turn: int) -> Tensor:
        """The order of a stage's n rows, at its turn-th pass over them."""
        seed = (self.seed * 1_000_003 + stage) * 1_000_003 + turn
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed % 2**32))


class Stream(DistributedSampler):  # the base class tells Lightning that the ranks are split already
    """Yields the rows of a streamed dataset themselves; on resume, rows already trained on are read and skipped.

    The main process reads, loader workers decode. `pass_ends` holds the batches seen at the end of each finished pass.
    """

    def __init__(self, rows, batch_size: int, seen: Callable[[], int], pass_ends: list[int]):
        self.rows, self.batch_size, self.seen, self.pass_ends = rows, batch_size, seen, pass_ends

    def __len__(self):
        raise TypeError("the length of a stream is unknown")

    def __iter__(self):
        seen = self.seen()
        self.pass_ends[:] = [end for end in self.pass_ends if end <= seen]
        start, count = max(self.pass_ends, default=0), 0
        self.rows.set_epoch(len(self.pass_ends))
        for count, row in enumerate(self.rows, 1):
            if count > (seen - start) * self.batch_size:
                yield row
        self.pass_ends.append(start + count // self.batch_size)


class RowDataset(Dataset):
    """A dataset whose index is the row itself, so that a Stream can feed loader workers."""

    def __getitem__(self, row: dict) -> dict:
        return row
