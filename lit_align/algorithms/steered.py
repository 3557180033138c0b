"""Steered sampling: the LightningModule of the training-free methods."""

from lit_align.algorithms.sampling import Sampling
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Full
from lit_align.policies.policy import Policy


class Steered(Sampling):
    """Runs a steered sampler in `validate`, `test` and `predict`; trains nothing. `test` compares it with the same
    sampler without steering, on the same prompts and seeds.

    Args:
        policy: the model, with adapter Frozen.
        sampler: a sampler with `steering` hooks, or a sampler around a sampler.
    """

    def __init__(self, policy: Policy, sampler: Sampler, **kwargs):
        super().__init__(policy=policy, sampler=sampler, **kwargs)
        if isinstance(policy.adapter, Full):
            raise ValueError(
                "Steered trains nothing, and Full keeps the weights in float32: set policy.adapter to Frozen."
            )
        if not sampler.is_steered:
            raise ValueError("Steered: the sampler has no steering: list hooks in sampler.steering, or use BestOfN.")

    def reference_sample(self, batch: dict) -> dict:
        return self.sample(batch, self.sampler.plain())
