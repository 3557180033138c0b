"""Preference methods on pairs that the policy makes itself."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_align.algorithms.online import Online
from lit_align.algorithms.preference.preference import Preference


class OnlinePreference(Online, Preference):
    """Base of the preference methods that learn from their own samples. A method overrides `loss`, and `collect`, which
    gives pairs {"prompt", "win_latents", "lose_latents", ...}, or None where the samples give none.

    Logs `train/pairs`, the number of pairs in a collection.
    """

    def optimizer_steps(self, collected: dict | None) -> Iterator[list]:
        self.log_mean("train/pairs", torch.tensor(float(len(collected["prompt"]) if collected else 0)), 1)
        return super().optimizer_steps(collected)

    @torch.no_grad()
    def reference_latents(self, batch: dict) -> Tensor:
        """Samples (B, ...) of the reference for the batch's prompts."""
        with self.policy.reference():
            return self.draw_latents(batch["prompt"])
