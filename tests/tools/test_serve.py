"""The reward server, over loopback."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from servers import reward_server

from lit_align.cli import main
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.http import pack
from lit_align.rewards.multi_reward import MultiReward, WeightedSum
from lit_align.rewards.reward import Reward
from lit_align.tools.serve import Batcher, serve


class Shade(Reward):
    """1 - the mean pixel, plus the row's `bonus`; fails as its prompts ask. Notes the sizes of its batches."""

    name, differentiable, scale = "shade", True, "0 to 1"

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds, self.sizes = seconds, []

    def forward(self, images, prompts, bonus=None):
        time.sleep(self.seconds)
        self.sizes.append(len(images))
        if "break" in prompts:
            raise RuntimeError("the scorer broke")
        if "nan" in prompts:
            return torch.full((len(images),), torch.nan)
        return 1 - images.mean((1, 2, 3)) + torch.tensor([b or 0.0 for b in bonus or [0.0] * len(prompts)])


class Wrong(Shade):
    name = "wrong"

    def forward(self, images, prompts, target):
        return super().forward(images, prompts)


def ask(url, body=None, kind="application/json", **headers):
    """(status, answer) of a request."""
    headers = {"Content-Type": kind, **headers} if body is not None else headers
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def png_of(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def request(images, prompts, **more):
    return json.dumps({"images": images, "prompts": prompts, **more}).encode()


@pytest.fixture(scope="module")
def shade():
    with reward_server(Shade(), token=None, max_megabytes=1) as url:
        yield url


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
PNGS = [png_of(x) for x in PIXELS]
WANT = (1 - PIXELS.mean((1, 2, 3)) / 255).tolist()


def test_it_says_what_it_serves(shade):
    assert ask(f"{shade}/health") == (200, {"status": "ok"})
    about = {"name": "shade", "scale": "0 to 1", "columns": {"bonus": False}, "names": [], "differentiable": True}
    assert ask(shade) == (200, about)


def test_pngs_are_scored_with_their_columns(shade):
    status, answer = ask(f"{shade}/score", request(PNGS, ["a", "b"]))
    assert status == 200 and answer["name"] == "shade" and answer["scores"] == pytest.approx(WANT, abs=1e-6)
    _, answer = ask(f"{shade}/score", request(PNGS, ["a", "b"], columns={"bonus": [None, 2.0]}))
    assert answer["scores"] == pytest.approx([WANT[0], WANT[1] + 2], abs=1e-6)
    grey = png_of(np.full((4, 4), 51, np.uint8))
    assert ask(f"{shade}/score", request([grey], ["a"]))[1]["scores"] == pytest.approx([0.8])


@pytest.mark.parametrize("dtype,unit", [(np.uint8, 255), (np.float32, 1), (np.float16, 1)])
def test_an_npz_file_is_scored(shade, dtype, unit):
    images = (PIXELS.transpose(0, 3, 1, 2) / 255 * unit).round(0 if unit > 1 else 9).astype(dtype)
    buffer, rows = io.BytesIO(), json.dumps({"prompts": ["a", "b"]}).encode()
    np.savez_compressed(buffer, images=images, rows=np.frombuffer(rows, np.uint8))
    status, answer = ask(f"{shade}/score", buffer.getvalue(), "application/octet-stream")
    assert status == 200 and answer["scores"] == pytest.approx(WANT, abs=1e-3 if dtype == np.float16 else 1e-6)


class Pickled:
    def __reduce__(self):
        return (os.mkdir, ("was-here",))


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


ROWS = np.frombuffer(b'{"prompts": ["a"]}', np.uint8)
ONE = np.zeros((1, 3, 4, 4), np.uint8)
BAD = {
    "no JSON": (b"{", 422, "Expecting property name"),
    "a list": (b"[]", 422, "the body must be {images, prompts, columns}"),
    "deep": (b"[" * 100_000, 422, "recursion"),
    "no images": (request([], []), 422, "there is no image"),
    "no PNG": (request(["AAAA"], ["a"]), 422, "image 0 is not a PNG file in base64"),
    "no base64": (request([PNGS[0], "*"], ["a", "b"]), 422, "image 1 is not a PNG file in base64"),
    "cut": (request([base64.b64encode(base64.b64decode(PNGS[0])[:60]).decode()], ["a"]), 422, "image 0 is not a PNG file"),
    "transparent": (request([png_of(np.zeros((4, 4, 4), np.uint8))], ["a"]), 422, "image 0 is RGBA: send RGB"),
    "two sizes": (request([PNGS[0], png_of(PIXELS[0, :4])], ["a", "b"]), 422, "must have one size"),
    "a bomb": (request([png_of(np.zeros((2000, 2000, 3), np.uint8))], ["a"]), 422, "too large when decoded"),
    "too few prompts": (request(PNGS, ["a"]), 422, "prompts must be a list of 2 texts"),
    "prompts are numbers": (request(PNGS, [1, 2]), 422, "prompts must be a list of 2 texts"),
    "a short column": (request(PNGS, ["a", "b"], columns={"bonus": [1]}), 422, "column bonus must be a list of 2"),
    "columns are a list": (request(PNGS, ["a", "b"], columns=[1]), 422, "column columns must be a list of 2"),
    "an unknown column": (request(PNGS, ["a", "b"], columns={"bonsu": [1, 2]}), 422, "shade takes no column bonsu; it takes"),
    "a large request": (request(["A" * 2**21], ["a"]), 413, "more than 1 MB: send fewer images"),
    "a scorer that breaks": (request(PNGS, ["a", "break"]), 500, "the reward shade failed: the scorer broke"),
    "a scorer that gives nan": (request(PNGS, ["nan", "b"]), 500, "the reward is not finite for 'nan'"),
}
BAD_NPZ = {
    "no zip": (b"PK", "must be an npz file"),
    "no rows": (npz(images=ONE), "must be an npz file with `images` and `rows`"),
    "pickled": (npz(images=np.array([Pickled()], object), rows=ROWS), "allow_pickle=False"),
    "a bomb": (npz(images=np.zeros((1, 3, 2000, 2000), np.uint8), rows=ROWS), "too large when decoded"),
    "channels last": (npz(images=ONE.transpose(0, 2, 3, 1), rows=ROWS), r"images must be (N, 3, H, W)"),
    "integers": (npz(images=ONE.astype(np.int64), rows=ROWS), "uint8, float16 or float32"),
    "outside [0, 1]": (npz(images=ONE.astype(np.float32) - 1, rows=ROWS), "must lie in [0, 1]"),
    "nan": (npz(images=ONE.astype(np.float32) * np.nan, rows=ROWS), "must lie in [0, 1]"),
    "text rows": (npz(images=ONE, rows=np.array("{}")), "rows must be uint8"),
    "none": (npz(images=ONE[:0], rows=ROWS), "there is no image"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_request_is_answered_in_one_sentence(shade, case):
    body, status, said = BAD[case]
    found, answer = ask(f"{shade}/score", body)
    assert found == status and said in answer["error"] and "\n" not in answer["error"]
    assert ask(f"{shade}/score", request(PNGS, ["a", "b"]))[0] == 200  # and it goes on


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_wrong_npz_is_answered_in_one_sentence(shade, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body, said = BAD_NPZ[case]
    found, answer = ask(f"{shade}/score", body, "application/octet-stream")
    assert found == 422 and said in answer["error"] and not (tmp_path / "was-here").exists()


def test_other_kinds_and_places_are_refused(shade):
    assert ask(f"{shade}/score", b"x=1", "application/x-www-form-urlencoded")[0] == 415
    assert ask(f"{shade}/nowhere")[0] == 404 and ask(f"{shade}/score")[0] == 405
    assert ask(f"{shade}/docs")[0] == 404


def test_a_row_that_the_reward_refuses_is_the_clients_error():
    with reward_server(Wrong()) as url:
        status, answer = ask(f"{url}/score", request(PNGS, ["a", "b"]))
    assert status == 422 and "the reward wrong needs the column `target`" in answer["error"]


def test_a_token_is_asked_for():
    with reward_server(Shade(), token="s3cret") as url:
        assert ask(f"{url}/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            assert ask(url, **headers)[0] == 401
            assert ask(f"{url}/score", request(PNGS, ["a", "b"]), **headers)[0] == 401
        assert ask(f"{url}/score", request(PNGS, ["a", "b"]), Authorization="Bearer s3cret")[0] == 200


def test_requests_that_wait_are_scored_together_and_one_that_fails_fails_alone():
    reward = Shade(seconds=0.3)
    with reward_server(reward, batch_size=5) as url:
        answers = {}

        def send(i, prompt):
            answers[i] = ask(f"{url}/score", request([png_of(np.full((2, 2, 3), 10 * i, np.uint8))] * 2, [prompt] * 2))

        threads = [threading.Thread(target=send, args=(i, "break" if i == 3 else "a")) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, (status, answer) in answers.items():
        assert status == (500 if i == 3 else 200)
        assert i == 3 or answer["scores"] == pytest.approx([1 - 10 * i / 255] * 2)
    assert max(reward.sizes) == 4  # two requests of two; five would be more than fits


def test_a_large_request_is_scored_in_batches():
    reward = Shade()
    scores = Batcher(reward, 2, 100, "cpu").put(torch.rand(5, 3, 2, 2), {"prompt": ["a"] * 5, "columns": {}}).result()
    assert len(scores) == 5 and reward.sizes == [2, 2, 1]


def test_requests_of_other_sizes_and_clients_that_left_do_not_hold_up_the_others():
    reward = Shade(seconds=0.2)
    batcher = Batcher(reward, 8, 100, "cpu")
    put = lambda side, n: batcher.put(torch.full((n, 3, side, side), 0.1 * n), {"prompt": ["a"] * n, "columns": {}})
    first = put(2, 1)
    time.sleep(0.1)  # it is being scored while these arrive
    jobs = [put(4, 1), put(2, 2), put(4, 3), put(2, 4), put(2, 5)]
    assert jobs[4].cancel()
    assert [round(1 - job.result(timeout=30)[0].item(), 3) for job in [first, *jobs[:4]]] == [0.1, 0.1, 0.2, 0.3, 0.4]
    assert reward.sizes == [1, 4, 6] and put(2, 1).result(timeout=30)[0].item() == pytest.approx(0.9)


def test_more_images_than_can_wait_are_sent_away():
    batcher = Batcher(Shade(seconds=0.5), 1, 2, "cpu")
    put = lambda: batcher.put(torch.rand(1, 3, 2, 2), {"prompt": ["a"], "columns": {}})
    first = put()
    time.sleep(0.1)  # it is being scored
    put()
    put()
    with pytest.raises(BufferError):
        put()
    first.result()


def test_several_numbers_are_served_and_a_sum_with_statistics_is_not():
    with reward_server(MultiReward({"one": Shade(), "two": CLIPScore("tiny")})) as url:
        assert ask(url)[1]["names"] == ["one", "two"]
        _, answer = ask(f"{url}/score", request(PNGS, ["a", "b"]))
    assert np.shape(answer["scores"]) == (2, 2) and [row[0] for row in answer["scores"]] == pytest.approx(WANT, abs=1e-6)
    with pytest.raises(ValueError, match="WeightedSum keeps statistics .* serve its parts"):
        with reward_server(WeightedSum({"one": Shade()})):
            pass
    with reward_server(WeightedSum({"one": Shade()}, {"one": 2.0}, normalise=False)) as url:
        assert ask(f"{url}/score", request(PNGS, ["a", "b"]))[1]["scores"] == pytest.approx([2 * w for w in WANT], abs=1e-6)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "example.org"])
def test_a_server_that_others_reach_needs_a_token(host, monkeypatch):
    monkeypatch.delenv("LIT_ALIGN_TOKEN", raising=False)
    with pytest.raises(ValueError, match=f"other machines could reach a server at {host}: set the environment variable LIT_ALIGN_TOKEN"):
        serve(Shade(), host=host)


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c(tmp_path):
    """What a user types, from an empty folder."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "lit_align", "serve", "--reward", "CLIPScore", "--reward.pretrained", "tiny", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("clip_score at http://127.0.0.1:"), line + process.stderr.read()
        url = line.split()[2]
        images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
        _, answer = ask(f"{url}/score", pack(images, ["a cat", "b"], {}), "application/octet-stream")
        with torch.no_grad():
            assert answer["scores"] == CLIPScore("tiny")(images, ["a cat", "b"]).double().tolist()
        port = url.rpartition(":")[2]
        with pytest.raises(SystemExit):
            main(["serve", "--reward", "JPEGCompressibility", "--port", port])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and out.strip() == "stopped" and "Traceback" not in err
    finally:
        process.kill()
