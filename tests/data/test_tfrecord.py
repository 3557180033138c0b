import struct

import pytest
from published import tfrecord

from lit_align.data.tfrecord import crc32c, read_examples


def test_examples_that_googles_protobuf_wrote(tmp_path):
    rows = [
        {"name": [b"a", b"", b"\xff" * 300], "x": [0.5, -2.0], "n": [3, -1, 2**62]},
        {"name": [b"prompt"], "x": [1e-3], "n": [0]},
    ]
    tfrecord(tmp_path / "t.tfrecord", rows)
    found = list(read_examples(tmp_path / "t.tfrecord"))
    assert [{**row, "x": pytest.approx(row["x"])} for row in rows] == found


def test_the_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


@pytest.mark.parametrize("kept, said", [(-3, "record 1 of .* is cut off"), (-60, "record 1 of .* is (broken|cut off)")])
def test_a_file_that_is_cut_off(tmp_path, kept, said):
    file = tmp_path / "t.tfrecord"
    tfrecord(file, [{"n": [i], "name": [b"x" * 40]} for i in range(2)])
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=said):
        list(read_examples(file))


def test_another_file_is_no_tfrecord(tmp_path):
    (tmp_path / "t").write_bytes(struct.pack("<QI", 5, 0) + b"hello")
    with pytest.raises(ValueError, match="record 0 of .* is broken: this is no TFRecord file"):
        list(read_examples(tmp_path / "t"))
    (tmp_path / "t").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="is a pointer of Git LFS"):
        list(read_examples(tmp_path / "t"))
