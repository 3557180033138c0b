"""Every flow family under FSDP2, for test_families_train: `python -m sharded_families FOLDER` in each rank's environment.

Each rank takes the same step with a whole and with a sharded policy; rank 0 leaves {family: the largest differences}.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from image_families import SMALL_IMAGES
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from video_families import SMALL_EDITS, SMALL_VIDEOS

from lit_align.policies.adapters import LoRA
from lit_align.policies.flux import Flux
from lit_align.policies.flux2 import Flux2, Flux2Klein
from lit_align.policies.qwen_image import QwenImage
from lit_align.policies.wan import Wan
from lit_align.policies.z_image import ZImage

SMALL = {  # of text and images
    Flux: {"max_sequence_length": 16},
    Flux2: {"max_sequence_length": 16},
    Flux2Klein: {"max_sequence_length": 16},
    QwenImage: {"resolution": 32},
    Wan: {"max_sequence_length": 16, "num_frames": 5},
    ZImage: {"max_sequence_length": 64},
    **SMALL_IMAGES,
}


SMALL |= SMALL_VIDEOS | SMALL_EDITS


def columns(policy, n=2):
    """The further columns that a policy reads: source images."""
    images = torch.rand(n, 3, policy.height, policy.width, generator=torch.Generator().manual_seed(3))
    return {name: list(images) for name in policy.reads}


def step(policy, folder: Path) -> tuple[torch.Tensor, dict]:
    """The prediction before one SGD step, and the LoRA weights that are saved after it."""
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=10.0)
    t = torch.tensor([0.3, 0.8] if policy.process.prediction == "flow" else [300, 800])
    pred = policy.denoise(x, t, policy.condition(["a", "two b"], columns(policy)), 3.0)
    pred.square().mean().backward()
    optimizer.step()
    policy.save(str(folder))
    dist.barrier()
    (file,) = folder.glob("*.safetensors")
    return pred.detach(), load_file(file)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh, seen = dist.device_mesh.init_device_mesh("cpu", (2,)), {}
    for family, small in SMALL.items():
        results = []
        for sharded in (False, True):
            torch.manual_seed(2)
            policy = family("tiny", LoRA(rank=2), **small)
            if sharded:
                policy.shard(mesh)
                assert all(isinstance(block, FSDPModule) for block in policy.blocks(policy.denoiser))
            results.append(step(policy, folder / f"{family.__name__}-{sharded}"))
        (a, whole), (b, gathered) = results
        moved = max(v.abs().max().item() for k, v in whole.items() if ".lora_B." in k or ".lora.up." in k)  # B starts at zero
        assert whole.keys() == gathered.keys()
        apart = max((whole[k] - gathered[k]).abs().max().item() for k in whole)
        seen[family.__name__] = {"prediction": (a - b).abs().max().item(), "weights": apart, "moved": moved}
    if dist.get_rank() == 0:
        torch.save(seen, folder / "seen.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
