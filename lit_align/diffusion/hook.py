"""Hooks: where sampling methods differ from plain sampling, and how they nest."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_align.diffusion.state import State, randn_like
from lit_align.diffusion.transition import Gaussian

if TYPE_CHECKING:
    from lit_align.diffusion.sampler import Sampler


class Hook:
    """Changes the sampling loop. Hooks nest: each method of this class calls the hook inside, and the innermost one is
    plain sampling, so a subclass overrides what it changes and calls `super()` for the rest.

    A hook is shared by all runs of a sampler, so it keeps nothing about a run on itself: what it carries per particle
    lies in `state.extras[self]`, where resampling (`state.reindex`) moves it with the particles.
    """

    replaces: tuple[str, ...] = ()  # the methods that do not call the hook inside
    needs_start = False  # True if `predict` needs what `on_init` has set
    splits = False  # True if `predict` takes x_0 and eps from two predictions

    def check(self, policy, sampler: "Sampler") -> None:
        """Raises ValueError if the hook cannot work, or would do nothing, with this policy and sampler."""

    def nfe(self, inside: float, steps: int) -> float:
        """Network forwards and backwards of a run of some steps, per prompt, at most; the hooks inside need `inside`.
        It is compared with `max_nfe` before the first step."""
        return inside

    def rewrite(self, texts: list[str], columns: dict[str, list]) -> list[str]:
        """What is drawn in place of these prompts, before they are encoded. Rewards, logs and further columns keep the
        user's prompts; the outermost hook rewrites first."""
        return texts

    def spoken(self, texts: list[str]) -> list[str]:
        """What of the rewritten texts the policy encodes, where they hold more than words."""
        return texts

    def on_init(self, policy, state: State) -> None:
        """Before the first step: state.x is the initial noise."""
        state.inside(self).on_init(policy, state)

    def before_step(self, policy, state: State, sampler: "Sampler") -> None:
        """Before the prediction of a step: may move state.x, the x_t that the step starts from. (It is not called where
        a recorded step is evaluated again.)"""
        state.inside(self).before_step(policy, state, sampler)

    def predict(self, policy, state: State, sampler: "Sampler") -> None:
        """Sets state.x0 and state.eps from state.x at state.t. eps is the direction along which noise is added again
        (CFG++ takes it from another prediction than x0). A method that needs the gradient in x enables it here.
        `state.branches` keeps the network's predictions "null" and "cond" that guidance has combined.

        Policy gradients evaluate recorded steps again through this method, in a state whose `i` is -1.
        """
        state.inside(self).predict(policy, state, sampler)

    def transition(self, policy, state: State, sampler: "Sampler") -> Gaussian:
        """The distribution of x_s given x_t. A method that shifts its mean does so here, so that a recorded step has
        the likelihood of the distribution it was drawn from."""
        return state.inside(self).transition(policy, state, sampler)

    def propose(self, policy, state: State, gaussian: Gaussian) -> Tensor:
        """x_s: one draw from the transition."""
        return state.inside(self).propose(policy, state, gaussian)

    def after_step(self, policy, state: State) -> None:
        """After state.x has become x_s; x0 and eps are still those of the step. Resampling happens here."""
        state.inside(self).after_step(policy, state)

    def control(self, policy, state: State) -> int:
        """The step to take next: state.i + 1, or an earlier or later one."""
        return state.inside(self).control(policy, state)

    def on_end(self, policy, state: State) -> None:
        """After the last step."""
        state.inside(self).on_end(policy, state)


class Plain(Hook):
    """Plain sampling, the innermost hook."""

    def on_init(self, policy, state):
        pass

    def before_step(self, policy, state, sampler):
        pass

    def predict(self, policy, state, sampler):
        guided, w = sampler.guidance_scale != 1, sampler.guidance_scale
        with torch.set_grad_enabled(state.needs_grad and torch.is_grad_enabled()):
            if guided:
                null, cond = policy.branches(state.x, state.t, state.cond, state.null)
            else:
                cond = policy.denoise(state.x, state.t, state.cond)
            prediction = policy.guided(null, cond, w) if guided else cond
        state.branches = {"null": null, "cond": cond} if guided else {"cond": cond}
        state.read(policy.process, prediction)  # without needs_grad, gradient reaches x through this formula alone

    def transition(self, policy, state, sampler):
        return sampler.transition(policy.process, state.x, state.x0, state.eps, state.t, state.s)

    def propose(self, policy, state, gaussian):
        return gaussian.sample(randn_like(state.x, state.generators)) if gaussian.std.any() else gaussian.mean

    def after_step(self, policy, state):
        pass

    def control(self, policy, state):
        return state.i + 1

    def on_end(self, policy, state):
        pass


PLAIN = Plain()


def chain(hooks: tuple[Hook, ...], policy, sampler: "Sampler") -> tuple[Hook, ...]:
    """The hooks, the outermost first, and plain sampling inside them.

    Raises ValueError if one is listed twice, cannot work with this policy and sampler, or would never be called.
    """
    for i, hook in enumerate(hooks):
        name = type(hook).__name__
        if hook in hooks[:i]:
            raise ValueError(f"steering lists the same {name} object twice: create a second {name}.")
        for inner in hooks[i + 1 :]:
            unused = [m for m in hook.replaces if getattr(type(inner), m) is not getattr(Hook, m)]
            if unused:
                other = type(inner).__name__
                raise ValueError(
                    f"{name} replaces `{unused[0]}`, so {other} inside it would do nothing: leave one out."
                )
        hook.check(policy, sampler)
    return (*hooks, PLAIN)
