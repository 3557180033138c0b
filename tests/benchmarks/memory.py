"""Peak memory of a reward-gradient step for different numbers of sampling steps, with and without gradient.

`python tests/benchmarks/memory.py [--batch 16] [--write]`

The step: DRaFT-K on shapes-sd with LoRA, guidance and the learnt reward, forward and backward. The table shows its peak
memory in MB over what was allocated before. K is the number of sampling steps with gradient, T the number of all steps.
"K = T, stored" keeps the activations instead of recomputing them. A glibc setting, with which the script restarts
itself, returns freed blocks to the system at once, so that the peak is that of live tensors. Linux only.
"""

import argparse
import os
import platform
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
PAGE, T, K = ROOT / "docs/memory.md", (5, 10, 20, 40), (1, 5)


def status(key: str) -> float:
    """MB of VmRSS (now) or VmHWM (the peak since `peak` was last called)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1024


def peak(step) -> float:
    """Peak memory of a call, in MB over what was allocated before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def table(batch: int) -> str:
    from lit_align.diffusion import sampler
    from lit_align.diffusion.sampler import Sampler, last_k
    from lit_align.policies.adapters import LoRA
    from lit_align.policies.stable_diffusion import StableDiffusion
    from lit_align.shapes.reward import ShapesReward

    policy, prompts = StableDiffusion(str(ROOT / "checkpoints/shapes-sd"), LoRA()), ["a red circle"] * batch
    reward = ShapesReward(str(ROOT / "checkpoints/shapes-reward/reward.safetensors")).requires_grad_(False)

    def step(t: int, k: int) -> None:
        x_0 = Sampler(t, 3.0)(policy, prompts, grad=last_k(t, k)).x
        reward(policy.decode(x_0), prompts).mean().backward()
        policy.zero_grad()

    stored = lambda function, *args, use_reentrant: function(*args)
    step(2, 2)  # one-time allocations
    heads = ["T", *(f"K = {k}" for k in K), "K = T", "K = T, stored"]
    lines = [heads, ["---"] * len(heads)]
    for t in T:
        row = [peak(lambda: step(t, k)) for k in (*K, t)]
        with patch.object(sampler, "checkpoint", stored):
            row.append(peak(lambda: step(t, t)))
        lines.append([t, *(f"{mb:.0f}" for mb in row)])
        print(*lines[-1], flush=True)
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--write", action="store_true", help=f"make {PAGE.relative_to(ROOT)} of it")
    args = parser.parse_args()
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") != "65536":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
    rows = table(args.batch)
    what = __doc__.split("[--write]`")[1]
    text = f"# Memory of a reward-gradient step\n\nWritten by `python tests/benchmarks/memory.py --write`, {args.batch} images; {platform.machine()}, {platform.system()}.\n{what}\n{rows}"
    if args.write:
        PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
