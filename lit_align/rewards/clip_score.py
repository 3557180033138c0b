"""CLIPScore: how well an image fits its prompt, to a CLIP that no preference has trained."""

from lit_align.rewards.clip import CLIPReward, load_clip


class CLIPScore(CLIPReward):
    """100 x cosine of CLIP's image and text features (Radford et al. 2021, arXiv 2103.00020).

    It is torchmetrics' CLIPScore, which floors the mean over images at 0. The paper of the name (Hessel et al. 2021,
    arXiv 2104.08718) has 2.5 x max(cosine, 0) on CLIP ViT-B/32 and "A photo depicts " before the prompt.

    Args:
        pretrained: hub id or folder of a transformers CLIPModel with its tokenizer.
        name: in logs.
    """

    artefact = "`openai/clip-vit-large-patch14`"
    licence = "MIT for the code; of the weights not known"
    scale = "100 x cosine, about 15 to 40"

    def __init__(self, pretrained: str = "openai/clip-vit-large-patch14", name: str = "clip_score"):
        super().__init__(*load_clip(pretrained))
        self.name = name

    @property
    def factor(self) -> float:
        return 100.0
