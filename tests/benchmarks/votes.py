"""A model aligned from votes that a script casts in a browser: it draws two images of each of `--prompts` captions,
opens the page of `python -m lit_align collect` in a headless Chromium, clicks as an annotator with the exact judge's
taste, trains Diffusion-DPO on the votes, and compares the result with the base model.

`PYTHONPATH=tests python tests/benchmarks/votes.py --out /tmp/votes --screenshot docs/collect.png`
"""

import argparse
import io
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from browser import browser
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lit_align.configs import CONFIGS
from lit_align.shapes.judge import judge

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--prompts", type=int, default=500)
parser.add_argument("--screenshot", type=Path)
args = parser.parse_args()
lit_align = [sys.executable, "-m", "lit_align"]


def image(element) -> torch.Tensor:
    cell = urllib.request.urlopen(element.get_attribute("src")).read()
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(cell)).convert("RGB")).copy()).permute(2, 0, 1) / 255


def click_through(address: str, profile: Path) -> None:
    """Votes until the page shows no more images."""
    with browser(profile) as page:
        wait = WebDriverWait(page, 600)
        page.get(address)
        name = wait.until(lambda _: page.find_element(By.ID, "name"))
        wait.until(lambda _: name.is_displayed())
        name.send_keys("judge", Keys.ENTER)
        shown = lambda: page.find_element(By.ID, "progress").text
        wait.until(lambda _: shown())
        for done in range(int(shown().split()[0]), args.prompts):
            wait.until(lambda _: shown() == f"{done} of {args.prompts}")
            images = page.find_elements(By.CSS_SELECTOR, "#images img")
            prompt = page.find_element(By.ID, "prompt").text
            right = judge(torch.stack([image(one) for one in images]), [prompt] * 2).tolist()
            if right[0] != right[1] and args.screenshot:
                page.save_screenshot(args.screenshot)
                args.screenshot = None
            key = "0" if right[0] == right[1] else "1" if right[0] else "2"
            page.find_element(By.TAG_NAME, "body").send_keys(key)
        wait.until(lambda _: page.find_element(By.ID, "end").is_displayed())


args.out.mkdir(parents=True, exist_ok=True)
captions = [json.loads(line)["prompt"] for line in (CONFIGS / "shapes/prompts/train.jsonl").open()]
captions = list(dict.fromkeys(captions))[: args.prompts]
args.prompts = len(captions)
twice = args.out / "prompts.jsonl"
twice.write_text("".join(json.dumps({"prompt": caption}) + "\n" for caption in captions for _ in range(2)))
run = ["--config", "shapes/dpo", "--trainer.default_root_dir", str(args.out / "run")]
if not (args.out / "run/predict").exists():  # of a run that was interrupted: `collect` goes on where it stopped
    subprocess.run([*lit_align, "predict", *run, "--data.predict_prompts", str(twice)], check=True)

votes = args.out / "votes"
command = [*lit_align, "collect", "--images", f"[{args.out / 'run/predict'}]", "--out", str(votes), "--port", "0"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
start, address = time.time(), server.stdout.readline().split("open ")[1].split()[0]
click_through(address, args.out / "profile")
print(f"{args.prompts} votes in {time.time() - start:.0f} s")
server.send_signal(2)
print(server.communicate()[0])

trained = [*run, "--data.path", str(votes)]
subprocess.run([*lit_align, "fit", *trained], check=True)
subprocess.run([*lit_align, "test", *trained, "--ckpt_path", "last"], check=True)
