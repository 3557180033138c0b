"""The aesthetic score: an image's rating, whatever its prompt."""

import os

import torch
from torch import Tensor, nn

from lit_align.rewards.clip import CLIPReward, load_clip
from lit_align.rewards.weights import fill, part, read


def mlp_head(width: int) -> nn.Sequential:
    """The five linear layers, without activations, that the aesthetic predictor and ImageReward end in: features (B,
    width) -> (B, 1). The names of its tensors are the published ones."""
    return nn.Sequential(
        *(nn.Linear(width, 1024), nn.Dropout(0.2)),
        *(nn.Linear(1024, 128), nn.Dropout(0.2)),
        *(nn.Linear(128, 64), nn.Dropout(0.1)),
        *(nn.Linear(64, 16), nn.Linear(16, 1)),
    )


class AestheticScore(CLIPReward):
    """LAION's improved aesthetic predictor (github.com/christophschuhmann/improved-aesthetic-predictor), as DDPO and
    DRaFT use it: linear layers on the unit image features of CLIP ViT-L/14, fitted to ratings from 1 to 10. As it is
    linear, it is easy to exploit: generated images reach 8 and more.

    Args:
        checkpoint: `sac+logos+ava1-l14-linearMSE.pth` or a copy of it, local or `<owner>/<name>/<file>` on the hub;
            null for random weights.
        pretrained: hub id or folder of a transformers CLIPModel with its tokenizer.
    """

    name = "aesthetic"
    artefact = "`sac+logos+ava1-l14-linearMSE.pth`, on the hub `trl-lib/ddpo-aesthetic-predictor`"
    licence = "Apache-2.0"
    scale = "rating 1 to 10; generated images 4.5 to 7"
    text_limit = None
    blind_to = "the prompt; what lies outside the central square"

    def __init__(
        self,
        checkpoint: str | None = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        pretrained: str = "openai/clip-vit-large-patch14",
    ):
        super().__init__(*load_clip(pretrained))
        self.model.text_model = None  # unused
        self.model.requires_grad_(False)  # the linear layers alone are ever trained
        self.mlp = mlp_head(self.model.config.projection_dim)
        if checkpoint:
            fill(self.mlp, part(read(checkpoint), "layers."), checkpoint)
        self.eval()

    def save(self, folder: str) -> dict:
        """Writes the linear layers under their published names."""
        os.makedirs(folder, exist_ok=True)
        file = os.path.join(folder, "aesthetic.pth")
        torch.save({f"layers.{name}": value for name, value in self.mlp.state_dict().items()}, file)
        return {"checkpoint": file}

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.mlp(self.embed(images)).squeeze(1)
