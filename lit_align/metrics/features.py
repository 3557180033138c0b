"""What turns images into features for metrics of image sets."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards.clip import from_open_clip
from lit_align.rewards.preprocess import crop, normalise, resize
from lit_align.rewards.reward import Reward
from lit_align.rewards.weights import build, part


class Features(nn.Module):
    """Base of the extractors: images (N, 3, H, W) in [0, 1] -> features (N, D) in float32. Frozen, in eval mode.

    `name` is a part of the metrics' names (`fid_inception`): figures of different extractors do not compare.
    """

    name: str
    artefact = ""

    @abstractmethod
    def extract(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (N, 3, H, W) in [0, 1], float32."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.extract(images.float()).float()

    def width(self) -> int:
        """D."""
        return self(torch.zeros(1, 3, 32, 32, device=next(self.parameters(), torch.zeros(1)).device)).shape[1]

    def classes(self, images: Tensor) -> Tensor:
        """Logits (N, C) of a classifier, for InceptionScore."""
        raise ValueError(f"{type(self).__name__} is no classifier: InceptionScore needs one, such as Inception.")

    def train(self, mode: bool = True):
        return super().train(False)


class CLIPFeatures(Features):
    """CLIP's projected image features. By default CMMD's (Jayasumana et al. 2024, arXiv 2401.09603, released code): the
    central square at the model's size by bicubic filtering, and unit length.

    Args:
        pretrained: hub id or folder of a transformers CLIPModel; "tiny" for random weights.
        unit: divide by the length. (clean-fid's CLIP-FID does not, with openai/clip-vit-base-patch32.)
    """

    name = "clip"
    artefact = "`openai/clip-vit-large-patch14-336`"

    def __init__(self, pretrained: str = "openai/clip-vit-large-patch14-336", unit: bool = True):
        super().__init__()
        if pretrained == "tiny":
            from lit_align.policies import tiny

            self.model = tiny.CLIPModel()[0]
        else:
            from transformers import CLIPModel

            self.model = CLIPModel.from_pretrained(find(pretrained), dtype=torch.float32)
        self.model.requires_grad_(False).eval()
        self.unit = unit

    def extract(self, images: Tensor) -> Tensor:
        pixels = normalise(square_first(images, self.model.config.vision_config.image_size))
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return F.normalize(features, dim=1) if self.unit else features


def square_first(images: Tensor, side: int) -> Tensor:
    """The central square cut out, then resized (bicubic): CMMD's order."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    return resize(images[..., top : top + shorter, left : left + shorter], (side, side)).clamp(0, 1)


class RewardFeatures(Features):
    """The features of a reward (`Reward.embed`): any reward model as an extractor.

    Args:
        reward: the reward; of one without features of its own they are 16 x 16 pixels.
    """

    def __init__(self, reward: Reward):
        super().__init__()
        self.reward = reward.requires_grad_(False).eval()
        self.name = reward.name

    def extract(self, images: Tensor) -> Tensor:
        return self.reward.embed(images)


class CSD(Features):
    """Style descriptors of unit length (Somepalli et al. 2024, arXiv 2404.01292): CLIP ViT-L/14's pooled features
    before their projection, times the published matrix of style.

    Args:
        checkpoint: the published file (OpenAI's names after `module.backbone.`, and `module.last_layer_style`), in
            PyTorch's format under `model_state_dict` or as safetensors.
        pretrained: hub id or folder of the CLIPModel whose configuration it has; "tiny" for random weights.
    """

    name = "csd"
    artefact = "`tomg-group-umd/CSD-ViT-L` (its README says that it is not the paper's)"

    def __init__(
        self,
        checkpoint: str | None = "tomg-group-umd/CSD-ViT-L/pytorch_model.bin",
        pretrained: str = "openai/clip-vit-large-patch14",
    ):
        from transformers import CLIPConfig, CLIPVisionModel

        super().__init__()
        if pretrained == "tiny":
            from lit_align.policies import tiny

            self.model = CLIPVisionModel(tiny.CLIPModel()[0].config.vision_config)
            style = torch.eye(self.model.config.hidden_size)
        else:
            state = read_csd(checkpoint)
            config = CLIPConfig.from_pretrained(find(pretrained)).vision_config
            backbone = from_open_clip({f"visual.{k}": v for k, v in part(state, "backbone.").items()})
            self.model = build(CLIPVisionModel, config, part(backbone, "vision_model."), checkpoint)
            style = state["last_layer_style"]
        self.register_buffer("style", style.float())  # (D, 768)
        self.requires_grad_(False).eval()

    def extract(self, images: Tensor) -> Tensor:
        pooled = self.model(pixel_values=normalise(crop(images, self.model.config.image_size))).pooler_output
        return F.normalize(pooled @ self.style, dim=1)


def read_csd(file: str) -> dict[str, Tensor]:
    """The tensors of CSD's file, without `module.`. ValueError if there is no style matrix."""
    from safetensors.torch import load_file

    from lit_align.paths import fetch

    path = fetch(file)
    state = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    state = {k.removeprefix("module."): v for k, v in state.get("model_state_dict", state).items()}
    if "last_layer_style" not in state:
        raise ValueError(f"{file} has no last_layer_style: it is no checkpoint of CSD.")
    return state
