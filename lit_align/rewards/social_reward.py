"""Social Reward: which images the users of an editing platform took up in their own."""

from lit_align.rewards.clip import CLIPReward, load_open_clip


class SocialReward(CLIPReward):
    """Cosine of the features of a CLIP ViT-L/14 whose last layers were trained by a triplet loss on images that were
    remixed and images that were not (Isajanyan et al. 2024, arXiv 2402.09872).

    The official repository trains it and publishes no weights: its script writes the file that this class reads.

    Args:
        checkpoint: a file of tensors under the names of OpenAI's CLIP; null for the weights of `pretrained`.
        pretrained: hub id or folder of a transformers CLIPModel: its configuration and tokenizer.
    """

    name = "social_reward"
    artefact = "none is published; the file that github.com/Picsart-AI-Research/Social-Reward trains"
    licence = "none stated"
    scale = "cosine, its range is not published"

    def __init__(self, checkpoint: str | None, pretrained: str = "openai/clip-vit-large-patch14"):
        super().__init__(*load_open_clip(checkpoint, pretrained))
