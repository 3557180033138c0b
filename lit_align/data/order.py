"""Which rows a training run sees, and in what order, also when it is resumed."""

from collections.abc import Callable
from itertools import islice

from torch.utils.data import Dataset, DistributedSampler


class Rows(Dataset):
    """A table whose rows know their number: their own `index`, or their place."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"index": index, **self.rows[index]}


class ResumableSampler(DistributedSampler):
    """Row numbers in an order that is a function of (seed, pass over the data), from where training stands.

    A pass is `per_pass` batches. `seen` says how many batches this rank has trained on, in all passes and runs; it is
    asked whenever a pass begins, so a resumed run goes on with the row that the uninterrupted one would have taken
    (Lightning restores its counters, but skips no data).
    """

    def __init__(self, dataset, batch_size: int, per_pass: int, seen: Callable[[], int], **kwargs):
        super().__init__(dataset, shuffle=True, drop_last=True, **kwargs)
        self.batch_size, self.per_pass, self.seen = batch_size, per_pass, seen

    def __iter__(self):
        self.epoch, batches = divmod(self.seen(), self.per_pass)
        return islice(super().__iter__(), batches * self.batch_size, None)


class Stream(DistributedSampler):  # the type tells Lightning that the ranks are split already
    """The rows of a streamed dataset themselves, from where training stands; resumed, it reads again what was seen.

    Read in the main process; loader workers decode. `ends` are the batches seen at the end of each finished pass.
    """

    def __init__(self, rows, batch_size: int, seen: Callable[[], int], ends: list[int]):
        self.rows, self.batch_size, self.seen, self.ends = rows, batch_size, seen, ends

    def __len__(self):
        raise TypeError("a stream's length is unknown")

    def __iter__(self):
        seen = self.seen()
        self.ends[:] = [end for end in self.ends if end <= seen]
        start, count = max(self.ends, default=0), 0
        self.rows.set_epoch(len(self.ends))
        for count, row in enumerate(self.rows, 1):
            if count > (seen - start) * self.batch_size:
                yield row
        self.ends.append(start + count // self.batch_size)


class RowDataset(Dataset):
    """Turns a sampler of rows into a loader of rows."""

    def __getitem__(self, row: dict) -> dict:
        return row
