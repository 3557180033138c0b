"""A learnt reward of Shapes images: a differentiable proxy of annotators' preferences, which a policy can exploit."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import fetch
from lit_align.rewards.reward import Reward
from lit_align.shapes.scenes import COLORS, NUMBERS, RADII, RELATIONS, SHAPES, SIZE

CONTROL = ("good", "bad")  # control words before a caption (SRPO): ask for an image that fits it, or that does not
PLURALS = tuple(f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES)
WORDS = " ".join(("a and", *RADII, *COLORS, *SHAPES, *PLURALS, *NUMBERS, *RELATIONS, *CONTROL)).split()
VOCABULARY = {word: i + 1 for i, word in enumerate(dict.fromkeys(WORDS))}  # 0 is padding
LENGTH = 12  # words; the longest caption with a control word has 11


def tokens(prompts: list[str]) -> Tensor:
    """Word numbers (B, LENGTH) of captions, 0 for padding. Raises ValueError for an unknown word or too many words."""
    rows = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
    for row, prompt in zip(rows, prompts):
        words = re.findall(r"\w+", prompt.lower())
        if unknown := [w for w in words if w not in VOCABULARY]:
            raise ValueError(f"ShapesReward knows the words of Shapes captions; {unknown[0]!r} of {prompt!r} is none.")
        if not 0 < len(words) <= LENGTH:
            raise ValueError(f"ShapesReward reads 1 to {LENGTH} words; {prompt!r} has {len(words)}.")
        row[: len(words)] = torch.tensor([VOCABULARY[w] for w in words])
    return rows


class ShapesReward(Reward):
    """How well an image fits its caption in the eyes of simulated annotators (B,): the caption's words attend to the
    8 x 8 cells of a small convolutional network. `BradleyTerry` trains it. It does not use the judge, and it errs.

    A score is (raw - mean) / std. In a shipped checkpoint these are the mean and the standard deviation over the base
    model's samples: 0 is an average sample, 1 is one standard deviation better. Images are resized to 64 pixels.

    Args:
        checkpoint: a .safetensors file that `BradleyTerry` or `python -m lit_align.shapes.make.calibrate` wrote; None
            for random weights.
        width: number of channels of cells and words; a checkpoint sets its own.
        depth: number of layers; a checkpoint sets its own.
        name: the reward's name in logs.
    """

    differentiable = True
    artefact = "`checkpoints/shapes-reward`, or what `BradleyTerry` trains"
    licence = "Apache-2.0"
    scale = "standard deviations from the base model's mean"
    blind_to = "what its training pairs did not show; it errs, and a policy can exploit that"

    def __init__(self, checkpoint: str | None = None, width: int = 64, depth: int = 2, name: str = "proxy"):
        super().__init__()
        self.name, state = name, {}
        if checkpoint:
            from safetensors.torch import load_file

            state = load_file(fetch(checkpoint))
            width = state["head.weight"].shape[1]
            depth = len({key.split(".")[1] for key in state if key.startswith("layers.")})
        norm = lambda channels: (nn.GroupNorm(8, channels), nn.SiLU())
        self.cells = nn.Sequential(
            *(nn.Conv2d(3, 48, 6, 4, 1), *norm(48)),
            *(nn.Conv2d(48, width, 3, 2, 1), *norm(width)),
            *(nn.Conv2d(width, width, 3, 1, 1), *norm(width)),
        )
        self.cell_place = nn.Parameter(0.02 * torch.randn((SIZE // 8) ** 2, width))
        self.word = nn.Embedding(len(VOCABULARY) + 1, width, padding_idx=0)
        self.word_place = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        layer = {"dim_feedforward": 2 * width, "dropout": 0.0, "activation": "gelu", "batch_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, 4, norm_first=True, **layer) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))
        if state:
            self.load_state_dict({k: v.float() for k, v in state.items()})

    def features(self, images: Tensor) -> Tensor:
        """Image features (B, 64, D), one for each cell."""
        images = images.float()
        if images.shape[-1] != SIZE:
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.cells(2 * images - 1).flatten(2).transpose(1, 2)

    def embed(self, images: Tensor) -> Tensor:
        return self.features(images).mean(1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        cells, ids = self.features(images) + self.cell_place, tokens(prompts).to(images.device)
        words, padding = self.word(ids) + self.word_place, ids == 0  # (B, L, D)
        for layer in self.layers:
            words = layer(words, cells, tgt_key_padding_mask=padding)
        pooled = self.norm(words).masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True)
        return (self.head(pooled).squeeze(1) - self.mean) / self.std
