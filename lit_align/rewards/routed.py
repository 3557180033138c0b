"""A reward for each kind of prompt."""

import torch
from torch import Tensor, nn

from lit_align.rewards.multi_reward import Combination, merged_columns, score_of
from lit_align.rewards.reward import Reward


class Routed(Reward):
    """The reward that the row's value of a column names: OCR for `task` text, GenEval for `task` objects.

    Scores stay in their rewards' units: compare within a prompt (advantage Group with global_std false, or PerPrompt).
    Raises ValueError for a row whose value is none of the names.

    Args:
        rewards: value of the column -> reward.
        column: of the data.
    """

    name = "routed"
    artefact = scale = "its rewards'"
    blind_to = "what the reward of the row is blind to"

    def __init__(self, rewards: dict[str, Reward], column: str = "task"):
        super().__init__()
        self.parts, self.column = nn.ModuleDict(rewards), column
        self.differentiable = all(part.differentiable for part in rewards.values())
        self.masks = any(part.masks for part in rewards.values())
        self.together = any(part.together for part in rewards.values())
        self.videos = all(part.videos for part in rewards.values())
        for name, part in rewards.items():
            if any(isinstance(m, Combination) and m.normalise for m in part.modules()):
                raise ValueError(
                    f"rewards.{name} of Routed has statistics over all images, of which Routed shows it some: set its "
                    "normalise to false."
                )

    @property
    def columns(self) -> dict[str, bool]:
        return merged_columns(self.parts) | {self.column: True}

    def forward(self, images: Tensor, prompts: list[str], **columns: list) -> Tensor:
        values = [str(value) for value in columns[self.column]]
        for value, prompt in zip(values, prompts, strict=True):
            if value not in self.parts:
                names = ", ".join(self.parts)
                raise ValueError(f"the row {prompt!r} has {self.column} {value!r}; Routed has rewards for {names}.")
        scores, order = [], []
        for name, part in self.parts.items():
            if rows := [i for i, value in enumerate(values) if value == name]:
                own = {key: [cells[i] for i in rows] for key, cells in columns.items()}
                scores.append(score_of(part, images[rows], [prompts[i] for i in rows], own))
                order += rows
        return torch.cat(scores)[torch.tensor(order).argsort().to(images.device)]
