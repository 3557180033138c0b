"""Servers on this machine's loopback, for tests of what calls them."""

import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import uvicorn

from lit_align.tools.serve import application


@contextmanager
def reward_server(reward, port=0, **options):
    """`serve`'s application in a thread: yields its URL."""
    config = uvicorn.Config(application(reward, **options), port=port, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def sent(body):
    """What HTTPReward sent: {"prompts", "columns", "images"}."""
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        return json.loads(file["rows"].tobytes()) | {"images": file["images"]}


def darkness(body):
    """The answer of a server of 1 - the mean pixel."""
    return 200, {"name": "fake", "scores": (1 - sent(body)["images"].mean((1, 2, 3))).tolist()}


@contextmanager
def scripted_server(*answers):
    """A server that gives its answers to POST in turn, the last one for ever: (status, body), or a function of the
    request's body that gives one. GET / describes a reward of one number. Yields its URL and the bodies it was sent."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status, body):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(200, {"name": "fake", "names": [], "columns": {}})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                seen.append((self.path, dict(self.headers), body))
                given = answers[min(len(seen), len(answers)) - 1]
            self.answer(*(given(body) if callable(given) else given))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
