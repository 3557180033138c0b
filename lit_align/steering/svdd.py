"""SVDD: every step continues from one of several draws, chosen by its value."""

import torch
from torch import Tensor

from lit_align.diffusion.state import State, rand
from lit_align.rewards.reward import Reward
from lit_align.rewards.step_reward import StepReward
from lit_align.steering.lookahead import Lookahead, put_where


class SVDD(Lookahead):
    """Soft value-based decoding (Li et al. 2024, arXiv 2408.08252): M draws x_s ~ p(x_s | x_t), of which one is kept
    with probability ~ exp(v(x_s) / alpha). The last step is a plain one.

    - SVDD-PM, with a reward: v is the reward at the posterior mean, r(c, x_0-hat(x_s)).
    - SVDD-MC, with a value network: v(x_s) was regressed on rewards of finished samples (ValueRegression).

    The choice is among a sample's own draws, so samples do not compete. With M = 1 it is plain sampling.

    Args:
        reward, value: of the candidates; one of the two.
        candidates: M.
        alpha: in units of the reward; 0 keeps the best candidate (as released).
    """

    def __init__(
        self,
        reward: Reward | None = None,
        value: StepReward | None = None,
        candidates: int = 20,
        alpha: float = 0.0,
    ):
        super().__init__(reward, value)
        if candidates < 1 or alpha < 0:
            raise ValueError(f"SVDD: candidates is 1 or more and alpha 0 or more; got {candidates} and {alpha}.")
        self.candidates, self.alpha = candidates, alpha

    def nfe(self, inside: float, steps: int) -> float:
        if self.value is not None and not self.value.needs_x0:
            return inside
        return inside / steps * (1 + self.candidates * (steps - 1))

    def widths(self, state: State) -> Tensor:
        """(P,) candidates of each particle."""
        return torch.full((len(state.x),), self.candidates, device=state.x.device)

    def propose(self, policy, state, gaussian):
        if state.i == state.steps - 1 or not gaussian.std.any():
            return super().propose(policy, state, gaussian)
        widths, best = self.widths(state), None
        for m in range(int(widths.max())):
            rows = (widths > m).nonzero().flatten()
            found = self.candidate(policy, state, gaussian, rows)
            found["score"] = found["value"]
            if self.alpha:  # the largest value / alpha + Gumbel noise is a draw ~ exp(value / alpha)
                generators = state.generators and [state.generators[r] for r in rows.tolist()]
                gumbel = -(-rand(len(rows), generators).clamp(min=1e-20).log()).log()
                found["score"] = found["value"] + self.alpha * gumbel.to(found["value"])
            better = found["score"] > best["score"][rows] if m else None
            best = put_where(better, rows, best, found) if m else found
        return self.take(state, best)
