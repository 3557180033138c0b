"""A small value network of noisy latents."""

import os

import torch
import torch.nn.functional as F
from torch import nn

from lit_align.paths import fetch
from lit_align.rewards.step_aware import sinusoids
from lit_align.rewards.step_reward import StepReward


class LatentValue(StepReward):
    """SVDD-MC's value v(x_t, t, c), the expected reward of a sample that passes x_t (arXiv 2408.08252): residual
    convolutions on the latents with the time's embedding, as in the released code (whose batch norms are group norms
    here), and the caption's mean embedding, which the released one does not see.

    Its sizes are those of the first latents and captions that it sees, or of the checkpoint.

    Args:
        width: of the first block; the others have 2 and 4 times as many.
        checkpoint: written by `save`: a file, or `<owner>/<name>/<file>` on the hub.
    """

    needs_x0 = False
    artefact = "none; what `ValueRegression` trains"
    scale = "that of the reward it was trained on"
    blind_to = "what its samples did not show"

    def __init__(self, width: int = 64, checkpoint: str | None = None):
        from safetensors.torch import load_file

        super().__init__()
        sizes = (width, 2 * width, 4 * width)
        self.time, self.text = nn.Linear(width, width), nn.LazyLinear(width)
        self.first = nn.ModuleList(nn.LazyConv2d(b, 3, 1 + (k > 0), 1) for k, b in enumerate(sizes))
        self.second = nn.ModuleList(nn.Conv2d(b, b, 3, 1, 1) for b in sizes)
        self.skip = nn.ModuleList(nn.LazyConv2d(b, 1, 1 + (k > 0)) for k, b in enumerate(sizes))
        self.norm = nn.ModuleList(nn.GroupNorm(8, b) for b in sizes)
        self.head = nn.Linear(sizes[-1], 1)
        self.read: tuple[list[str], torch.Tensor] = ([], torch.empty(0))  # the last captions, embedded
        self.register_buffer("mean", torch.tensor(0.0))  # of the rewards it was trained on
        self.register_buffer("std", torch.tensor(1.0))
        if checkpoint:
            self.load_state_dict({k: v.float() for k, v in load_file(fetch(checkpoint)).items()})

    def save(self, folder: str) -> None:
        """Writes `<folder>/latent_value.safetensors`, in float16."""
        from safetensors.torch import save_file

        os.makedirs(folder, exist_ok=True)
        state = {k: v.half().contiguous() for k, v in self.state_dict().items()}
        save_file(state, os.path.join(folder, "latent_value.safetensors"))

    def forward(self, policy, x_t, x_0, t, prompts):
        unique = list(dict.fromkeys(prompts))
        if self.read[0] != unique:  # of every candidate of every step, captions are the same
            self.read = unique, policy.summary(policy.condition(unique)).detach()
        text = self.read[1][[unique.index(p) for p in prompts]]
        t = t.clamp(min=0) / policy.process.num_train_timesteps if t.dtype == torch.long else t  # in [0, 1]
        context = self.time(sinusoids(1000 * t, self.time.in_features)) + self.text(text.float())
        h = x_t.float()
        for k, (first, second, skip, norm) in enumerate(zip(self.first, self.second, self.skip, self.norm)):
            h = skip(h) + second(F.silu(norm(first(F.silu(h) if k else h))))
            h = h if k else h + context[:, :, None, None]
        return self.mean + self.std * self.head(F.silu(h).mean((2, 3))).squeeze(1)
