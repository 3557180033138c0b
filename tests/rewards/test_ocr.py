"""Text in images."""

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from lit_align.rewards.ocr import OCR, accuracy, edit_distance, target_text


def brute(a, b):
    """The edit distance by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(brute(a[1:], b) + 1, brute(a, b[1:]) + 1, brute(a[1:], b[1:]) + (a[0] != b[0]))


def test_the_edit_distance():
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3 == edit_distance("abc", "")
    rng = random.Random(0)
    for _ in range(60):
        a, b = ("".join(rng.choices("ab", k=rng.randint(0, 5))) for _ in range(2))
        assert edit_distance(a, b) == brute(a, b)


@pytest.mark.parametrize("read,target,want", [
    ("HELLO", "hello", 1.0),
    ("Open 24 Hours", "OPEN24 hours", 1.0),  # neither case nor spaces count
    ("xxhelloxx", "hello", 1.0),  # contained
    ("hallo", "hello", 0.8),
    ("", "hello", 0.0),
    ("entirely different words", "hello", 0.0),  # never below 0
    ("helo", "hello", 0.8),
    ("hellohell", "hello!", 1 - 4 / 6),
    ("h-e", "he", 0.5),
])  # fmt: skip
def test_accuracy(read, target, want):
    assert accuracy(read, target) == pytest.approx(want)


def test_the_target_is_between_the_first_quotes():
    assert target_text('a sign that says "Hello World" above a door') == "Hello World"
    assert target_text('"A" and "B"') == "A"
    for prompt in ("a sign", 'a "sign', 'an "" sign', 'a " " sign', "a “sign”", "a 'sign'"):
        with pytest.raises(ValueError, match="names no text to write"):
            target_text(prompt)


def sign(text, size=256, lines=1):
    image = Image.new("RGB", (size, size), (210, 220, 235))
    for i, line in enumerate(text.split("\n")):
        ImageDraw.Draw(image).text((size // 16, size // 4 + i * size // 4), line, fill=(160, 20, 30), font=ImageFont.load_default(size // 7))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def ocr():
    pytest.importorskip("rapidocr")
    return OCR()


def test_real_text_is_read(ocr):
    """The models of the package itself, on drawn letters."""
    images = torch.stack([sign("Open 24"), sign("Open 24"), sign("Good\nmorning"), torch.full((3, 256, 256), 0.5), sign("Oxen 24")])
    asked = ["OPEN 24", "closed", "good morning", "Open", "Open 24"]
    got = ocr(images, [f'a sign "{text}"' for text in asked])
    assert got[0] == got[2] == 1 and got[3] == 0 and got[1] < 0.4
    assert got[4].item() == pytest.approx(1 - 1 / 6)


def test_the_reader_sees_the_colours_it_was_trained_on(ocr, monkeypatch):
    seen = []
    monkeypatch.setattr(ocr, "reader", lambda x: seen.append(x) or type("Read", (), {"txts": ("He", "llo")}))
    image = torch.stack([torch.full((4, 6), v) for v in (1.0, 0.5, 0.0)])[None]
    assert ocr(image, ['"hello"']).item() == 1.0  # lines joined without a space
    assert seen[0].shape == (4, 6, 3) and seen[0][0, 0].tolist() == [0, 128, 255]  # BGR


def test_a_prompt_without_text_is_refused(ocr):
    with pytest.raises(ValueError, match="the prompt 'a cat' names no text"):
        ocr(torch.rand(2, 3, 32, 32), ['"a"', "a cat"])
