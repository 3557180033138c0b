"""RAFT: supervised fine-tuning on the best of each prompt's samples."""

import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.reward_weighted.reward_weighted import WeightedLikelihood


class RAFT(WeightedLikelihood):
    """Dong et al. 2023, arXiv 2304.06767: sample K images per prompt, keep the one with the highest reward, and apply
    the denoising loss to it (rejection-sampling fine-tuning: its weight is K, the others' 0)."""

    def weights(self, reward: Tensor) -> Tensor:
        k = reward.shape[1]
        return k * F.one_hot(reward.argmax(1), k).to(reward)
