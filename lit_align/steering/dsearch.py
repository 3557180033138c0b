"""DSearch: SVDD over a beam of samples that narrows, with candidates where they pay."""

import math
from typing import Literal

import torch
from torch import Tensor

from lit_align.diffusion.process import append_dims
from lit_align.diffusion.state import State, rand, randn_like
from lit_align.rewards.reward import Reward, judge
from lit_align.rewards.step_reward import StepReward
from lit_align.steering.svdd import SVDD


class DSearch(SVDD):
    """Dynamic search (Li et al. 2025, arXiv 2503.02039): SVDD on K samples per prompt.

    - Beam: after step i of T the best int(K^(1 - i / (T - 1))) of them go on. The draws that this saves go to the rest.
    - Search: a step is searched widely with a probability that grows along the run. A wide step draws width M times
      K / (samples left) candidates of each sample, a narrow one M.

    With `replace` (DSearch-R) the beam stays K, and the worst samples of each step become copies of others, drawn by
    the softmax of their values. The best sample is returned. As released, with a beam per prompt (there: per batch).

    Args:
        reward, value: of the candidates; one of the two.
        candidates: M.
        beam: K.
        width: of a wide step.
        search: how a wide step's probability grows: 1 - exp(-3 i / (T - 1)), (i + 10) / (T - 1), 0.7, or always.
        replace: the fraction of K that is replaced after each step.
    """

    def __init__(
        self,
        reward: Reward | None = None,
        value: StepReward | None = None,
        candidates: int = 5,
        beam: int = 5,
        width: float = 5.0,
        search: Literal["exponential", "linear", "uniform", "all"] = "exponential",
        replace: float = 0.0,
    ):
        super().__init__(reward, value, candidates)
        if beam < 1 or width < 1 or not 0 <= replace < 1:
            raise ValueError(
                f"DSearch: beam and width are 1 or more, 0 <= replace < 1; got {beam}, {width}, {replace}."
            )
        self.beam, self.width, self.search, self.replace = beam, width, search, replace
        if replace and not int(replace * beam):
            raise ValueError(f"DSearch: replace {replace} of a beam of {beam} is none: raise one of them.")

    def left(self, i: int, steps: int) -> int:
        """Samples of a prompt that go on after step i."""
        if self.replace or steps == 1:
            return self.beam
        return max(1, int(self.beam ** (1 - i / (steps - 1)) + 1e-9))

    def probability(self, i: int, steps: int) -> float:
        """Of a wide step i."""
        forms = {
            "exponential": lambda: 1 - math.exp(-3 * i / (steps - 1)),
            "linear": lambda: (i + 10) / (steps - 1),
            "uniform": lambda: 0.7,
            "all": lambda: 1.0,
        }
        return forms[self.search]()

    def nfe(self, inside: float, steps: int) -> float:
        """If all steps are wide."""
        alive = [self.beam, *(self.left(i, steps) for i in range(steps - 1))]  # at the beginning of each step
        wide = [k * int(self.width * self.candidates * self.beam / k) for k in alive[:-1]]
        fresh = sum(alive) if self.value is not None else alive[0]
        looks = sum(wide) if self.value is None or self.value.needs_x0 else 0
        return inside / steps * (fresh + looks)

    def samples(self, state: State) -> tuple[int, int]:
        """How many prompts there are, and how many samples of each."""
        n = int(state.extras[self]["prompt"].max()) + 1
        return n, len(state.x) // n

    def on_init(self, policy, state):
        n, k = len(state.x), self.beam
        state.reindex(torch.arange(n).repeat_interleave(k))
        first = torch.arange(n * k, device=state.x.device) % k == 0
        if k > 1:
            state.x = torch.where(append_dims(first, state.x), state.x, randn_like(state.x, state.generators))
        super().on_init(policy, state)
        state.extras[self]["prompt"] = torch.arange(n, device=state.x.device).repeat_interleave(k)

    def widths(self, state: State) -> Tensor:
        n, k = self.samples(state)
        wide = rand(n, state.generators and state.generators[::k]) < self.probability(state.i, state.steps)
        widths = torch.where(wide, int(self.width * self.candidates * self.beam / k), self.candidates)
        return widths.to(state.x.device).repeat_interleave(k)

    def after_step(self, policy, state):
        super().after_step(policy, state)
        value = state.extras[self].pop("value", None)
        if value is None:  # of the last step, and of steps without noise
            return
        n, k = self.samples(state)
        order = value.view(n, k).argsort(1, descending=True)  # (n, k)
        if self.replace:
            worst = int(self.replace * k)
            weights = value.view(n, k).gather(1, order[:, : k - worst]).softmax(1)
            u = torch.stack([rand(n, state.generators and state.generators[::k]) for _ in range(worst)], 1)
            drawn = torch.searchsorted(weights.cumsum(1).contiguous(), u.to(weights)).clamp(max=k - worst - 1)
            kept = torch.cat([order[:, : k - worst], order.gather(1, drawn)], 1)
        else:
            kept = order[:, : self.left(state.i, state.steps)]
        first = torch.arange(n, device=kept.device)[:, None] * k
        state.reindex((kept + first).flatten())

    def on_end(self, policy, state):
        super().on_end(policy, state)
        n, k = self.samples(state)
        if k == 1:
            return
        if self.reward is None:
            state.x0, state.t = state.x, state.s
            score = self.by_network(policy, state)
        else:
            score = judge(self.reward, policy, state.x, state.rows, state.minibatch)
        state.reindex(torch.arange(n, device=state.x.device) * k + score.view(n, k).argmax(1))
