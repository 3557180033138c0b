"""Social Reward's triplet loss: a prompt is nearer to the image that was taken up than to the one that was not."""

from torch import Tensor

from lit_align.algorithms.reward_modeling.image_rewards import ImageRewards


class TripletPreference(ImageRewards):
    """max(0, |c - x^w|^2 - |c - x^l|^2 + margin) of features of unit length (Isajanyan et al. 2024, arXiv 2402.09872).
    As |c - x|^2 = 2 - 2 cos(c, x), it is max(0, margin - 2 (r(c, x^w) - r(c, x^l))) of a reward that is their cosine.

    Args:
        margin: of the squared distances.
        reward: one that is a cosine: SocialReward, HPSv1, HPSv2.
        freeze, policy: see ImageRewards.
    """

    models_ties = False

    def __init__(self, margin: float = 0.3, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin

    def loss(self, batch: dict, stage: str) -> Tensor:
        win, lose = self.win_and_lose(batch)
        self.log_accuracy(win - lose, stage)
        return ((self.margin - 2 * (win - lose)).relu() * self.weights(batch, win)).mean()
