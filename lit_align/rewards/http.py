"""Any reward of ours that runs elsewhere: the client of `python -m lit_align serve`."""

import io
import json
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_align.rewards.remote import Remote, Request


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1], rounded to 8 bits."""
    return (images.detach().float() * 255).round().clamp(0, 255).byte().cpu()


def pack(images: Tensor, prompts: list[str], columns: dict[str, list], encoding: str = "float32") -> bytes:
    """An npz file: `images` (N, 3, H, W), float32 in [0, 1] or uint8, and `rows`, the UTF-8 bytes of the JSON
    {"prompts", "columns"}."""
    images = to_uint8(images) if encoding == "uint8" else images.detach().float().cpu()
    buffer, rows = io.BytesIO(), json.dumps({"prompts": prompts, "columns": columns}).encode()
    np.savez(buffer, images=images.numpy(), rows=np.frombuffer(rows, np.uint8))
    return buffer.getvalue()


def png(image: Tensor) -> bytes:
    """A PNG file of an image (3, H, W) in [0, 1], rounded to 8 bits."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


class HTTPReward(Remote):
    """The reward that `python -m lit_align serve --reward ...` serves, on another machine, in another environment, or
    once for all ranks.

    With float32 images a score is that of the served reward on the same images, bit for bit if it does not depend on
    what else is in its batch; uint8 rounds images to 8 bits, as a PNG does, and sends a quarter of the bytes. The
    server is asked for its name and columns when the run starts. See Remote for failures.

    Args:
        urls: servers of one reward, which are asked in turn: http://127.0.0.1:8000.
        name: in logs (default: the served reward's).
        encoding: of images: float32 or uint8.
        batch_size: images in a request, which are scored, or fail, together.
        concurrency: requests at once.
        timeout: seconds until an attempt has failed.
        retries: attempts after the first.
        backoff: seconds before the first retry; doubled at each further one.
        on_failure: after the last attempt: stop the run, or mask the images.
        token_env: environment variable with the server's token.
    """

    artefact = "its rewards', on the server"
    scale = "the served reward's"
    blind_to = "what the served reward is blind to"

    def __init__(
        self,
        urls: list[str],
        name: str | None = None,
        encoding: Literal["float32", "uint8"] = "float32",
        batch_size: int = 8,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 1.0,
        on_failure: Literal["stop", "mask"] = "stop",
        token_env: str = "LIT_ALIGN_TOKEN",
    ):
        super().__init__(urls, batch_size, concurrency, timeout, retries, backoff, on_failure, token_env)
        self.given, self.encoding = name, encoding
        self._about: dict | None = None

    @property
    def about(self) -> dict:
        """What the server says of its reward: name, names, columns, scale, differentiable. Asked for once."""
        if self._about is None:
            (self._about,) = self.client.map(lambda path, ask: ask(Request(path), read_about), ["/"], 1)
        return self._about

    @property
    def name(self) -> str:
        return self.given or self.about["name"]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.about["names"])

    @property
    def columns(self) -> dict[str, bool]:
        return self.about["columns"]

    def request(self, images: Tensor, prompts: list[str], columns: dict[str, list]) -> Request:
        return Request("/score", pack(images, prompts, columns, self.encoding), "application/octet-stream")

    def read(self, body: bytes, n: int) -> Tensor:
        answer = json.loads(body)
        if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
            raise ValueError("the answer is not that of a reward server")
        if answer.get("name") != self.about["name"]:
            served = f"one of {', '.join(self.client.urls)} serves {answer.get('name')}"
            raise RuntimeError(f"{served}, another than {self.about['name']}: give the URLs of one reward.")
        scores, width = answer["scores"], len(self.names)
        rows = scores if width else [[score] for score in scores]
        number = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
        fits = lambda row: isinstance(row, list) and len(row) == (width or 1) and all(map(number, row))
        if len(scores) != n or not all(map(fits, rows)):
            each = f" of {width} numbers" if width else ""
            raise ValueError(f"the answer must hold {n} finite scores{each}, and it holds {str(scores)[:60]}")
        return torch.tensor(scores, dtype=torch.float32)


def read_about(body: bytes) -> dict:
    about = json.loads(body)
    if not isinstance(about, dict) or not {"name", "names", "columns"} <= about.keys():
        raise ValueError("the answer is not that of a reward server (python -m lit_align serve)")
    return about
