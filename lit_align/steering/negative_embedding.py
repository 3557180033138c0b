"""A learnt embedding in place of the empty prompt, which guidance leads away from."""

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.paths import fetch


def read_embedding(file: str) -> dict[str, Tensor]:
    """`text` (1, L, D), and in some files `pooled` (1, D): of a .safetensors file with these names, or of a file of
    ReNeg's release, a tensor (1, L, D)."""
    path = fetch(file)
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    found = torch.load(path, "cpu", weights_only=True)
    return found if isinstance(found, dict) else {"text": found.view(1, *found.shape[-2:])}


class NegativeEmbedding(Hook):
    """ReNeg (Li et al., CVPR 2025, arXiv 2412.19637): guidance leads away from an embedding that was learnt by a
    reward. One embedding serves all models with its text encoder. `ReNeg` learns one for each sample.

    Args:
        file: .bin as released or .safetensors; local, or `<owner>/<name>/<file>` on the hub.
    """

    def __init__(self, file: str):
        self.embedding = read_embedding(file)

    def check(self, policy, sampler):
        if sampler.guidance_scale == 1:
            raise ValueError(
                "NegativeEmbedding is what guidance leads away from; with guidance_scale 1 it does nothing."
            )
        for name, value in policy.null(1).items():
            ours = self.embedding.get(name, value)
            if ours.shape != value.shape:
                raise ValueError(
                    f"NegativeEmbedding: {name} has shape {tuple(ours.shape)} and this policy's {tuple(value.shape)}: "
                    "take an embedding of its text encoder."
                )
        if unknown := self.embedding.keys() - policy.null(1).keys():
            raise ValueError(f"NegativeEmbedding: this policy has no {', '.join(unknown)} to replace.")

    def predict(self, policy, state, sampler):
        n = len(state.x)
        learnt = {k: v.to(state.x.device).expand(n, *v.shape[1:]) for k, v in self.embedding.items()}
        state.null = policy.null(n) | learnt
        super().predict(policy, state, sampler)
