"""Diffusion-DPO, our step against the same step written plainly: throughput and peak memory, as ratios in one run.

`python tests/benchmarks/dpo_step.py [--steps 8] [--device cuda]`

The model is an SDXL in small that keeps SDXL's proportions (UNet, two text encoders and VAE at about a seventh of the
widths, the published numbers of layers), random weights, LoRA rank 8, AdamW. The plain step is that of the public DPO
scripts: encode images and captions in every batch, a separate reference UNet, pipeline parts called by hand. Ours reads
the cache that `encode_once` made. Both see the same weights, images, captions and batch size. Each side runs in a
process of its own; memory is its peak less what it held after the imports.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
SIDE, BATCH = 256, 2


def small_sdxl(folder: str) -> None:
    """SDXL 1.0's layers at about a seventh of its widths."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from lit_align.shapes.make.pipelines import tokenizer

    torch.manual_seed(0)
    words = tokenizer()
    text = dict(vocab_size=len(words), max_position_embeddings=77, eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id, pad_token_id=words.pad_token_id)
    words.model_max_length = 77
    one = CLIPTextConfig(hidden_size=112, intermediate_size=448, num_hidden_layers=12, num_attention_heads=7, projection_dim=112, **text)
    two = CLIPTextConfig(hidden_size=192, intermediate_size=768, num_hidden_layers=32, num_attention_heads=8, projection_dim=192, **text)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8, block_out_channels=(48, 96, 192), norm_num_groups=16, cross_attention_dim=112 + 192,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(2, 4, 8), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=32, projection_class_embeddings_input_dim=6 * 32 + 192,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 40, 80, 80), layers_per_block=2, norm_num_groups=8, latent_channels=4, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    pipe = StableDiffusionXLPipeline(vae, CLIPTextModel(one), CLIPTextModelWithProjection(two), words, words, unet, scheduler)
    pipe.save_pretrained(folder)


def pairs(folder: str, n: int = 8) -> None:
    """n random pairs as parquet in Pick-a-Pic's schema."""
    from datasets import Dataset

    from lit_align.shapes.make.lists import jpeg
    from lit_align.shapes.make.pairs import row

    g = torch.Generator().manual_seed(0)
    image = lambda: jpeg(torch.rand(3, SIDE, SIDE, generator=g))
    rows = [row(f"a red circle left of a blue square {i}", image(), image(), 1.0, "m", i, 0) for i in range(n)]
    Dataset.from_list(rows).to_parquet(f"{folder}/pairs.parquet")


def rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(step_times: list[float], base: float, device: str) -> None:
    times = sorted(step_times[2:])
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else rss() - base
    print(json.dumps({"pairs_per_s": BATCH / times[len(times) // 2], "peak_mb": peak}))


def plain(folder: str, steps: int, device: str) -> None:
    """The step as a script writes it."""
    from datasets import load_dataset
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig

    from lit_align.data.images import decode

    base = rss()
    pipe = StableDiffusionXLPipeline.from_pretrained(folder).to(device)
    unet, vae, scheduler = pipe.unet, pipe.vae, pipe.scheduler
    reference = copy.deepcopy(unet).requires_grad_(False)
    for part in (unet, vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    params = [p for p in unet.parameters() if p.requires_grad]
    optimizer, times = torch.optim.AdamW(params, lr=1e-4), []
    table = load_dataset("parquet", data_files=f"{folder}/pairs.parquet", split="train")
    abar = scheduler.alphas_cumprod.to(device)
    for i in range(steps):
        start = time.perf_counter()
        rows = [table[(i * BATCH + j) % len(table)] for j in range(BATCH)]
        images = torch.stack([decode(r[c], SIDE, "") for c in ("jpg_0", "jpg_1") for r in rows]).to(device)
        with torch.no_grad():
            x_0 = vae.encode(images * 2 - 1).latent_dist.sample() * vae.config.scaling_factor
            text, _, pooled, _ = pipe.encode_prompt([r["caption"] for r in rows], device=device, do_classifier_free_guidance=False)
        ids = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2 * BATCH, device=device, dtype=torch.float32)
        added = {"text_embeds": pooled.repeat(2, 1), "time_ids": ids}
        t = torch.randint(1000, (BATCH,), device=device).repeat(2)
        eps = torch.randn_like(x_0[:BATCH]).repeat(2, 1, 1, 1)
        a = abar[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
        error = lambda model: (model(x_t, t, text.repeat(2, 1, 1), added_cond_kwargs=added).sample - eps).square().mean((1, 2, 3))
        policy = error(unet)
        with torch.no_grad():
            ref = error(reference)
        gap = (ref - policy)[:BATCH] - (ref - policy)[BATCH:]
        loss = -F.logsigmoid(2500 * gap).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - start)
    report(times, base, device)


def ours(folder: str, steps: int, device: str) -> None:
    """The same through Trainer.fit, cached."""
    import lightning as L

    from lit_align.algorithms.preference.dpo import DiffusionDPO
    from lit_align.data.pick_a_pic import PickAPic
    from lit_align.policies.adapters import LoRA
    from lit_align.policies.sdxl import StableDiffusionXL

    class Clock(L.Callback):
        times = []

        def on_train_batch_end(self, *args):
            self.times.append(time.perf_counter())

    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    data = lambda: PickAPic(f"{folder}/pairs.parquet", resolution=SIDE, batch_size=BATCH, encode_once=True)
    base = rss()
    policy = StableDiffusionXL(folder, LoRA(rank=8), resolution=SIDE)
    method = DiffusionDPO(policy=policy, beta=2500, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4))
    clock = Clock()
    trainer = L.Trainer(accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=steps + 1, gradient_clip_val=1.0, callbacks=[clock], default_root_dir=folder, **quiet)
    trainer.fit(method, data())
    report([b - a for a, b in zip(clock.times, clock.times[1:])], base, device)


def compiled(folder: str, steps: int, device: str) -> None:
    """One forward and backward of the denoiser of shapes-sd, compiled against eager, in alternation."""
    from lit_align.policies.stable_diffusion import StableDiffusion

    policies = [StableDiffusion("checkpoints/shapes-sd", compile=c).to(device) for c in (False, True)]
    x, t = torch.randn(32, *policies[0].latent_shape, device=device), torch.randint(1000, (32,), device=device)
    cond = {k: v.detach() for k, v in policies[0].condition(["a red circle"] * 32).items()}
    times = ([], [])
    for _ in range(max(20, steps)):
        for policy, spent in zip(policies, times):
            start = time.perf_counter()
            policy.denoise(x, t, cond).square().mean().backward()
            policy.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - start)
    middle = lambda spent: sorted(spent[3:])[len(spent[3:]) // 2]
    print(json.dumps({"speed": middle(times[0]) / middle(times[1]), "first_s": times[1][0]}))


def overhead(folder: str, steps: int, device: str) -> None:
    """Trainer.fit on one batch against a bare loop of the same math, in alternation."""
    import lightning as L

    from lit_align.algorithms.preference.dpo import DiffusionDPO
    from lit_align.policies.adapters import LoRA
    from lit_align.policies.sdxl import StableDiffusionXL

    steps = max(30, steps)
    policy = StableDiffusionXL(folder, LoRA(rank=8), resolution=SIDE).to(device)
    batch = {"prompt": ["a"] * BATCH, "index": [0] * BATCH, "cond": {k: v.detach() for k, v in policy.condition(["a"] * BATCH).items()}}
    batch |= {f"{k}_latents": torch.randn(BATCH, *policy.latent_shape, device=device) for k in ("win", "lose")}
    method = DiffusionDPO(policy=policy, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4))
    params = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4)

    def bare():
        x_0 = torch.cat([batch["win_latents"], batch["lose_latents"]])
        cond = {k: torch.cat([v, v]) for k, v in batch["cond"].items()}
        t, eps = torch.randint(1000, (BATCH,), device=device).repeat(2), torch.randn_like(x_0[:BATCH]).repeat(2, 1, 1, 1)
        x_t = policy.process.add_noise(x_0, eps, t)
        error = lambda: (policy.predict(x_t, t, cond) - eps).square().mean((1, 2, 3))
        e = error()
        with torch.no_grad():
            policy.denoiser.disable_adapters()
            r = error()
            policy.denoiser.enable_adapters()
        gap = (r - e)[:BATCH] - (r - e)[BATCH:]
        loss = -F.logsigmoid(2500 * gap).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        loss.item()

    bare_times = []

    class Alternate(L.Callback):
        times, last = [], None

        def on_train_batch_start(self, *args):
            self.last = self.last or time.perf_counter()

        def on_train_batch_end(self, trainer, *args):
            self.times.append(time.perf_counter() - self.last)
            start = time.perf_counter()
            bare()
            bare_times.append(time.perf_counter() - start)
            self.last = time.perf_counter()

    clock = Alternate()
    with tempfile.TemporaryDirectory() as out:
        trainer = L.Trainer(accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=steps, gradient_clip_val=1.0, callbacks=[clock],
                            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=out)  # fmt: skip
        trainer.fit(method, torch.utils.data.DataLoader([batch] * steps, batch_size=None))
    ratios = sorted(a / b for a, b in zip(clock.times[2:], bare_times[2:]))
    print(json.dumps({"overhead": ratios[len(ratios) // 2] - 1}))


def child(what: str, folder: str, steps: int, device: str) -> dict:
    command = [sys.executable, __file__, what, "--folder", folder, "--steps", str(steps), "--device", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"HF_DATASETS_CACHE": f"{folder}/cache"})
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("plain", "ours", "compiled", "overhead"))
    parser.add_argument("--folder")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    rest = (args.folder, args.steps, args.device)
    if args.what:
        return {"plain": plain, "ours": ours, "compiled": compiled, "overhead": overhead}[args.what](*rest)
    with tempfile.TemporaryDirectory() as folder:
        small_sdxl(folder)
        pairs(folder)
        rest = (folder, args.steps, args.device)
        child("ours", *rest)  # fills the cache of encode_once
        a, b = child("plain", *rest), child("ours", *rest)
        print(f"plain      {a['pairs_per_s']:.3f} pairs/s, peak {a['peak_mb']:.0f} MB")
        print(f"ours       {b['pairs_per_s']:.3f} pairs/s, peak {b['peak_mb']:.0f} MB")
        print(f"throughput {b['pairs_per_s'] / a['pairs_per_s']:.2f}x, memory {b['peak_mb'] / a['peak_mb']:.2f}x of plain", flush=True)
        print(f"framework overhead against a bare loop {100 * child('overhead', *rest)['overhead']:.1f} %", flush=True)
        c = child("compiled", *rest)
        print(f"compiled   {c['speed']:.2f}x of eager, first step {c['first_s']:.0f} s (denoiser of shapes-sd, forward and backward)")


if __name__ == "__main__":
    main()
