"""Bradley-Terry: an image reward, trained on which of two images was preferred."""

from torch import Tensor

from lit_align.algorithms.reward_modeling.image_rewards import ImageRewards


class BradleyTerry(ImageRewards):
    """-log sigmoid(r(c, x^w) - r(c, x^l)) (Bradley & Terry 1952; ImageReward, arXiv 2304.05977, section 2.2). With
    `label` in the batch it is PickScore's cross-entropy (arXiv 2305.01569, section 4), in which a tie counts half for
    each; HPS v2 (arXiv 2306.09341) has the same loss. Pairs do not determine a caption's level of scores; `center` adds
    center (r(c, x^w) + r(c, x^l))^2, which puts zero half way between the two (Eisenstein et al. 2023, arXiv
    2312.09244), so scores of different captions compare.

    Args:
        scale: what margins are multiplied by. A reward that is a plain cosine needs CLIP's logit scale, 100.
        center: coefficient of the centring term; 0: none.
        reward, freeze, policy: see ImageRewards.
    """

    def __init__(self, scale: float = 1.0, center: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.scale, self.center = scale, center

    def loss(self, batch: dict, stage: str) -> Tensor:
        win, lose = self.win_and_lose(batch)
        return self.ranking(self.scale * (win - lose), batch, stage) + self.center * (win + lose).square().mean()
