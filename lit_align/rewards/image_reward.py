"""ImageReward, and VP-Score in its architecture: BLIP trained on rankings of images of one prompt."""

from torch import Tensor

from lit_align.rewards.aesthetic import mlp_head
from lit_align.rewards.blip import BLIPReward


class ImageReward(BLIPReward):
    """ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977, section 2), trained on rankings by experts.

    The score is standardised by the mean and the standard deviation of the official code.

    Args:
        pretrained: hub id or folder with ImageReward.pt and med_config.json.
        tokenizer: hub id or folder of BERT's tokenizer.
        blip: to train from BLIP: a file of its weights, see BLIPReward.
    """

    name, text_limit = "image_reward", 35
    artefact = "`THUDM/ImageReward`, `ImageReward.pt` and `med_config.json`"
    licence = "Apache-2.0"
    scale = "standardised: about -2.3 to 2"
    mean, std = 0.16717362830052426, 1.0333394966054072

    def __init__(
        self,
        pretrained: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        blip: str | None = None,
    ):
        super().__init__(pretrained, tokenizer, "ImageReward.pt", mlp_head, blip)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (self.raw(images, prompts) - self.mean) / self.std


class VPScore(BLIPReward):
    """VP-Score (Wu et al. 2024, arXiv 2404.15100): ImageReward's model, trained on GPT-4V's ratings of four aspects.

    No weights are published: train them by ImageReward's recipe, image_reward.yaml, with this class as its reward.

    Args:
        pretrained: hub id or folder with VPScore.pt, in the format of ImageReward.pt, and med_config.json.
        tokenizer: hub id or folder of BERT's tokenizer.
        blip: to train from BLIP: a file of its weights, see BLIPReward.
    """

    name, text_limit = "vp_score", 35
    artefact = "none is published; `VPScore.pt` in the format of `ImageReward.pt`"
    licence = "none stated"
    scale = "the model's own, not standardised"

    def __init__(self, pretrained: str, tokenizer: str = "google-bert/bert-base-uncased", blip: str | None = None):
        super().__init__(pretrained, tokenizer, "VPScore.pt", mlp_head, blip)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.raw(images, prompts)
