"""CycleReward: which image, described and compared with its prompt, or which description, drawn again, came back."""

from typing import Literal

from torch import Tensor, nn

from lit_align.rewards.blip import BLIPReward


def gelu_head(width: int) -> nn.Sequential:
    """CycleReward's MLP: features (B, width) -> (B, 1)."""
    widths, layers = (width, 1024, 128, 64, 16, 1), []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class CycleReward(BLIPReward):
    """CycleReward (Bahng et al. 2025, arXiv 2506.02095): ImageReward's model with GELU in its MLP and 128 tokens,
    trained on comparisons by cycle consistency, without human labels.

    Args:
        pretrained: folder with CycleReward-<variant>.pth and med_config.json, from the releases of
            github.com/hjbahng/cyclereward.
        variant: trained on comparisons of images (T2I), of texts (I2T), or of both (Combo, the authors' choice).
        tokenizer: hub id or folder of BERT's tokenizer.
    """

    name, text_limit = "cycle_reward", 128
    artefact = "`CycleReward-Combo.pth` and `med_config.json`, releases of github.com/hjbahng/cyclereward"
    licence = "MIT"
    scale = "the model's own, its range is not published"
    blind_to = "what lies outside the central square, and detail, as it has 224 pixels; beauty"

    def __init__(
        self,
        pretrained: str,
        variant: Literal["Combo", "I2T", "T2I"] = "Combo",
        tokenizer: str = "google-bert/bert-base-uncased",
    ):
        super().__init__(pretrained, tokenizer, f"CycleReward-{variant}.pth", gelu_head)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.raw(images, prompts)
