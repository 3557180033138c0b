"""Aspect-ratio buckets: sizes, what a batch holds, and resuming."""

import json
import math

import pytest
from data_parts import Encoding, Watcher, fit, picture
from PIL import Image

from lit_align.data.buckets import BucketSampler, bucket_sizes
from lit_align.data.captioned_images import CaptionedImages
from lit_align.data.images import decode, image_size
from lit_align.data.preference_pairs import PreferencePairs
from lit_align.data.prompts import Prompts


@pytest.mark.parametrize("resolution", [64, 512, 1024])
def test_sizes_have_the_area_of_the_square(resolution):
    sizes = bucket_sizes(resolution)
    step = 64 if resolution >= 512 else resolution // 8
    assert (resolution, resolution) in sizes and {(w, h) for h, w in sizes} & set(sizes)
    for h, w in sizes:
        assert h % step == w % step == 0 and h * w <= resolution**2 < h * (w + step) and 0.5 <= h / w <= 2


class SeesShapes(Watcher):
    """Records the batch indices and the image sizes it receives."""

    def __init__(self, key):
        super().__init__()
        self.key, self.shapes = key, []

    def training_step(self, batch, batch_idx):
        self.shapes.append(tuple(batch[self.key].shape[2:]))
        return super().training_step(batch, batch_idx)


SIDES = [(40, 40)] * 5 + [(60, 40)] * 6 + [(40, 80)] * 3 + [(40, 76)] * 2 + [(300, 20)]  # width, height


@pytest.fixture
def images(tmp_path):
    rows = []
    for i, size in enumerate(SIDES):
        (tmp_path / f"{i}.png").write_bytes(picture((255, 0, 0), size))
        rows.append({"image": f"{i}.png", "text": f"p{i}"})
    (tmp_path / "images.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "images.jsonl")


def run(path, tmp_path, **options):
    data = CaptionedImages(path, resolution=32, batch_size=2, buckets=True)
    return fit(data, tmp_path, SeesShapes("image"), **({"max_epochs": 2} | options))


def test_a_batch_is_of_one_shape_near_its_images(images, tmp_path):
    module, t = run(images, tmp_path)
    assert len(set(module.shapes)) == 3
    for (h, w), rows in zip(module.shapes, module.seen):
        for row in rows:
            width, height = SIDES[row]
            if row != 16:  # the longest goes to the widest
                assert abs(math.log(height / width) - math.log(h / w)) < 0.25
            else:
                assert w > h
    first = [row for rows in module.seen[: len(module.seen) // 2] for row in rows]
    assert len(first) == len(set(first)) == 4 + 6 + 4 and module.seen[: len(module.seen) // 2] != module.seen[7:]


def test_a_resumed_run_sees_the_batches_the_whole_run_would_have(images, tmp_path):
    whole, _ = run(images, tmp_path, max_epochs=-1, max_steps=14)
    first, t = run(images, tmp_path, max_epochs=-1, max_steps=9)
    t.save_checkpoint(tmp_path / "stop.ckpt")
    rest, _ = run(images, tmp_path, max_epochs=-1, max_steps=14, ckpt_path=str(tmp_path / "stop.ckpt"))
    assert first.seen + rest.seen == whole.seen


def test_ranks_take_batches_of_the_same_bucket():
    buckets = [[32, 32]] * 9 + [[24, 40]] * 13
    orders = [list(BucketSampler(buckets, 2, 5, lambda: 0, num_replicas=2, rank=rank, seed=3)) for rank in (0, 1)]
    assert len(orders[0]) == len(orders[1]) == 10 and not set(orders[0]) & set(orders[1])
    for k in range(0, 10, 2):
        assert len({tuple(buckets[row]) for order in orders for row in order[k : k + 2]}) == 1


def test_nothing_is_distorted():
    circle = Image.new("RGB", (90, 60))
    circle.paste((255, 0, 0), (30, 15, 60, 45))  # a square in the middle
    x = decode(circle, (32, 48), "")[0] > 0.5
    assert x.shape == (32, 48) and x.any(0).sum() == x.any(1).sum() == 16
    turned = circle.copy()
    tags = turned.getexif()
    tags[0x0112] = 6
    turned.info["exif"] = tags.tobytes()
    assert image_size(circle, "") == (90, 60) and image_size(turned, "") == (60, 90)


def test_latents_of_buckets_are_cached(tmp_path):
    rows = []
    for i, size in enumerate([(40, 20), (20, 20)] * 3):
        (tmp_path / f"{i}.png").write_bytes(picture((255, 0, 0), size))
        rows.append({"prompt": f"p{i}", "win": f"{i}.png", "lose": f"{i}.png"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shapes = set()

    class Seen(Encoding):
        def training_step(self, batch, batch_idx):
            shapes.add((batch["index"][0] % 2, tuple(batch["win_latents"].shape)))
            return super().training_step(batch, batch_idx)

    data = PreferencePairs(str(tmp_path / "pairs.jsonl"), batch_size=3, encode_once=True, buckets=True)
    fit(data, tmp_path, Seen())
    assert shapes == {(1, (3, 4, 8, 8)), (0, (3, 4, 6, 10))}


def test_a_dataset_without_images_has_no_buckets(tmp_path, many):
    with pytest.raises(ValueError, match="Prompts has no table with one image per cell: set --data.buckets false"):
        fit(Prompts(many, buckets=True), tmp_path)
