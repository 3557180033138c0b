"""The page on which people choose between images: in a real browser, over HTTP, and what is trained on its votes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import browser, needs_browser
from datasets import load_dataset
from PIL import Image

from lit_align.cli import main
from lit_align.data.captioned_images import CaptionedImages
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.rankings import Rankings
from lit_align.data.votes import Votes, make_items
from lit_align.tools.collect import shown_order, true_choice

HOSTILE = "<img src=x onerror=\"document.title='broken'\"> & \"a red circle\""


def samples(folder, prompts, n=1, start=0):
    """A folder as predict writes it: n images of each prompt; the k-th image's grey level is its number."""
    folder.mkdir()
    with open(folder / "metadata.jsonl", "w") as file:
        for k, prompt in enumerate(p for p in prompts for _ in range(n)):
            Image.fromarray(np.full((16, 16, 3), start + k, np.uint8)).save(folder / f"{k:05d}.png")
            file.write(json.dumps({"file_name": f"{k:05d}.png", "prompt": prompt, "seed": k}) + "\n")
    return str(folder)


def level(cell):
    return int(np.asarray(Image.open(io.BytesIO(cell)))[0, 0, 0])


@contextmanager
def served(*flags, env=None, stop=signal.SIGINT):
    """`python -m lit_align collect`: yields its address and process; then stops it, and `process.said` is its output."""
    command = [sys.executable, "-m", "lit_align", "collect", "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | (env or {}))
    line = process.stdout.readline()
    assert "items" in line, process.communicate()[1]
    try:
        yield re.search(r"open (\S+)", line)[1], process
    finally:
        process.send_signal(stop)
        process.said = line + "".join(process.communicate(timeout=60))


def ask(url, body=None, **headers):
    """(status, answer) of a request."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | headers if data else headers
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def vote(url, name, choice, reasons=()):
    """Votes on the next item of an annotator by a function of the images' grey levels as shown."""
    _, found = ask(f"{url}next?annotator={name}")
    levels = [level(urllib.request.urlopen(url[:-1] + image).read()) for image in found["images"]]
    sent = {"annotator": name, "item": found["item"], "choice": choice(levels), "reasons": list(reasons)}
    assert ask(url + "vote", sent)[0] == 200
    return found


def brighter(levels):
    return levels.index(max(levels))


def test_items_are_pairs_lists_or_images(tmp_path):
    a, b = samples(tmp_path / "a", ["x", "y"], 3), samples(tmp_path / "b", ["y", "x"], 2)
    names = lambda items: [(i.prompt, *(f"{image.parent.name}{image.stem[-1]}" for image in i.images)) for i in items]
    assert names(make_items([a], "pairs"))[:3] == [("x", "a0", "a1"), ("x", "a0", "a2"), ("x", "a1", "a2")]
    assert names(make_items([a, b], "pairs")) == [("x", "a0", "b2"), ("x", "a1", "b3"), ("y", "a3", "b0"), ("y", "a4", "b1")]
    assert names(make_items([a], "ranks", 3)) == [("x", "a0", "a1", "a2"), ("y", "a3", "a4", "a5")]
    assert len(make_items([a, b], "ratings")) == 10 and len(make_items([a], "pairs", per_prompt=1)) == 2
    with pytest.warns(UserWarning, match="2 of 10 images are not shown"):
        make_items([a, b], "pairs")
    same = [samples(tmp_path / run / "predict", ["x"]) for run in ("one", "two") if (tmp_path / run).mkdir() is None]
    assert len({item.id for item in make_items(same, "ratings")}) == 2  # of folders that have one name
    with pytest.raises(ValueError, match="twice: give it once"):
        make_items([a, a], "pairs")
    with pytest.raises(ValueError, match="no prompt in .* has 4 images to compare"):
        make_items([a], "ranks", 4)
    with pytest.raises(FileNotFoundError, match="has no metadata.jsonl"):
        make_items([str(tmp_path)], "pairs")
    (tmp_path / "a/00000.png").unlink()
    with pytest.raises(FileNotFoundError, match="names the image 00000.png"):
        make_items([a], "pairs")


def test_choices_count_images_as_shown(tmp_path):
    items = make_items([samples(tmp_path / "a", [f"p{i}" for i in range(40)], 2)], "pairs")
    orders = [shown_order(item, "ann") for item in items]
    assert 10 < sum(order == [1, 0] for order in orders) < 30  # sides are even
    assert orders != [shown_order(item, "bob") for item in items] and orders == [shown_order(item, "ann") for item in items]
    assert [true_choice("pairs", k, [1, 0]) for k in (0, 1, 0.5, None)] == [1, 0, 0.5, None]
    assert true_choice("ranks", [2, 0, 1], [1, 2, 0]) == [0, 1, 2]
    with pytest.raises(ValueError, match="no choice of pairs"):
        true_choice("pairs", 2, [1, 0])


@pytest.mark.slow
def test_votes_over_http_become_a_dataset_and_nothing_is_lost(tmp_path):
    images, out = samples(tmp_path / "a", [f"p{i}" for i in range(5)], 2), tmp_path / "votes"
    flags = ["--images", f"[{images}]", "--out", str(out), "--votes_per_item", "2", "--reasons", "[hands, text]"]
    with served(*flags, stop=signal.SIGKILL) as (url, process):
        for _ in range(3):
            vote(url, "ann", brighter, ["hands"])
        found = vote(url, "ann", lambda _: None)
        assert found["done"] == 3 and found["total"] == 5
        vote(url, "bob", lambda levels: 1 - brighter(levels))
        assert ask(url + "vote", {"annotator": "ann", "item": "none", "choice": 0})[0] == 422
        assert ask(url + "vote", {"annotator": "", "item": found["item"], "choice": 0})[0] == 422
        assert ask(url + "vote", {"annotator": "ann", "item": found["item"], "choice": 0, "reasons": ["made up"]})[0] == 422
        assert ask(url + "vote", {"annotator": "ann", "item": found["item"], "choice": 0}, **{"Content-Type": "text/plain"})[0] == 415
        assert ask(url + "task", **{"Host": "evil.example"})[0] == 400  # a foreign name that leads here
        assert ask(url + "pages/..%2fcollect.py")[0] == 404
        busy = subprocess.run([sys.executable, "-m", "lit_align", "collect", *flags], capture_output=True, text=True)
        assert busy.returncode and f"is collecting votes in {out}: wait for it" in busy.stderr
    with open(out / "votes.jsonl", "a") as file:  # as a kill in the middle of a line leaves it
        file.write('{"item": "')
    with served(*flags) as (url, process):
        assert len(load_dataset("parquet", data_files=str(out / "train.parquet"), split="train")) == 4  # of the killed server
        vote(url, "ann", brighter)
        assert ask(f"{url}next?annotator=ann")[1] == {"item": None, "done": 5, "total": 5}
        again = json.loads((out / "votes.jsonl").read_text().splitlines()[0])["item"]
        other = ask(f"{url}item/{again}?annotator=ann")[1]
        levels = [level(urllib.request.urlopen(url[:-1] + image).read()) for image in other["images"]]
        ask(url + "vote", {"annotator": "ann", "item": again, "choice": 1 - brighter(levels)})  # another mind
    assert "its last line is not whole" in process.said and "6 votes are in" in process.said and "5 rows in" in process.said
    rows = load_dataset("parquet", data_files=str(out / "train.parquet"), split="train").to_list()
    by_ann = [row for row in rows if row["user_id"] == 0]
    right = [row["label_0"] == float(level(row["jpg_0"]) > level(row["jpg_1"])) for row in by_ann]
    assert len(rows) == 5 and right.count(True) == 3 and right.count(False) == 1
    assert [row["num_example_per_prompt"] for row in rows if row["user_id"] == 1] == [2] and rows[0]["model_0"] == images
    assert "ann" not in str(rows)
    data = PickAPic(str(out), resolution=16)
    data.load("train")
    assert data.summary() == "train: 5 pairs, 5 kept"


def test_ranks_and_ratings_feed_their_datasets(tmp_path):
    images = samples(tmp_path / "a", ["x", "y"], 3)
    by_level = lambda levels: sorted(range(len(levels)), key=lambda k: -levels[k])
    with served("--images", f"[{images}]", "--out", str(tmp_path / "ranks"), "--task", "ranks", "--size", "3") as (url, _):
        vote(url, "ann", by_level), vote(url, "ann", by_level)
    data = Rankings(str(tmp_path / "ranks/train.parquet"), resolution=16)
    batch = data.collate(list(data.load("train")))
    assert batch["scores"][..., 0].tolist() == [[0, 1, 2], [0, 1, 2]] and batch["images"].shape == (2, 3, 3, 16, 16)
    flags = ["--task", "ratings", "--scale", "5", "--votes_per_item", "2"]
    with served("--images", f"[{images}]", "--out", str(tmp_path / "ratings"), *flags) as (url, _):
        for name in ("ann", "bob"):
            for _ in range(6):
                vote(url, name, lambda levels: levels[0] + (name == "ann" and levels[0] < 5) or 1)
    data = CaptionedImages(str(tmp_path / "ratings/train.parquet"), label_column="label", resolution=16)
    rows = data.load("train").to_list()
    found = {level(row["image"]): row["label"] for row in rows}
    assert found == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1} and [row["columns.ratings"] for row in rows] == [2] * 6
    with pytest.raises(ValueError, match=r"line \d of (?s:.*) is no vote on ratings with these options"):
        Votes(tmp_path / "ratings/votes.jsonl", make_items([images], "ratings"), "ratings", 2)
    votes = Votes(tmp_path / "new.jsonl", make_items([images], "ratings"), "ratings", 5)
    votes.add("ann", next(iter(votes.items)), 3, [], [0])
    assert votes.export(tmp_path) == 0  # the middle is neither good nor bad


def test_other_machines_need_a_token(tmp_path, monkeypatch):
    images, out = samples(tmp_path / "a", ["x"], 2), str(tmp_path / "votes")
    monkeypatch.delenv("LIT_ALIGN_TOKEN", raising=False)
    with pytest.raises(SystemExit):
        main(["collect", "--images", f"[{images}]", "--out", out, "--host", "0.0.0.0"])
    with served("--images", f"[{images}]", "--out", out, env={"LIT_ALIGN_TOKEN": "secret"}) as (url, _):
        assert url.endswith("?token=secret")
        assert ask(url.replace("secret", "wrong"))[0] == 401 and ask(url.split("?")[0] + "task")[0] == 401
        assert ask(url.split("?")[0] + "task", Cookie="token=secret")[0] == 200


@pytest.mark.slow
@needs_browser
def test_a_person_votes_in_a_browser(tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    images, out = samples(tmp_path / "a", [HOSTILE, "two", "three", "four"], 2), tmp_path / "votes"
    flags = ["--images", f"[{images}]", "--out", str(out), "--reasons", "[wrong colour, bad hands]", "--port"]
    with served(*flags, "0") as (url, process), browser(tmp_path / "profile") as page:
        wait = WebDriverWait(page, 30)
        shows = lambda text: wait.until(lambda _: page.find_element(By.ID, "progress").text == text)
        press = lambda key: page.find_element(By.TAG_NAME, "body").send_keys(key)
        seen = lambda k: level(urllib.request.urlopen(page.find_elements(By.CSS_SELECTOR, "#images img")[k].get_attribute("src")).read())
        page.get(url)
        name = wait.until(lambda _: page.find_element(By.ID, "name"))
        wait.until(lambda _: name.is_displayed())
        name.send_keys("ann", Keys.ENTER)
        shows("0 of 4")
        assert page.find_element(By.ID, "prompt").text == HOSTILE and page.title == "Which image is better?"
        chosen = [seen(1)]
        page.find_elements(By.CSS_SELECTOR, "#reasons input")[0].click()
        page.find_elements(By.CSS_SELECTOR, "#images button")[1].click()
        shows("1 of 4")
        chosen.append(seen(0))
        press("w"), press(Keys.ARROW_LEFT)
        shows("2 of 4")
        press("0")
        shows("3 of 4")
        press("z")  # thinks again: the third pair, now the right image
        shows("3 of 4")
        chosen.append(seen(1))
        press("2")
        wait.until(lambda _: page.find_element(By.ID, "prompt").text == "four")
        page.save_screenshot(tmp_path / "page.png")
        press("s")
        wait.until(lambda _: page.find_element(By.ID, "end").is_displayed())
        process.kill()  # the server is gone: the page says so, and goes on when it is back
        press("z")
        wait.until(lambda _: "does not answer" in page.find_element(By.ID, "problem").text)
        with served(*flags, re.search(r":(\d+)/", url)[1]) as (_, again):
            wait.until(lambda _: page.find_element(By.ID, "prompt").text == "four" and not page.find_element(By.ID, "problem").is_displayed())
            chosen.append(seen(0))
            press("1")
            wait.until(lambda _: page.find_element(By.ID, "end").is_displayed())
    assert "4 rows in" in again.said
    votes = [json.loads(line) for line in Path(out / "votes.jsonl").read_text().splitlines()]
    assert [vote["reasons"] for vote in votes] == [["wrong colour"], ["bad hands"], [], [], [], []]
    rows = load_dataset("parquet", data_files=str(out / "train.parquet"), split="train").to_list()
    best = [level(row["jpg_0" if row["label_0"] == 1 else "jpg_1"]) for row in sorted(rows, key=lambda row: row["ranking_id"])]
    assert best == chosen and np.asarray(Image.open(tmp_path / "page.png")).std() > 5
