"""A reward over HTTP: `python -m lit_align serve --reward CLIPScore --port 8000`. HTTPReward is its client.

    GET  /health  {"status": "ok"}
    GET  /        the reward's name, scale, columns {name: required}, names of its numbers, and if it is differentiable
    POST /score   {"name", "scores"}: a number, or a list of numbers, for each image, in their order

The body of /score is JSON, {"images": [base64 of a PNG, ...], "prompts": [...], "columns": {name: [...]}}, as
application/json, or an npz file as application/octet-stream: `images` (N, 3, H, W), uint8, or float16 or float32 in
[0, 1], and `rows`, the UTF-8 bytes of {"prompts", "columns"}. The images of a request have one size. No pickle is read.

A request that is wrong is answered 4xx, a reward that fails 500, and more images than can wait 503, each with
{"error": one sentence}. Requests that arrive while others are scored are scored together.
"""

import base64
import hmac
import io
import ipaddress
import json
import os
import socket
import threading
import traceback
import zipfile
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_align.cli_errors import of_the_user
from lit_align.rewards.multi_reward import Combination
from lit_align.rewards.reward import Reward, components, refuse_masks

JSON, NPZ = "application/json", "application/octet-stream"
DECODED = 8  # the images of a request may be this many times as large as a request itself


class Job(NamedTuple):
    images: Tensor  # (N, 3, H, W) in [0, 1]
    rows: dict  # {"prompt", "columns"}
    scores: Future

    @property
    def kind(self) -> tuple:
        """Jobs of one kind can be scored together."""
        return self.images.shape[1:], *sorted(self.rows["columns"])


class Batcher:
    """Scores jobs in a thread of its own, those that wait together, up to `batch_size` images at once.

    `put` raises BufferError where more than `limit` images wait.
    """

    def __init__(self, reward: Reward, batch_size: int, limit: int, device: str):
        self.reward = reward.eval().requires_grad_(False).to(device)
        self.batch_size, self.limit, self.device = batch_size, limit, device
        self.waiting: list[Job] = []
        self.changed = threading.Condition()
        threading.Thread(target=self.run, daemon=True).start()

    def put(self, images: Tensor, rows: dict) -> Future:
        job = Job(images, rows, Future())
        with self.changed:
            if sum(len(j.images) for j in self.waiting) + len(images) > self.limit and self.waiting:
                raise BufferError
            self.waiting.append(job)
            self.changed.notify()
        return job.scores

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                jobs = self.gather()
            self.score(jobs)

    def gather(self) -> list[Job]:
        """Takes the first job, and later ones of its kind that fit into a batch with it, but those whose client has
        gone."""
        jobs, left, n = [], [], 0
        for job in self.waiting:
            if not jobs or (job.kind == jobs[0].kind and n + len(job.images) <= self.batch_size):
                jobs.append(job)
                n += len(job.images)
            else:
                left.append(job)
        self.waiting = left
        return [job for job in jobs if job.scores.set_running_or_notify_cancel()]

    def score(self, jobs: list[Job]) -> None:
        """Sets the scores of jobs of one kind. Where they fail together, each is tried alone."""
        if not jobs:
            return
        try:
            prompts = [p for job in jobs for p in job.rows["prompt"]]
            columns = {name: [x for job in jobs for x in job.rows["columns"][name]] for name in jobs[0].rows["columns"]}
            scores = self.scores(torch.cat([job.images for job in jobs]), prompts, columns)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self.score([job])
            else:
                jobs[0].scores.set_exception(error)
            return
        for job, part in zip(jobs, scores.split([len(job.images) for job in jobs]), strict=True):
            job.scores.set_result(part)

    @torch.no_grad()
    def scores(self, images: Tensor, prompts: list[str], columns: dict[str, list]) -> Tensor:
        parts = []
        for i in range(0, len(images), self.batch_size):
            part = slice(i, i + self.batch_size)
            rows = {"prompt": prompts[part], "columns": {name: cells[part] for name, cells in columns.items()}}
            parts.append(components(self.reward, images[part].to(self.device), rows))
        scores = self.reward.combine(torch.cat(parts)).float().cpu()
        if not scores.isfinite().all():
            row = int(scores.isfinite().view(len(scores), -1).all(1).logical_not().int().argmax())
            raise FloatingPointError(f"the reward is not finite for {prompts[row]!r}.")
        return scores


def read_png(text: str, i: int, limit: int):
    """Image i of a request, unless it is larger than `limit` bytes when decoded; ValueError if it is not one."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
        if 3 * image.width * image.height <= limit:
            image.load()
            return image
    except (TypeError, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {i} is not a PNG file in base64.") from error
    raise ValueError("the images are too large when decoded.")


def read_json(body: bytes, limit: int) -> tuple[Tensor, dict]:
    """Images and rows of a JSON body; ValueError if it is wrong."""
    given = json.loads(body)
    if not isinstance(given, dict) or not isinstance(given.get("images"), list):
        raise ValueError("the body must be {images, prompts, columns}.")
    arrays, total = [], 0
    for i, text in enumerate(given["images"]):
        image = read_png(text, i, limit - total)
        total += 3 * image.width * image.height
        if image.mode not in ("RGB", "L"):
            raise ValueError(f"image {i} is {image.mode}: send RGB.")
        arrays.append(np.asarray(image.convert("RGB")))
    if len({array.shape for array in arrays}) > 1:
        raise ValueError("the images of a request must have one size.")
    if not arrays:
        raise ValueError("there is no image.")
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return images.float() / 255, read_rows(given, len(images))


def read_npz(body: bytes, limit: int) -> tuple[Tensor, dict]:
    """Images and rows of an npz body; ValueError if it is wrong."""
    try:
        if sum(file.file_size for file in zipfile.ZipFile(io.BytesIO(body)).infolist()) > limit:
            raise ValueError("the arrays are too large when decoded.")
        with np.load(io.BytesIO(body), allow_pickle=False) as file:
            images, rows = file["images"], file["rows"]
    except (KeyError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError("the body must be an npz file with `images` and `rows`.") from error
    if images.dtype not in (np.uint8, np.float16, np.float32) or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be (N, 3, H, W), uint8, float16 or float32; they are {images.shape}, {images.dtype}."
        )
    if rows.dtype != np.uint8 or not images.size:
        raise ValueError("there is no image." if not images.size else "rows must be uint8: the bytes of JSON.")
    x = torch.from_numpy(images).float() / (255 if images.dtype == np.uint8 else 1)
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError("the images must lie in [0, 1].")
    return x, read_rows(json.loads(rows.tobytes()), len(x))


def read_rows(given: dict, n: int) -> dict:
    """{"prompt", "columns"} of n images; ValueError if they are not as many."""
    prompts, columns = given.get("prompts"), given.get("columns") or {}
    if not isinstance(prompts, list) or len(prompts) != n or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompts must be a list of {n} texts, one for each image.")
    for name, cells in columns.items() if isinstance(columns, dict) else [("columns", None)]:
        if not isinstance(cells, list) or len(cells) != n:
            raise ValueError(f"the column {name} must be a list of {n}, one for each image.")
    return {"prompt": prompts, "columns": columns}


def application(reward: Reward, batch_size: int = 16, max_megabytes: int = 256, token: str | None = None, device="cpu"):
    """The FastAPI application; see this file's docstring.

    Raises ValueError for a reward that leaves images out, compares images, or keeps statistics of what it scores.
    """
    import asyncio

    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    refuse_masks(reward, "a server")
    if any(isinstance(m, Combination) and m.normalise for m in reward.modules()):
        raise ValueError(
            f"{type(reward).__name__} keeps statistics of what it scored, which a server would mix over its clients: "
            "serve its parts and combine them in the config that trains, or set its normalise to false."
        )
    if reward.together:
        raise ValueError(
            f"{type(reward).__name__} compares the images of a call, and a server scores those of several together: "
            "use it in the process that trains."
        )
    limit, batcher = max_megabytes * 2**20, Batcher(reward, batch_size, 64 * batch_size, device)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    about = {"name": reward.name, "scale": reward.scale, "columns": reward.columns, "names": list(reward.names)}
    about |= {"differentiable": reward.differentiable}

    @app.exception_handler(HTTPException)
    async def sentence(_: Request, error: HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    def check_token(request: Request) -> None:
        sent = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "the token is wrong or missing: send it as Authorization: Bearer <token>.")

    async def body_of(request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise HTTPException(413, f"the request has more than {max_megabytes} MB: send fewer images in each.")
            parts.append(part)
        return b"".join(parts)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    @app.get("/")
    async def describe(request: Request):
        check_token(request)
        return about

    @app.post("/score")
    async def score(request: Request):
        check_token(request)
        kind = request.headers.get("content-type", "").split(";")[0].strip()
        if kind not in (JSON, NPZ):
            raise HTTPException(415, f"the content type must be {JSON}, or {NPZ} for an npz file.")
        body = await body_of(request)
        try:
            images, rows = await asyncio.to_thread(read_json if kind == JSON else read_npz, body, DECODED * limit)
            if unknown := rows["columns"].keys() - reward.columns.keys():
                raise ValueError(f"{reward.name} takes no column {min(unknown)}; it takes {list(reward.columns)}.")
        except (ValueError, RecursionError) as error:  # JSON's and NumPy's, too
            raise HTTPException(422, " ".join(str(error).split())[:300]) from error
        try:
            scores = await asyncio.wrap_future(batcher.put(images, rows))
        except BufferError as error:
            raise HTTPException(503, "too many images wait: try again later.", {"Retry-After": "1"}) from error
        except Exception as error:
            said = " ".join(str(error).split())[:300] or type(error).__name__
            if isinstance(error, ValueError) and of_the_user(error):  # what a reward says of a row
                raise HTTPException(422, said) from error
            traceback.print_exception(error)
            raise HTTPException(500, f"the reward {reward.name} failed: {said}") from error
        return {"name": reward.name, "scores": scores.double().tolist()}

    return app


def serve(
    reward: Reward,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_size: int = 16,
    max_megabytes: int = 256,
    device: str | None = None,
    token_env: str = "LIT_ALIGN_TOKEN",
) -> None:
    """Serves a reward over HTTP, for `HTTPReward` and other clients (POST /score, GET /health, GET /).

    Ctrl-C ends it. If the environment variable `token_env` is set, clients must send its value; it has to be, where the
    host is not this machine alone. Traffic is not encrypted.

    Args:
        reward: of images; not one that keeps statistics of what it scored, such as a normalised WeightedSum.
        host: address to listen at; 0.0.0.0 for other machines.
        port: 0 for any that is free.
        batch_size: most images scored at once.
        max_megabytes: largest request.
        device: where the reward runs (default: the first GPU, else the CPU).
        token_env: environment variable with the token.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise ValueError("serve needs FastAPI and uvicorn: pip install 'lit-align[serve]'.") from error
    token = os.environ.get(token_env)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    app = application(reward, batch_size, max_megabytes, token, device)
    listener = listen(host, port, token, token_env)
    print(f"{reward.name} at http://{host}:{listener.getsockname()[1]} on {device}; Ctrl-C ends it", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    print("stopped")


def listen(host: str, port: int, token: str | None, token_env: str) -> socket.socket:
    """A socket that listens at an address. ValueError if it cannot, or if other machines could reach it and there is no
    token."""
    if not token and not (host == "localhost" or is_loopback(host)):
        raise ValueError(
            f"other machines could reach a server at {host}: set the environment variable {token_env} to a token here "
            "and where its clients run, or leave --host out."
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"cannot listen at {host}, port {port}: {error.strerror or error}.") from error


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
