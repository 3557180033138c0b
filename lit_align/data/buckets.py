"""Aspect-ratio buckets: every batch holds images of one size near their own shape, so that little is cut off.

The sizes have about the area resolution^2 and sides that are multiples of a step, as SDXL was trained (arXiv
2307.01952, section 2.2). An image is resized until it covers its bucket's size, and the centre is cropped: nothing is
distorted.
"""

import math
from collections import Counter
from collections.abc import Callable

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.images import image_size
from lit_align.data.order import ResumableSampler

LONGEST = 2  # the longer side over the shorter one, at most


def bucket_sizes(resolution: int) -> list[tuple[int, int]]:
    """Sizes (height, width): for each height the greatest width with at most resolution^2 pixels. The step is 64 from
    512 pixels on, an eighth of smaller resolutions."""
    step = 64 if resolution >= 512 else max(1, resolution // 8)
    heights = range(step, LONGEST * resolution + 1, step)
    sizes = [(h, resolution * resolution // h // step * step) for h in heights]
    return [(h, w) for h, w in sizes if w and max(h, w) <= LONGEST * min(h, w)]


def nearest(shape: float, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size whose ratio of height to width is nearest to exp(shape)."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - shape))


def add_buckets(rows, columns: tuple[str, ...], resolution: int, least: int):
    """The rows with a column `bucket`, [height, width]. A row of several images goes by the mean of their shapes.

    Args:
        columns: the image columns; only the headers of their images are read.
        least: rows that a bucket must have: the rows of smaller ones go to the nearest that is kept, so that every row
            is trained on.
    """
    shapes = []  # log(height / width)
    for i, cells in enumerate(rows.select_columns(list(columns))):
        found = [image_size(cell, f"row {i}, column {column}") for column, cell in cells.items()]
        shapes.append(sum(math.log(height / width) for width, height in found) / len(found))
    sizes = bucket_sizes(resolution)
    while True:
        counts = Counter(nearest(shape, sizes) for shape in shapes)
        smallest = min(counts, key=counts.get)
        if counts[smallest] >= least or len(counts) == 1:
            break
        sizes = [size for size in counts if size != smallest]
    rank_zero_info("buckets: " + ", ".join(f"{h}x{w}: {n}" for (h, w), n in sorted(counts.items())) + " rows")
    return rows.add_column("bucket", [list(nearest(shape, sizes)) for shape in shapes])


class BucketSampler(ResumableSampler):
    """Row numbers of which each `batch_size` in turn are of one bucket, shuffled within buckets and as batches.

    In a step all ranks take batches of the same bucket, so that none waits for another. A pass leaves out the rows of
    each bucket that fill no batch on all ranks, other ones in each pass.

    Args:
        buckets: the bucket of each row.
    """

    def __init__(self, buckets: list, batch_size: int, per_pass: int, seen: Callable[[], int], **kwargs):
        super().__init__(buckets, batch_size, per_pass, seen, **kwargs)
        self.members: dict[tuple, list[int]] = {}
        for row, bucket in enumerate(buckets):
            self.members.setdefault(tuple(bucket), []).append(row)

    def shuffled(self) -> list[int]:
        """This rank's row numbers of one pass."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        step, batches = self.batch_size * self.num_replicas, []
        for rows in self.members.values():
            order = torch.randperm(len(rows), generator=generator)[: len(rows) // step * step].view(-1, step)
            batches += [[rows[i] for i in batch] for batch in order.tolist()]
        order = torch.randperm(len(batches), generator=generator).tolist()
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return [row for i in order for row in batches[i][mine]]


def count_batches(buckets: list, step: int) -> int:
    """Batches of `step` rows (over all ranks) in one pass."""
    return sum(n // step for n in Counter(map(tuple, buckets)).values())
