"""Bradley-Terry: an image reward, trained on which of two images was preferred."""

import os

import torch
from torch import Tensor

from lit_align.algorithms.online import tile_rows
from lit_align.algorithms.reward_modeling.reward_modeling import RewardModeling
from lit_align.policies.adapters import Frozen
from lit_align.policies.policy import Policy
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.rewards.reward import Reward, components


class BradleyTerry(RewardModeling):
    """-log sigmoid(r(c, x^w) - r(c, x^l)) (Bradley & Terry 1952; ImageReward, arXiv 2304.05977, section 2.2). With
    `label` in the batch it is PickScore's cross-entropy (arXiv 2305.01569, section 4), in which a tie counts half for
    each. Pairs do not determine a caption's level of scores; `center` adds center (r(c, x^w) + r(c, x^l))^2, which puts
    zero half way between the two (Eisenstein et al. 2023, arXiv 2312.09244), so scores of different captions compare.

    The reward sees images, not latents, so the policy is unused. Logs `train/accuracy` and, on validation pairs,
    `val/accuracy`. Writes the reward's tensors to `<run>/reward/reward.safetensors`.

    Args:
        reward: the reward model to train.
        center: coefficient of the centring term; 0: none.
        policy: unused; a tiny one by default.
    """

    def __init__(self, reward: Reward, center: float = 0.0, policy: Policy | None = None, **kwargs):
        super().__init__(policy=policy or StableDiffusion("tiny", Frozen()), **kwargs)
        self.reward, self.center = reward, center
        if not any(p.requires_grad for p in reward.parameters()):
            raise ValueError(f"reward: {reward.name} has no weights to train; BradleyTerry trains a reward model.")

    def check(self, batch: dict) -> None:
        super().check(batch)
        if "win" not in batch:
            raise ValueError("BradleyTerry judges images and the batch holds latents: set --data.encode_once false.")

    def scores(self, batch: dict) -> tuple[Tensor, Tensor]:
        """r of the winners and of the losers, (B,) each."""
        images = torch.cat([batch["win"], batch["lose"]])  # (2B, 3, H, W)
        return self.reward.combine(components(self.reward, images, tile_rows(batch, 2))).chunk(2)

    def loss(self, batch: dict, stage: str) -> Tensor:
        win, lose = self.scores(batch)
        return self.ranking(win - lose, batch, stage) + self.center * (win + lose).square().mean()

    def state_dict(self, *args, **kwargs) -> dict:
        """Adds the reward's buffers: a batch norm's running statistics are trained too."""
        prefix = kwargs.get("prefix", "")
        buffers = {f"{prefix}reward.{name}": value for name, value in self.reward.named_buffers()}
        return super().state_dict(*args, **kwargs) | buffers

    def on_train_end(self) -> None:
        from safetensors.torch import save_model

        folder = os.path.join(self.trainer.default_root_dir, "reward")
        if self.trainer.is_global_zero:
            os.makedirs(folder, exist_ok=True)
            save_model(self.reward, os.path.join(folder, "reward.safetensors"))
