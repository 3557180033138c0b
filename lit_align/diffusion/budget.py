"""What a run of a sampler costs, and what it may cost."""

from collections import Counter

COSTS = ("nfe_forward", "nfe_backward", "decodes", "reward_calls")


class Budget:
    """Counts the calls of a policy from now on, per prompt (the mean over the prompts of a batch):

    - `nfe_forward`: network forwards of one latent each; classifier-free guidance makes two,
    - `nfe_backward`: backward passes through the network, counted alike,
    - `decodes`: latents decoded to images,
    - `reward_calls`: images scored by `judge`.

    What is recomputed in a backward pass counts as a forward again. Decoding and scoring the finished samples is not
    part of the run.

    Args:
        policy: whose `calls` are counted.
        n: prompts.
        max_nfe: how many forwards and backwards a prompt may take; None: any number.
    """

    def __init__(self, policy, n: int, max_nfe: float | None = None):
        self.policy, self.n, self.max_nfe, self.before = policy, n, max_nfe, policy.calls.copy()

    def calls(self) -> Counter:
        """Calls so far, per prompt."""
        return Counter({name: v / self.n for name, v in (self.policy.calls - self.before).items()})

    @property
    def nfe(self) -> float:
        """Forwards and backwards so far, per prompt."""
        calls = self.calls()
        return calls["nfe_forward"] + calls["nfe_backward"]

    def allows(self, nfe: float, spent: float | None = None) -> bool:
        """Whether `nfe` more forwards and backwards stay within the budget of a prompt that has spent so many (default:
        the mean over the prompts)."""
        return self.max_nfe is None or (self.nfe if spent is None else spent) + nfe <= self.max_nfe
