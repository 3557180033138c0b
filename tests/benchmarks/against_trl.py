"""Images per second and peak memory of an epoch of DDPO and AlignProp, ours and the trainers of trl 0.11.4, in one run.

    python -m venv trl && trl/bin/pip install torch==2.13.0 trl==0.11.4 diffusers==0.30.3 transformers==4.45.2 \\
        peft==0.13.2 accelerate==1.0.1 'huggingface_hub<0.27' 'numpy<2' rich
    python tests/benchmarks/against_trl.py --peer trl/bin/python [--epochs 6] [--turns 3] [--write]

Both sides load the same small Stable Diffusion (shapes-sd) with LoRA of rank 4 on the attention. They use equal numbers
of images, sampling steps, guided forwards and threads; the reward is the mean brightness. An epoch of DDPO is 64 samples
of 10 steps and one optimizer step on all of them. An epoch of AlignProp is 16 samples of 10 steps with gradient through
the last 5 (ours: DRaFT with K = 5, which is the same method).

Each measurement runs in a process of its own. Speed: the processes of both sides take turns; the result is the best of
their medians over all epochs but the first. "compiling": the first compiled process, with nothing cached. Memory: the
peak over what was allocated when the first epoch began, with freed blocks returned to the system at once.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parents[2]
PAGE, HEAD = ROOT / "docs/speed_trl.md", "# DDPO and AlignProp against trl 0.11.4"
STEPS, GUIDANCE, SAMPLES, KEPT = 10, 3.0, {"ddpo": 64, "alignprop": 16}, 5
PROMPTS = ["a red circle", "two blue squares", "a green cross", "a large yellow star", "three circles", "a square", "a small red cross", "a blue star"]


def for_both(folder: Path) -> None:
    """shapes-sd with its words in files that an older transformers reads, too."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(ROOT / "checkpoints/shapes-sd", folder, ignore=shutil.ignore_patterns("lists", "pairs", "safety"))
    weights = folder / "text_encoder/model.safetensors"
    save_file({f"text_model.{k}": v for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    words = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(words["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in words["merges"]]
    (folder / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = ends | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))


def held() -> float:
    """MB now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def report(times: list[float], reward: list[float], images: int, base: float) -> None:
    middle, peak = median(times[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"images_per_s": images / middle, "first_s": times[0] - middle, "peak_mb": peak - base, "reward": reward}))


def theirs(method: str, folder: str, epochs: int) -> None:
    from trl import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    times, rewards, n = [], [], SAMPLES[method]
    turn = iter(PROMPTS * 10_000)
    common = dict(mixed_precision="no", allow_tf32=False, sample_num_steps=STEPS, sample_guidance_scale=GUIDANCE, train_learning_rate=1e-5, train_batch_size=n, save_freq=10_000)
    pipe = DefaultDDPOStableDiffusionPipeline(folder, use_lora=True)
    pipe.sd_pipeline.set_progress_bar_config(disable=True)
    prompt = lambda: (next(turn), {})

    def brightness(images, *_):
        score = images.mean((1, 2, 3))
        rewards.append(score.mean().item())
        return score, {}

    if method == "ddpo":
        config = DDPOConfig(sample_batch_size=n, sample_num_batches_per_epoch=1, sample_eta=1.0, train_clip_range=1e-3, **common)
        trainer = DDPOTrainer(config, brightness, prompt, pipe)
    else:
        config = AlignPropConfig(sample_eta=0.0, truncated_backprop_rand=False, truncated_backprop_timestep=STEPS - KEPT, **common)
        trainer = AlignPropTrainer(config, brightness, prompt, pipe)
    base = held()
    for epoch in range(epochs):
        start = time.perf_counter()
        trainer.step(epoch, epoch)
        times.append(time.perf_counter() - start)
    report(times, rewards, n, base)


def ours(method: str, folder: str, epochs: int, compiled: bool) -> None:
    sys.path.insert(0, str(ROOT))
    import lightning as L
    from torch.utils.data import DataLoader

    from lit_align.algorithms.policy_gradient.ddpo import DDPO
    from lit_align.algorithms.reward_gradient.draft import DRaFT
    from lit_align.diffusion.sampler import Sampler
    from lit_align.diffusion.transition import DDIM
    from lit_align.policies.adapters import LoRA
    from lit_align.policies.stable_diffusion import StableDiffusion
    from lit_align.rewards.reward import Reward

    class Brightness(Reward):
        name, differentiable = "brightness", True

        def forward(self, images, prompts):
            score = images.mean((1, 2, 3))
            rewards.append(score.mean().item())
            return score

    class Clock(L.Callback):
        def on_train_start(self, *args):
            self.base = held()

        def on_train_batch_start(self, *args):
            times.append(-time.perf_counter())

        def on_train_batch_end(self, *args):
            times[-1] += time.perf_counter()

    times, rewards, n, clock = [], [], SAMPLES[method], Clock()
    policy = StableDiffusion(folder, LoRA(rank=4), compile=compiled)
    rollout = lambda eta: Sampler(STEPS, GUIDANCE, DDIM(eta=eta))
    common = dict(policy=policy, reward=Brightness(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-5))
    if method == "ddpo":
        algorithm = DDPO(rollout=rollout(1.0), samples_per_prompt=n // len(PROMPTS), minibatch=n, clip_range=1e-3, **common)
    else:
        algorithm = DRaFT(rollout=rollout(0.0), K=KEPT, **common)
    prompts = PROMPTS if method == "ddpo" else PROMPTS * (n // len(PROMPTS))
    batch = {"prompt": prompts, "index": list(range(len(prompts)))}
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    clip = {} if method == "ddpo" else {"gradient_clip_val": 1.0}
    with tempfile.TemporaryDirectory() as run:
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[clock], default_root_dir=run, **quiet, **clip)
        trainer.fit(algorithm, DataLoader([batch] * epochs, batch_size=None))
    report(times, rewards, n, clock.base)


def side(python: str, *words: str, frugal: bool) -> dict:
    env = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": f"{words[2]}/compiled"}
    env |= {"MALLOC_MMAP_THRESHOLD_": "65536"} if frugal else {}
    found = subprocess.run([python, __file__, "--side", *words], env=env, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the python of an environment with trl 0.11.4")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"make {PAGE.relative_to(ROOT)} of it")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)  # who, method, folder, epochs
    args = parser.parse_args()
    if args.side:
        who, method, folder, epochs = args.side
        return theirs(method, folder, int(epochs)) if who == "theirs" else ours(method, folder, int(epochs), who == "compiled")
    lines = ["| method | side | images per second | ratio | peak MB | ratio | reward, first epoch | compiling, s |", "|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for_both(model := Path(folder) / "model")
        for method in SAMPLES:
            pythons = {"theirs": args.peer, "ours": sys.executable, "compiled": sys.executable}
            call = lambda who, epochs, frugal=False: side(pythons[who], who, method, str(model), str(epochs), frugal=frugal)
            turns = [{who: call(who, args.epochs) for who in pythons} for _ in range(args.turns)]
            for who, r in (found := turns[0]).items():
                r["images_per_s"] = max(turn[who]["images_per_s"] for turn in turns)
                r["peak_mb"] = call(who, 2, frugal=True)["peak_mb"] if who != "compiled" else None
            peer = found["theirs"]
            for who, r in found.items():
                ratio = lambda key: f"{r[key]:.1f} | {r[key] / peer[key]:.2f}" if r[key] else "- | -"
                wait = f"{r['first_s']:.0f}" if who == "compiled" else ""
                lines.append(f"| {method} | {who} | {ratio('images_per_s')} | {ratio('peak_mb')} | {r['reward'][0]:.4f} | {wait} |")
                print(lines[-1], flush=True)
    machine = f"{len(os.sched_getaffinity(0))} core(s), {torch.get_num_threads()} thread(s), {platform.machine()}"
    text = f"{HEAD}\n\nWritten by `python tests/benchmarks/against_trl.py --peer ... --write`; {machine}.\n{__doc__.split('[--write]')[1]}\n" + "\n".join(lines) + "\n"
    if args.write:
        PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
