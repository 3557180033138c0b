"""Which rows a training run sees, and in what order, also when it is resumed."""

from collections.abc import Callable, Iterable
from itertools import islice

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
