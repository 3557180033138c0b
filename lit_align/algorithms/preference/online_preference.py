"""Preference methods on pairs that are sampled during training."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_align.algorithms.online import Online
from lit_align.algorithms.preference.preference import Preference


class OnlinePreference(Online, Preference):
    """Base of the preference methods that sample their own pairs. A method overrides `loss`, and `collect`, which
    returns pairs {"prompt", "win_latents", "lose_latents", ...}, or None if there are none.

    Logs `train/pairs`, the number of pairs in a training step.
    """

    weighs_pairs = False  # its pairs are its own

    def optimizer_steps(self, collected: dict | None) -> Iterator[list]:
        self.log_mean("train/pairs", torch.tensor(float(len(collected["prompt"]) if collected else 0)), 1)
        return super().optimizer_steps(collected)

    @torch.no_grad()
    def reference_latents(self, batch: dict) -> Tensor:
        """Latents (B, ...) sampled from the reference for the batch's prompts."""
        with self.policy.reference():
            return self.draw_latents(batch)
