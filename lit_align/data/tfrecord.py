"""Reads TFRecord files of tf.train.Example without TensorFlow."""

import struct
from collections.abc import Iterator
from pathlib import Path

from lit_align.data.archives import check_whole

CRC_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def crc32c(data: bytes) -> int:
    """CRC-32C of some bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CRC_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """A checksum as the format stores it: rotated by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_examples(file: Path) -> Iterator[dict[str, list]]:
    """The examples of a file: {feature: list of bytes, floats or integers}.

    A record is its length (uint64) and the length's checksum, the bytes, and their checksum. The length's is checked,
    which finds a file that is cut off or no TFRecord (ValueError); the bytes' is not: in Python that takes minutes.
    """
    with open(check_whole(file), "rb") as records:
        number = 0
        while head := records.read(12):
            length, crc = struct.unpack("<QI", head) if len(head) == 12 else (0, None)
            if crc != masked(crc32c(head[:8])):
                raise ValueError(f"record {number} of {file} is broken: this is no TFRecord file, or it is cut off.")
            body = records.read(length + 4)
            if len(body) < length + 4:
                raise ValueError(f"record {number} of {file} is cut off: download the file again.")
            yield parse_example(body[:-4])
            number += 1


def parse_example(message: bytes) -> dict[str, list]:
    """A serialized tf.train.Example: Example.features (1) is a map (1) of key (1) to Feature (2), which is a list of
    bytes (1), floats (2) or int64 (3), each with its `value` (1)."""
    found = {}
    for _, features in fields(message):
        for _, entry in fields(features):
            pair = dict(fields(entry))
            name, values = pair[1].decode(), []
            for kind, body in fields(pair.get(2, b"")):
                for _, value in fields(body):
                    values += KINDS[kind](value)
            found[name] = values
    return found


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a protobuf message: (number, its bytes, or its value where it is a varint)."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(message, at)
        else:
            if kind == 2:
                size, at = varint(message, at)
            else:
                size = {1: 8, 5: 4}[kind]
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def varint(message: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def floats(value: bytes) -> list[float]:
    """One float, or packed ones."""
    return list(struct.unpack(f"<{len(value) // 4}f", value))


def integers(value: bytes | int) -> list[int]:
    """One int64, or packed ones."""
    if isinstance(value, int):
        return [signed(value)]
    found, at = [], 0
    while at < len(value):
        one, at = varint(value, at)
        found.append(signed(one))
    return found


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


KINDS = {1: lambda value: [value], 2: floats, 3: integers}
