import io

from PIL import Image

from lit_align.data.images import decode


def test_images_keep_their_proportions():
    wide = Image.new("RGB", (40, 20))
    wide.paste((255, 0, 0), (10, 0, 30, 20))  # a red centre square
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    assert decode(buffer.getvalue(), 20, "")[0].min() == 1
