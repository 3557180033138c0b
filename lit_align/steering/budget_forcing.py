"""Rollover budget forcing: a step's draws end with the first one that improves, and the rest go to the next step."""

import torch

from lit_align.diffusion.state import State, randn_like
from lit_align.rewards.reward import Reward
from lit_align.steering.lookahead import Lookahead, put_where


class BudgetForcing(Lookahead):
    """RBF (Kim et al. 2025, arXiv 2503.19385), algorithm 1: the best of some initial noises by r(c, x_0-hat(x_T)), then
    at each step draws x_s until r(c, x_0-hat(x_s)) exceeds the best value so far. A step's quota is its share of the
    budget; what a step has left over is added to the next one's. Where no draw improves, the step's best is taken. The
    step before the last uses up the budget, as released.

    The paper's two other parts are the sampler's: stochastic steps of a flow (FlowSDE, or DDIM with eta 1, which
    samples along any interpolant of the flow's noise levels), and the grid.

    Args:
        reward: r.
        budget: predictions of a prompt in all, initial ones included; guidance makes each of them two network forwards.
        starts: initial noises.
    """

    def __init__(self, reward: Reward, budget: int = 250, starts: int = 25):
        super().__init__(reward)
        if starts < 1 or budget <= starts:
            raise ValueError(f"BudgetForcing: 1 <= starts < budget; got {starts} and {budget}.")
        self.budget, self.starts = budget, starts

    def check(self, policy, sampler):
        super().check(policy, sampler)
        if self.budget < self.starts + sampler.steps - 1:
            raise ValueError(
                f"BudgetForcing: budget is {self.budget}, and {self.starts} starts and one draw for each of "
                f"{sampler.steps - 1} steps take {self.starts + sampler.steps - 1}: raise it, or lower starts or steps."
            )

    def nfe(self, inside: float, steps: int) -> float:
        return self.budget * inside / steps

    def on_init(self, policy, state: State) -> None:
        super().on_init(policy, state)
        every = torch.arange(len(state.x), device=state.x.device)
        best = self.at(policy, state, state.x, 0)
        for _ in range(self.starts - 1):
            found = self.at(policy, state, randn_like(state.x, state.generators), 0)
            best = put_where(found["value"] > best["value"], every, best, found)
        state.x = self.take(state, best)
        quota = torch.full_like(every, (self.budget - self.starts) // max(state.steps - 1, 1))
        spare = self.budget - self.starts - quota * max(state.steps - 1, 1)
        state.extras[self] |= {"quota": quota, "left": quota, "spare": spare}  # predictions: a step's, this step's

    def propose(self, policy, state, gaussian):
        if state.i == state.steps - 1 or not gaussian.std.any():
            return super().propose(policy, state, gaussian)
        extras, final = state.extras[self], state.i == state.steps - 2
        left = extras["left"] + (extras["spare"] if final else 0)
        rows, best, used = torch.arange(len(left), device=left.device), None, torch.zeros_like(left)
        while len(rows):
            found = self.candidate(policy, state, gaussian, rows)
            if best is None:
                best = found
            else:
                best = put_where(found["value"] > best["value"][rows], rows, best, found)
            used[rows] += 1
            improved = found["value"] > extras["value"][rows]
            rows = rows[(used[rows] < left[rows]) & (~improved | final)]
        improved, before = best["value"] > extras["value"], extras["value"]
        x_s = self.take(state, best)
        extras["value"] = torch.where(improved, best["value"], before)  # the best value so far, not the taken one's
        extras["left"] = extras["quota"] + torch.where(improved, left - used, 0)
        return x_s
