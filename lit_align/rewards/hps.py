"""HPS, the human preference score: CLIPs trained on choices among images of one prompt, in three versions."""

from torch import Tensor

from lit_align.rewards.clip import CLIPReward, load_open_clip
from lit_align.rewards.preprocess import letterbox, normalise


class HPSv1(CLIPReward):
    """Cosine of the features of a CLIP ViT-L/14 trained on choices of a chat server's users (Wu et al. 2023, arXiv
    2303.14420, section 3.3).

    Args:
        checkpoint: the released `hpc.pth`, a file; null for the weights of `pretrained`.
        pretrained: hub id or folder of a transformers CLIPModel: its configuration and tokenizer.
    """

    name = "hps_v1"
    artefact = "`hpc.pth`, linked by github.com/tgxs002/align_sd"
    licence = "Apache-2.0"
    scale = "cosine, about 0.18 to 0.24"

    def __init__(self, checkpoint: str | None, pretrained: str = "openai/clip-vit-large-patch14"):
        super().__init__(*load_open_clip(checkpoint, pretrained))


class HPSv2(CLIPReward):
    """Cosine of the features of a CLIP ViT-H/14 trained on HPDv2 (Wu et al. 2023, arXiv 2306.09341), which sees the
    whole image, on a black square. The published tables have 100 x cosine.

    Scores of v2 and v2.1 do not compare, nor do those of different prompts.

    Args:
        checkpoint: a file of the released format, local or `<owner>/<name>/<file>` on the hub; null for the weights of
            `pretrained`.
        pretrained: hub id or folder of a transformers CLIPModel: its configuration and tokenizer.
    """

    name = "hps_v2"
    artefact = "`xswu/HPSv2`, `HPS_v2_compressed.pt`"
    licence = "Apache-2.0"
    scale = "cosine, about 0.23 to 0.29"
    blind_to = "counts, positions, which object has which attribute; detail, as the whole image has 224 pixels"

    def __init__(
        self,
        checkpoint: str | None = "xswu/HPSv2/HPS_v2_compressed.pt",
        pretrained: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ):
        super().__init__(*load_open_clip(checkpoint, pretrained))

    def pixels(self, images: Tensor) -> Tensor:
        return normalise(letterbox(images, self.model.config.vision_config.image_size))


class HPSv21(HPSv2):
    """HPSv2 in its version 2.1, trained on better data (github.com/tgxs002/HPSv2).

    Args:
        checkpoint, pretrained: see HPSv2.
    """

    name = "hps_v21"
    artefact = "`xswu/HPSv2`, `HPS_v2.1_compressed.pt`"
    scale = "cosine, about 0.13 to 0.34"

    def __init__(
        self,
        checkpoint: str | None = "xswu/HPSv2/HPS_v2.1_compressed.pt",
        pretrained: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ):
        super().__init__(checkpoint, pretrained)
