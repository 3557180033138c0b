"""The methods of reward modelling whose reward sees images."""

import re

import torch
from torch import Tensor

from lit_align.algorithms.online import tile_rows
from lit_align.algorithms.reward_modeling.reward_modeling import RewardModeling
from lit_align.policies.adapters import Frozen
from lit_align.policies.policy import Policy
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.rewards.multi_reward import MultiReward
from lit_align.rewards.reward import Reward, components


class ImageRewards(RewardModeling):
    """Base of the methods that train a Reward. It sees images, not latents, so the policy is unused.

    Dropout is on in training and off in validation.

    Args:
        reward: the reward model to train.
        freeze: patterns (regular expressions) of the names of the reward's tensors that are not trained.
        policy: unused; a tiny one by default.
    """

    uses_policy = False

    def __init__(self, reward: Reward, freeze: tuple[str, ...] = (), policy: Policy | None = None, **kwargs):
        super().__init__(policy=policy or StableDiffusion("tiny", Frozen()), **kwargs)
        self.reward = reward
        for pattern in freeze:
            frozen = [p for name, p in reward.named_parameters() if re.search(pattern, name)]
            if not frozen:
                raise ValueError(f"freeze: no tensor of {type(reward).__name__} has a name with {pattern!r} in it.")
            for p in frozen:
                p.requires_grad_(False)
        for name, part in reward.parts.items() if isinstance(reward, MultiReward) else [(reward.name, reward)]:
            if part.frozen:
                raise ValueError(
                    f"reward: {name} has no weights to train; {type(self).__name__} trains a reward model."
                )

    def check(self, batch: dict) -> None:
        super().check(batch)
        if gone := [key for key in self.feedback if key not in batch]:
            raise ValueError(
                f"{type(self).__name__} judges images and the batch holds latents in place of {gone[0]}: set "
                "--data.encode_once false."
            )

    def on_train_start(self) -> None:
        super().on_train_start()
        self.reward.train()  # published rewards are built in eval mode, and Lightning leaves modes as they are

    def scores(self, images: Tensor, batch: dict) -> Tensor:
        """r of images (B, 3, H, W), or of lists of them (B, K, 3, H, W): (B,) or (B, K), with a further axis for
        several rewards."""
        lists = images if images.ndim == 5 else images[:, None]
        k = lists.shape[1]
        rows = tile_rows(batch, k)  # the prompts k times over
        found = self.reward.combine(components(self.reward, lists.transpose(0, 1).flatten(0, 1), rows))
        found = found.unflatten(0, (k, -1)).transpose(0, 1)  # (B, K, ...)
        return found if images.ndim == 5 else found[:, 0]

    def win_and_lose(self, batch: dict) -> tuple[Tensor, Tensor]:
        """r of the winners and of the losers, (B,) each, in one call; (B, R) for R rewards."""
        return self.scores(torch.stack([batch["win"], batch["lose"]], 1), batch).unbind(1)

    def state_dict(self, *args, **kwargs) -> dict:
        """Adds the reward's buffers: a batch norm's running statistics are trained too."""
        prefix = kwargs.get("prefix", "")
        buffers = {f"{prefix}reward.{name}": value for name, value in self.reward.named_buffers()}
        return super().state_dict(*args, **kwargs) | buffers


class SeveralRewards(ImageRewards):
    """Base of the methods that train several rewards of the same kind on the same pairs. Each is written to
    `<run>/reward/<name>`.

    Args:
        rewards: name -> reward model to train.
    """

    def __init__(self, rewards: dict[str, Reward], **kwargs):
        if len(rewards) < 2:
            raise ValueError(f"{type(self).__name__} has {len(rewards)} reward: name 2 or more.")
        super().__init__(reward=MultiReward(rewards), **kwargs)
