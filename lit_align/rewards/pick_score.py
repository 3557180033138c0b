"""PickScore: what the users of a web application preferred."""

from torch import Tensor

from lit_align.rewards.clip import CLIPReward, load_clip


class PickScore(CLIPReward):
    """logit_scale x cosine of the image and text features of a CLIP ViT-H/14 that was trained on Pick-a-Pic (Kirstain
    et al. 2023, arXiv 2305.01569, section 4). The softmax over images of one prompt is the probability of each to win.

    Flow-GRPO's repository divides it by 26, others by 100.

    Args:
        pretrained: hub id or folder of a transformers CLIPModel.
        tokenizer: hub id or folder of its tokenizer.
    """

    name = "pickscore"
    artefact = "`yuvalkirstain/PickScore_v1`"
    licence = "MIT for the code; of the weights not known"
    scale = "about 17 to 24; a difference of 0.5 is large"

    def __init__(
        self,
        pretrained: str = "yuvalkirstain/PickScore_v1",
        tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ):
        super().__init__(*load_clip(pretrained, tokenizer))

    @property
    def factor(self) -> Tensor:
        return self.model.logit_scale.exp()
