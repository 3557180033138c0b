"""Rewards that servers compute: what is asked, what is accepted, and what becomes of a server that fails."""

import copy
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from parts import Darkness, T, prompts, tiny, trainer
from PIL import Image
from servers import darkness, reward_server, scripted_server, sent

from lit_align.algorithms.forward_process.crd import CRD
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.cli import main
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.paths import ROOT
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.http import HTTPReward
from lit_align.rewards.jpeg import JPEGCompressibility
from lit_align.rewards.multi_reward import MultiReward
from lit_align.rewards.reward import Reward, components, judge

FAST = {"backoff": 0.01, "timeout": 5.0}
GOOD = lambda body: (200, {"name": "fake", "scores": [0.5] * len(sent(body)["prompts"])})


class Wanted(Reward):
    """Minus the distance of the mean pixel from the row's `target`."""

    name, differentiable, scale = "wanted", False, "0 or less"

    def forward(self, images, prompts, target, include=None):
        assert include is None or include[0] == [{"class": "dog", "count": 1}]
        return -(images.mean((1, 2, 3)) - T(target)).abs()


def rows(n):
    return {"prompt": [f"p{i}" for i in range(n)], "columns": {"target": [i / n for i in range(n)], "skill": ["x"] * n}}


# The same numbers as the reward itself


@pytest.mark.parametrize("encoding,tolerance", [("float32", 0.0), ("uint8", 0.5 / 255)])
def test_it_is_the_served_reward_on_the_same_images(encoding, tolerance):
    images = torch.rand(5, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    data = rows(5)
    data["columns"]["include"] = [[{"class": "dog", "count": 1}]] * 5
    with reward_server(Wanted()) as url:
        remote = HTTPReward([url], encoding=encoding, batch_size=2)
        assert remote.name == "wanted" and remote.columns == {"target": True, "include": False} and not remote.names
        got, want = components(remote, images, data), components(Wanted(), images, data)
    assert got.dtype == torch.float32 and (got - want).abs().max() <= tolerance
    rounded = (images * 255).round() / 255
    assert encoding == "float32" or torch.equal(got, components(Wanted(), rounded, data))
    assert got.argsort().tolist() == want.argsort().tolist()


def test_a_network_is_served_bit_for_bit():
    images, texts = torch.rand(3, 3, 20, 16), {"prompt": ["a red circle", "b", "a"]}
    with reward_server(CLIPScore("tiny")) as url, torch.no_grad():
        assert torch.equal(components(HTTPReward([url]), images, texts), components(CLIPScore("tiny"), images, texts))


def test_several_numbers_come_with_their_names():
    images = torch.rand(3, 3, 4, 4)
    with reward_server(MultiReward({"dark": Darkness(), "again": Darkness(2.0)})) as url:
        remote = HTTPReward([url], batch_size=2)
        assert remote.names == ("dark", "again")
        torch.testing.assert_close(components(remote, images, {"prompt": ["a"] * 3}), torch.stack([Darkness()(images, []), 2 * Darkness()(images, [])], 1))


def test_a_missing_column_is_named_before_anything_is_sent():
    with reward_server(Wanted()) as url:
        with pytest.raises(ValueError, match="the reward wanted needs the column `target`"):
            components(HTTPReward([url]), torch.rand(1, 3, 4, 4), {"prompt": ["a"]})


def test_it_asks_nothing_before_it_is_needed_and_can_be_copied():
    remote = copy.deepcopy(HTTPReward(["http://127.0.0.1:9"]))
    assert remote.client.urls == ["http://127.0.0.1:9"] and not remote.masks
    for urls in ([], ["127.0.0.1:8000"]):
        with pytest.raises(ValueError, match="give one URL or more, each with http"):
            HTTPReward(urls)


# Servers that fail


def score(url, n=1, **options):
    images = torch.rand(n, 3, 2, 2)
    return components(HTTPReward([url] if isinstance(url, str) else url, **(FAST | options)), images, {"prompt": ["a"] * n})


WRONG = {
    "an error, then scores": (500, {"error": "out of memory."}, "HTTP 500, out of memory"),
    "busy, then scores": (503, {"error": "too many"}, "HTTP 503, too many"),
    "rate limit": (429, b"", "HTTP 429"),
    "an HTML page": (200, b"<html>It works!</html>", "Expecting value"),
    "an HTML error": (502, b"<html>Bad Gateway</html>", "HTTP 502"),
    "too few": (200, {"name": "fake", "scores": [0.1]}, "must hold 2 finite scores, and it holds [0.1]"),
    "nan": (200, b'{"name": "fake", "scores": [0.1, NaN]}', "must hold 2 finite scores"),
    "none": (200, {"name": "fake", "scores": [0.1, None]}, "must hold 2 finite scores"),
    "text": (200, {"name": "fake", "scores": ["1", "2"]}, "must hold 2 finite scores"),
    "booleans": (200, {"name": "fake", "scores": [True, False]}, "must hold 2 finite scores"),
    "lists": (200, {"name": "fake", "scores": [[0.1], [0.2]]}, "must hold 2 finite scores"),
    "something else": (200, ["ok"], "is not that of a reward server"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_failed_attempt_is_repeated_and_is_never_a_score(case):
    status, body, said = WRONG[case]
    with scripted_server((status, body), (status, body), GOOD) as (url, seen):
        assert score(url, 2).tolist() == [0.5, 0.5] and len(seen) == 3
    with scripted_server((status, body)) as (url, seen):
        with pytest.raises(ConnectionError) as error:
            score(url, 2, retries=2)
        assert "at the last of 3 attempts" in str(error.value) and said in str(error.value) and "\n" not in str(error.value)
        assert len(seen) == 3
        assert score(url, 2, retries=1, on_failure="mask").isnan().all()


@pytest.mark.parametrize("on_failure", ["stop", "mask"])
@pytest.mark.parametrize("status", [400, 401, 413, 422])
def test_a_refused_request_is_not_repeated(status, on_failure):
    with scripted_server((status, {"error": "look at row 7."})) as (url, seen):
        with pytest.raises(ValueError, match=f"{url} refuses a request: HTTP {status}, look at row 7"):
            score(url, on_failure=on_failure)
        assert len(seen) == 1


def test_another_reward_at_one_of_the_urls_stops_the_run():
    with scripted_server((200, {"name": "other", "scores": [1.0]})) as (url, _):
        with pytest.raises(RuntimeError, match="serves other, another than fake: give the URLs of one reward"):
            score(url, on_failure="mask")


def test_a_slow_server_is_an_attempt_that_failed():
    def slow(body):
        time.sleep(1.0)
        return GOOD(body)

    with scripted_server(slow, GOOD) as (url, seen):
        started = time.time()
        assert score(url, timeout=0.2).tolist() == [0.5]
        assert len(seen) == 2 and time.time() - started < 5


def test_servers_are_asked_in_turn_and_one_that_is_down_is_passed_over():
    with scripted_server(GOOD) as (a, at_a), scripted_server(GOOD) as (b, at_b):
        remote = HTTPReward([a, b], batch_size=1, **FAST)
        images = torch.rand(6, 3, 2, 2)
        assert remote(images, ["a"] * 6).tolist() == [0.5] * 6 and len(at_a) == len(at_b) == 3
        remote = HTTPReward([a, "http://127.0.0.1:9"], batch_size=1, **FAST)
        assert remote(images, ["a"] * 6).tolist() == [0.5] * 6 and len(at_a) == 9


def test_retries_wait_longer_each_time_and_not_equally_long(monkeypatch):
    waits = []
    monkeypatch.setattr("threading.Event.wait", lambda self, seconds=None: waits.append(seconds) and False if seconds else True)
    with scripted_server((500, b"")) as (url, _):
        for _ in range(2):
            with pytest.raises(ConnectionError):
                score(url, retries=4, backoff=1.0)
    first, second = waits[:4], waits[4:]
    assert first != second and all(2**i / 2 <= w <= 2**i * 1.5 for ws in (first, second) for i, w in enumerate(ws))


def test_the_token_is_sent(monkeypatch):
    monkeypatch.setenv("LIT_ALIGN_TOKEN", "s3cret")
    with reward_server(Darkness(), token="s3cret") as url:
        assert score(url).shape == (1,)
        monkeypatch.setenv("LIT_ALIGN_TOKEN", "other")
        with pytest.raises(ValueError, match="HTTP 401, the token is wrong or missing"):
            score(url)


def test_requests_run_at_once():
    def slow(body):
        time.sleep(0.2)
        return GOOD(body)

    with scripted_server(slow) as (url, _):
        started = time.time()
        score(url, 8, batch_size=1, concurrency=8)
        assert time.time() - started < 1.2


# In training

ROLLOUT = {"rollout": Sampler(2, 2.0, DDIM(1.0)), "samples_per_prompt": 4, "minibatch": 8}


def ddpo(reward, **kwargs):
    return DDPO(policy=tiny(), reward=reward, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), **(ROLLOUT | kwargs))


@pytest.mark.slow
def test_a_method_learns_from_a_served_reward_as_from_the_reward(tmp_path):
    images = lambda method: torch.cat([p.detach().flatten() for p in method.policy.parameters() if p.requires_grad])
    with reward_server(Darkness()) as url:
        moved = []
        for reward in (Darkness(), HTTPReward([url])):
            method = ddpo(reward)
            trainer(tmp_path).fit(method, prompts())
            moved.append(images(method))
    torch.testing.assert_close(*moved, atol=1e-6, rtol=1e-4)


def test_a_server_that_dies_stops_the_run_with_a_sentence(tmp_path):
    calls = []

    def dies(body):
        calls.append(body)
        return GOOD(body) if len(calls) < 3 else (500, {"error": "the scorer broke"})

    with scripted_server(dies) as (url, _):
        t = trainer(tmp_path)
        with pytest.raises(ConnectionError, match="the scorer broke"):
            t.fit(ddpo(HTTPReward([url], retries=1, batch_size=4, **FAST), samples_per_prompt=2), prompts(batches=5))
    assert 0 < t.global_step < 5


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_is_waited_for(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = "import sys; from lit_align.rewards.jpeg import JPEGCompressibility; from lit_align.tools.serve import serve; serve(JPEGCompressibility(), port=int(sys.argv[1]), device='cpu')"
    start = lambda port: subprocess.Popen([sys.executable, "-c", program, port], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    process = start("0")
    try:
        url = process.stdout.readline().split()[2]
        remote, images = HTTPReward([url], backoff=0.5), torch.rand(2, 3, 8, 8)
        want = remote(images, ["a", "b"])
    finally:
        process.kill()
    process.wait()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(remote, images, ["a", "b"])
        time.sleep(0.3)
        assert not asked.done()
        with reward_server(JPEGCompressibility(), port=int(url.rpartition(":")[2])):
            assert torch.equal(asked.result(timeout=60), want)


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path, monkeypatch):
    """docs/served_rewards.md: its server's reward, its run (two small steps), and its client."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/served_rewards.md").read_text()
    served, run = (shlex.split(line) for line in re.findall(r"^python -m lit_align (.+)$", page, re.M))
    assert served == ["serve", "--reward", "CLIPScore", "--port", "8000"]
    with reward_server(CLIPScore("tiny")) as url:
        here = [word.replace("http://127.0.0.1:8000", url) for word in run]
        cli = main([*here, "--config", "smoke", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"])
        assert cli.trainer.global_step >= 2 and cli.model.reward.client.urls == [url] and cli.model.reward.about["name"] == "clip_score"
        Image.new("RGB", (16, 16), (9, 99, 200)).save("cat.png")
        (client,) = re.findall(r"```python\n(.+?)```", page, re.S)
        exec(client.replace("http://127.0.0.1:8000", url).replace("print(", "scores = list("), found := {})
    with torch.no_grad():
        assert found["scores"] == pytest.approx(CLIPScore("tiny")(T([9, 99, 200]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255, ["a cat"]).tolist(), rel=1e-5)


# Samples that could not be scored


def fails_at(*numbers):
    """An answer with the mean pixel as the score, and an error at the given requests."""
    calls = []

    def answer(body):
        calls.append(body)
        return (500, b"") if len(calls) - 1 in numbers else darkness(body)

    return answer


MASK = {"retries": 0, "batch_size": 1, "concurrency": 1, "on_failure": "mask"}


def test_masked_samples_are_counted_and_the_others_learn(tmp_path):
    with scripted_server(fails_at(1, 4, 5)) as (url, _):
        method = ddpo(HTTPReward([url], **FAST, **MASK))
        t = trainer(tmp_path)
        t.fit(method, prompts(2))
    assert t.callback_metrics["train/unscored"].item() == pytest.approx(3 / 8)
    assert 0 < t.callback_metrics["train/reward"].item() < 1 and t.callback_metrics["train/loss"].isfinite()


def test_a_run_without_any_score_stops(tmp_path):
    with scripted_server((500, b"")) as (url, _):
        with pytest.raises(FloatingPointError, match="none of the samples of step 0 could be scored"):
            trainer(tmp_path).fit(ddpo(HTTPReward([url], **FAST, **MASK)), prompts(2))


def test_a_method_that_needs_every_sample_says_so(tmp_path):
    remote = HTTPReward(["http://127.0.0.1:9"], on_failure="mask")
    crd = CRD(policy=tiny(StableDiffusion3), reward=remote, rollout=Sampler(2, 1.0), samples_per_prompt=2)
    with pytest.raises(ValueError, match="CRD needs a score for every image, and HTTPReward leaves out .* set its on_failure to stop"):
        trainer(tmp_path).fit(crd, prompts())
    with pytest.raises(ValueError, match="model.rewards of DDPO needs a score for every image"):
        trainer(tmp_path).fit(ddpo(Darkness(), rewards=[remote]), prompts())


def test_judge_carries_what_could_not_be_scored():
    class Decoder:
        decode, calls = staticmethod(lambda x: x), Counter()

    with scripted_server(fails_at(1)) as (url, _):
        images = torch.rand(3, 3, 2, 2)
        got = judge(HTTPReward([url], **FAST, **MASK), Decoder, images, {"prompt": ["a"] * 3}, 2)
    assert got.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(got[[0, 2]], Darkness()(images[[0, 2]], []))
