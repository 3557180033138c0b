"""Pairs that the policy makes itself."""

from collections.abc import Iterable

import torch

from lit_align.algorithms.online import Online
from lit_align.algorithms.preference.preference import Preference


class OnlinePreference(Online, Preference):
    """Base of the preference methods that learn from their own samples. A method overrides `loss`, and `collect`, which
    gives pairs {"prompt", "index", "win_latents", "lose_latents", ...}, or None where the samples give none.

    Logs `train/pairs`, how many pairs a collection gave.
    """

    def parts(self, collected: dict | None) -> Iterable[dict | None]:
        self.log_mean("train/pairs", torch.tensor(float(len(collected["prompt"]) if collected else 0)), 1)
        return super().parts(collected)
