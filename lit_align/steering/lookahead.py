"""Candidates for the next state, and what they are worth."""

from typing import Any

import torch
from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import Gaussian
from lit_align.rewards.reward import Reward, judge, refuse_masks
from lit_align.rewards.step_reward import StepReward


def put_where(mask: Tensor, rows: Tensor, old: Any, new: Any) -> Any:
    """`old`, in whose rows rows[m] the m-th row of `new` stands where mask[m] (M,); tensors, lists, and dicts of
    them."""
    if isinstance(old, dict):
        return {k: put_where(mask, rows, v, new[k]) for k, v in old.items()}
    if isinstance(old, list):
        taken = {int(r): new[m] for m, r in enumerate(rows) if mask[m]}
        return [taken.get(i, v) for i, v in enumerate(old)]
    if not isinstance(old, Tensor):
        return new
    where = torch.where(append_dims(mask, new), new, old[rows])
    return old.index_copy(0, rows, where)


class Lookahead(Hook):
    """Base of the hooks that draw several candidates x_s of a step and value each one before it is taken. The estimate
    of x_0 at the one that is taken serves the next step, so it is not computed twice.

    Args:
        reward: a candidate's value is r(c, x_0-hat(x_s)), by one more prediction.
        value: gives the value from x_s itself, in place of a reward.
    """

    def __init__(self, reward: Reward | None = None, value: StepReward | None = None):
        if (reward is None) == (value is None):
            raise ValueError(f"{type(self).__name__} takes a reward or a value network: give one of the two.")
        if reward is not None:
            refuse_masks(reward, type(self).__name__)
            reward.eval().requires_grad_(False)
        self.reward, self.value = reward, value and value.eval()
        for p in value.parameters() if value else ():
            p.requires_grad = False  # requires_grad_ refuses layers whose sizes the first call sets

    def check(self, policy, sampler) -> None:
        if not sampler.step_std(policy)[:-1].any():
            raise ValueError(
                f"{type(self).__name__} chooses among draws of a step, and this sampler's steps have no noise: give it "
                "a transition with noise (DDIM with eta 1, FlowSDE)."
            )

    def on_init(self, policy, state: State) -> None:
        state.extras[self] = {}
        super().on_init(policy, state)

    def predict(self, policy, state: State, sampler) -> None:
        extras = state.extras.setdefault(self, {})
        known = extras.get("known")
        if known is not None and not state.needs_grad and torch.equal(known["x"], state.x):
            state.x0, state.eps, state.branches = known["x0"], known["eps"], known["branches"]
            state.extras |= known["extras"]
            return
        super().predict(policy, state, sampler)
        inside = state.hooks[state.hooks.index(self) + 1 :]
        extras["known"] = {"x": state.x, "x0": state.x0, "eps": state.eps, "branches": state.branches}
        extras["known"]["extras"] = {hook: state.extras[hook] for hook in inside if hook in state.extras}

    def at(self, policy, state: State, x: Tensor, i: int) -> dict:
        """What is known of latents x at the time of step i: {"x", "value" (P,), "known": the estimate there, or
        None}."""
        there = state.sampler.at(policy, state, x, i)
        if self.value is not None and not self.value.needs_x0:
            return {"x": x, "value": self.by_network(policy, there), "known": None}
        state.sampler.estimate(policy, there)
        if self.value is not None:
            value = self.by_network(policy, there)
        else:
            value = judge(self.reward, policy, there.x0, state.rows, state.minibatch)
        return {"x": x, "value": value, "known": there.extras[self]["known"]}

    def by_network(self, policy, state: State) -> Tensor:
        """Values (P,) of the state's latents at its time, by the value network; of its x0, too, if that needs it."""
        policy.calls["reward_calls"] += len(state.x)
        values = []
        for rows in torch.arange(len(state.x)).split(state.minibatch or len(state.x)):
            x_0 = state.x0[rows] if self.value.needs_x0 else None
            prompts = [state.prompts[row] for row in rows.tolist()]
            values.append(self.value(policy, state.x[rows], x_0, state.t[rows], prompts))
        return torch.cat(values).float()

    def candidate(self, policy, state: State, gaussian: Gaussian, rows: Tensor) -> dict:
        """One more draw x_s of the particles `rows`, as `at` gives it."""
        some = state if len(rows) == len(state.x) else state.part(rows)
        std = gaussian.std.expand(len(gaussian.mean), *gaussian.std.shape[1:])
        x = super().propose(policy, some, Gaussian(gaussian.mean[rows], std[rows]))
        return self.at(policy, some, x, state.i + 1)

    def take(self, state: State, found: dict) -> Tensor:
        """Continues from x of `found`, of all particles, and remembers its estimate and value."""
        state.extras[self] |= {"known": found["known"], "value": found["value"]}
        return found["x"]
