"""The base of rewards that another process computes: HTTP requests with retries, and what becomes of a failure."""

import json
import math
import os
import random
import threading
import warnings
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lit_align.rewards.reward import Reward

AGAIN = (408, 425, 429)  # the statuses from 400 to 499 at which a request is repeated


class Request(NamedTuple):
    path: str  # after a server's URL
    body: bytes | None = None  # None: a GET
    content_type: str = "application/json"


class HTTPClient:
    """Sends requests to servers that answer alike, in turn, and repeats one that fails at the next server.

    Args:
        urls: of the servers, with http:// or https://.
        timeout: seconds after which an attempt has failed.
        retries: attempts after the first.
        backoff: seconds before the first retry, doubled at each further one, and times a random number in [0.5, 1.5]:
            the clients of a server that was down do not return all at once.
        token_env: environment variable with the token to send, if it is set.
    """

    def __init__(self, urls: list[str], timeout: float, retries: int, backoff: float, token_env: str):
        if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
            raise ValueError(f"urls is {urls}: give one URL or more, each with http:// or https://.")
        self.urls, self.timeout, self.retries, self.backoff = [u.rstrip("/") for u in urls], timeout, retries, backoff
        self.turn = int(os.environ.get("LOCAL_RANK", 0))  # the server that is asked next
        self.token_env, self.warned = token_env, False

    def map(self, send: Callable, values: list, concurrency: int) -> list:
        """send(value, ask) of every value, `concurrency` at a time; the first error ends all. `ask(request, read)` is
        `attempt` with the next server."""
        import urllib3

        stop = threading.Event()
        threads = ThreadPoolExecutor(concurrency)
        turn, self.turn = self.turn, self.turn + len(values)
        with urllib3.PoolManager(len(self.urls), maxsize=concurrency, retries=False) as pool:
            ask = lambda k: lambda request, read: self.attempt(pool, request, turn + k, read, stop)
            try:
                return list(threads.map(lambda k, value: send(value, ask(k)), range(len(values)), values))
            finally:
                stop.set()
                threads.shutdown(wait=False, cancel_futures=True)

    def attempt(self, pool, request: Request, turn: int, read: Callable[[bytes], Any], stop: threading.Event) -> Any:
        """`read` of a server's answer; a ValueError of `read`, for a wrong answer, is a failed attempt.

        Raises ConnectionError when the last attempt has failed or `stop` is set, and ValueError if a server refuses the
        request.
        """
        from urllib3.exceptions import HTTPError

        method = "GET" if request.body is None else "POST"
        headers = {"Content-Type": request.content_type} if request.body is not None else {}
        if token := os.environ.get(self.token_env):
            headers["Authorization"] = f"Bearer {token}"
        options = {"body": request.body, "headers": headers, "timeout": self.timeout, "redirect": False}
        for attempt in range(self.retries + 1):
            url, status = self.urls[(turn + attempt) % len(self.urls)], None
            try:
                answer = pool.request(method, url + request.path, **options)
                status = answer.status
                if status == 200:
                    return read(answer.data)
                failure = f"HTTP {status}" + error_in(answer.data)
            except (HTTPError, ValueError) as error:
                failure = " ".join(str(error).split())[:200].rstrip(".")
            if status and 400 <= status < 500 and status not in AGAIN:
                raise ValueError(f"{url} refuses a request: {failure}.")
            if not self.warned and self.retries:
                self.warned = True
                warnings.warn(f"{url}: {failure}; such requests are repeated, {self.retries} times at most")
            if attempt < self.retries and stop.wait(self.backoff * 2**attempt * random.uniform(0.5, 1.5)):
                break
        raise ConnectionError(f"{url} gave no answer, at the last of {attempt + 1} attempts: {failure}.")


def error_in(body: bytes) -> str:
    """What an error's JSON says: {"error": ...}, or {"error": {"message": ...}} as OpenAI's servers write it."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f", {error.get('message') if isinstance(error, dict) else error}".rstrip(".")[:300]


class Remote(Reward):
    """Base of the rewards that servers compute: a subclass gives `request` and `read`.

    A score is never made up. An answer that is late, not 200, or not what was asked for is a failed attempt, and the
    request is repeated. After the last attempt the run stops, or, with `on_failure: mask`, training leaves the images
    of the request out, in methods that can, and `train/unscored` is their share. A request that a server refuses (a
    wrong token, a row it cannot read) stops the run in any case.
    """

    differentiable = False

    def __init__(
        self,
        urls: list[str],
        batch_size: int,
        concurrency: int,
        timeout: float,
        retries: int,
        backoff: float,
        on_failure: Literal["stop", "mask"],
        token_env: str,
    ):
        super().__init__()
        self.client = HTTPClient(urls, timeout, retries, backoff, token_env)
        self.batch_size, self.concurrency, self.masks = batch_size, concurrency, on_failure == "mask"

    @abstractmethod
    def request(self, images: Tensor, prompts: list[str], columns: dict[str, list]) -> Request:
        """Asks for the scores of n images (n, 3, H, W), at most `batch_size`."""

    @abstractmethod
    def read(self, body: bytes, n: int) -> Tensor:
        """The scores (n,), or (n, R), in an answer. Raises ValueError if it is wrong, and ConnectionError if the next
        attempt's would be, too."""

    def forward(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        shape = [len(self.names)] if self.names else []

        def send(i: int, ask: Callable[[Request, Callable], Tensor]) -> Tensor:
            part = slice(i, i + self.batch_size)
            texts = prompts[part]
            request = self.request(images[part], texts, {name: cells[part] for name, cells in columns.items()})
            try:
                return ask(request, lambda body: self.read(body, len(texts)))
            except ConnectionError:
                if not self.masks:
                    raise
                return torch.full((len(texts), *shape), math.nan)

        parts = self.client.map(send, list(range(0, len(images), self.batch_size)), self.concurrency)
        return torch.cat(parts).to(images.device)
