"""The studies' figures."""

import numpy as np
from PIL import Image

from lit_align.studies import plot


def test_panels_have_the_asked_size_and_are_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        figure, axes = plot.panels(2, 3, 2.0, 1.5)
        assert len(axes) == 2 and all(len(row) == 3 for row in axes)
        axes[0][0].plot([0, 1], [0, 1], color=plot.BLUE, label="a line")
        plot.legend(axes[0][0], "upper left")
        plot.save(figure, tmp_path / f"{name}.png")
    assert Image.open(tmp_path / "a.png").size == (600, 300)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_gallery_shows_every_image_pixel_for_pixel(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (50, 80, 3), dtype=np.uint8)) for _ in range(3)]
    plot.gallery({f"image {i}": image for i, image in enumerate(images)}, tmp_path / "g.png")
    got = np.array(Image.open(tmp_path / "g.png").convert("RGB"))
    assert got.shape == (90, 300, 3)
    for i, image in enumerate(images):
        assert np.array_equal(got[40:, 110 * i : 110 * i + 80], np.array(image))
