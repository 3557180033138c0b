"""The one sampling loop."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_align.diffusion.budget import Budget
from lit_align.diffusion.hook import PLAIN, Hook, chain
from lit_align.diffusion.state import State, Trajectory, randn_like
from lit_align.diffusion.transition import DDIM, Gaussian, Transition


def last_k(n: int, k: int) -> Tensor:
    """(n,) bool: gradient in the last k of n steps (DRaFT-K, arXiv 2309.17400)."""
    return torch.arange(n) >= n - k


def random_steps(n: int) -> Tensor:
    """(n,) bool: gradient in step i with probability (i + 1) / (n + 1), independently (AlignProp as released, arXiv
    2310.03739)."""
    return torch.randint(n + 1, (n,)) <= torch.arange(n)


def all_steps(n: int) -> Tensor:
    """(n,) bool: gradient in every step (DRaFT)."""
    return torch.ones(n, dtype=torch.bool)


class Sampler:
    """Draws x_0 from a policy.

    Args:
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 uses the conditional prediction alone.
        transition: the rule of a step (default: DDIM with eta 0; for a flow this is the Euler step).
        steering: hooks that change sampling, the outermost first.
        minibatch: samples in one network forward, decode or reward call (default: as many as there are prompts, however
            many particles or candidates each of them has).
        max_nfe: network forwards and backwards that a prompt may take, guidance included. A run that would take more is
            refused, before the first step where its cost is known.
    """

    depth = 0  # samplers inside this one

    def __init__(
        self,
        steps: int = 50,
        guidance_scale: float = 7.5,
        transition: Transition | None = None,
        steering: list[Hook] | None = None,
        minibatch: int | None = None,
        max_nfe: int | None = None,
    ):
        self.steps, self.guidance_scale = steps, guidance_scale
        self.transition = transition or DDIM(eta=0.0)
        self.steering = tuple(steering or ())
        self.minibatch, self.max_nfe = minibatch, max_nfe

    @property
    def is_steered(self) -> bool:
        """Whether it differs from plain sampling."""
        return bool(self.steering)

    def plain(self) -> "Sampler":
        """The same sampler without steering."""
        return Sampler(self.steps, self.guidance_scale, self.transition, minibatch=self.minibatch)

    def nfe(self, first: int = 0, last: int | None = None, hooks: Sequence[Hook] = ()) -> float:
        """Network forwards and backwards of the steps first .. last - 1 (default: all), per prompt, as far as the hooks
        know theirs."""
        steps = (self.steps if last is None else last) - first
        nfe = steps * (1 if self.guidance_scale == 1 else 2)
        for hook in reversed((*hooks, *self.steering)):
            nfe = hook.nfe(nfe, steps)
        return nfe

    def modules(self) -> list[nn.Module]:
        """The rewards, policies and other modules that the sampler and its hooks hold."""
        found = [v for owner in (self, *self.steering) for v in vars(owner).values() if isinstance(v, nn.Module)]
        inner = [m for v in vars(self).values() if isinstance(v, Sampler) for m in v.modules()]
        return list(dict.fromkeys([*found, *inner]))

    def timesteps(self, policy) -> Tensor:
        """(steps + 1,) times, the noisiest first."""
        return policy.process.timesteps(self.steps)

    def step_std(self, policy) -> Tensor:
        """(steps,) the standard deviation of each step's transition; 0 where the step is deterministic."""
        grid = self.timesteps(policy)
        zero = torch.zeros(len(grid) - 1, 1, device=grid.device)
        return self.transition(policy.process, zero, zero, zero, grid[:-1], grid[1:]).std.flatten()

    def forgets_noise(self, policy) -> bool:
        """Whether the first step replaces the initial noise wholly by fresh noise, as DDIM(eta=1) does on a flow: x_T
        then does not matter. (To a consistency model it does, whose first prediction is a sample already.)"""
        if policy.process.consistency:
            return False
        t, s = self.timesteps(policy)[:2].unsqueeze(1)
        noise = torch.ones(1, 1, device=t.device)
        x_t = policy.process.add_noise(torch.zeros_like(noise), noise, t)
        step = self.transition(policy.process, x_t, torch.zeros_like(noise), noise, t, s)
        return bool(step.std.all()) and not step.mean.abs().gt(1e-6).any()

    def predict(self, policy, x_t: Tensor, t: Tensor, cond: dict, grad: bool = True) -> tuple[Tensor, Tensor]:
        """The guided estimates of x_0 and eps at x_t (P, ...), t (P,).

        Without `grad` the network's output is a constant, and gradient reaches x_t through the formula alone.
        """
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            pred = policy.denoise(x_t, t, cond, self.guidance_scale)
        return policy.process.to_x0(pred, x_t, t), policy.process.to_eps(pred, x_t, t)

    def gaussian(self, policy, x_t: Tensor, t: Tensor, s: Tensor, cond: dict) -> tuple[Gaussian, Tensor, Tensor]:
        """The distribution of x_s given x_t (P, ...) under the policy as it is now and the steering hooks, and the
        estimates of x_0 and eps; times (P,)."""
        hooks = (*self.steering, PLAIN)
        if starting := next((hook for hook in hooks if hook.needs_start), None):
            raise ValueError(
                f"{type(starting).__name__} predicts by what it has set at a run's start, so its steps cannot be "
                "evaluated one by one: use it in sampler, not in a method's rollout."
            )
        state = State(x_t.float(), cond, t=t, s=s, needs_grad=True, hooks=hooks)
        hooks[0].predict(policy, state, self)
        return hooks[0].transition(policy, state, self), state.x0, state.eps

    def __call__(
        self,
        policy,
        prompts: list[str] | None = None,
        *,
        cond: dict | None = None,
        columns: dict[str, list] | None = None,
        x: Tensor | None = None,
        seeds: list[int] | None = None,
        hooks: Sequence[Hook] = (),
        grad: Tensor | None = None,
        record: bool = False,
    ) -> State:
        """Runs the loop and returns its last state; x_0 (latents) is `state.x`.

        Args:
            prompts, cond: what to draw: one prompt per sample, which hooks may rewrite, or the policy's conditioning.
            columns: further columns of the prompts' rows, for hooks with a reward, and for a policy that edits images.
            x: initial noise (P, ...); drawn if absent.
            seeds: one per sample; its noise then does not depend on what else is in the batch.
            hooks: a method's own hooks, around those of `steering`.
            grad: (steps,) bool: the steps whose prediction keeps its gradient; each is recomputed in backward instead
                of stored. The other steps still pass gradient along x_t -> x_s. None: no gradient at all.
            record: store a Trajectory in `state.trajectory`.
        """
        with torch.set_grad_enabled(grad is not None):
            columns = columns or {}
            texts = self.rewritten(prompts, columns, hooks, cond is None)
            cond = self.encode(policy, texts, hooks, columns) if cond is None else cond
            n = len(next(iter(cond.values())))
            generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
            if x is None or generators:  # with seeds, the noise of the steps is the same whether x is given or not
                noise = randn_like(torch.empty(n, *policy.latent_shape, device=policy.device), generators)
                x = noise if x is None else x
            state = State(x.float(), cond, prompts, columns, generators, texts=texts)
            return self.run(policy, state, hooks, grad, record)

    def rewritten(self, prompts: list[str] | None, columns: dict, hooks: Sequence[Hook], encodes: bool) -> list | None:
        """The prompts as hooks rewrite them. Raises ValueError if a hook would rewrite what is encoded already."""
        texts = prompts
        for hook in (*hooks, *self.steering):
            if encodes:
                texts = hook.rewrite(texts, columns)
            elif type(hook).rewrite is not Hook.rewrite:
                name = type(hook).__name__
                raise ValueError(f"{name} rewrites prompts, and this method encodes them itself: leave {name} out.")
        return texts

    def encode(
        self, policy, texts: list[str], hooks: Sequence[Hook] = (), columns: dict[str, list] | None = None
    ) -> dict[str, Tensor]:
        """The policy's conditioning of texts that hooks may have written, and of further columns of their rows."""
        for hook in (*hooks, *self.steering):
            texts = hook.spoken(texts)
        return policy.condition(texts, columns)

    def run(
        self,
        policy,
        state: State,
        hooks: Sequence[Hook] = (),
        grad: Tensor | None = None,
        record: bool = False,
        first: int = 0,
        last: int | None = None,
    ) -> State:
        """The loop over the steps first .. last - 1 (default: all) from a state whose x are latents at the first one's
        time, and whose rows, noise and generators are set. Returns the same state, with `calls`."""
        n, last, need = len(state.x), self.steps if last is None else last, self.nfe(first, last, hooks)
        hooks, budget = chain((*hooks, *self.steering), policy, self), Budget(policy, n, self.max_nfe)
        if not budget.allows(need):
            raise ValueError(
                f"max_nfe is {self.max_nfe} and a run of this sampler takes {need:.0f} network evaluations per prompt: "
                "lower its steps or particles, or raise max_nfe."
            )
        state.sampler, state.steps, state.hooks = self, self.steps, hooks
        state.minibatch = state.minibatch or self.minibatch or n
        grid, state.i = self.timesteps(policy).to(state.x.device), first
        hooks[0].on_init(policy, state)
        while state.i < last:
            state.t, state.s = (grid[state.i + k].expand(len(state.x)) for k in (0, 1))
            self._step(policy, state, grad, record)
            if not budget.allows(0):
                raise ValueError(
                    f"max_nfe is {self.max_nfe} and step {state.i + 1} of {last} has brought the network evaluations "
                    f"per prompt to {budget.nfe:.0f}: lower steps or particles, or raise max_nfe."
                )
            state.i = hooks[0].control(policy, state)
        hooks[0].on_end(policy, state)
        state.calls = budget.calls()
        if record:
            state.trajectory = self._trajectory(state)
        return state

    def estimate(self, policy, state: State, hook: Hook | None = None) -> None:
        """Sets state.x0 and state.eps, at state.x and state.t, by `predict` of a hook and those inside it (default: of
        all), a minibatch at a time."""
        hook = hook or state.hooks[0]
        rows = torch.arange(len(state.x)).split(state.minibatch or len(state.x))
        if len(rows) == 1:
            hook.predict(policy, state, self)
            return
        parts = [state.part(some) for some in rows]
        for part in parts:
            hook.predict(policy, part, self)
        state.join(parts)

    def at(self, policy, state: State, x: Tensor, i: int) -> State:
        """A copy of the state whose latents are x, at the time of step i, to estimate x_0 there: what hooks note in it
        stays in it."""
        there, grid = copy.copy(state), self.timesteps(policy).to(x.device)
        there.extras = {hook: dict(v) if isinstance(v, dict) else v for hook, v in state.extras.items()}
        there.x, there.i, there.t, there.s = x, i, grid[i].expand(len(x)), grid[i + 1].expand(len(x))
        there.needs_grad = False
        return there

    def _step(self, policy, state: State, grad: Tensor | None, record: bool) -> None:
        hook, state.needs_grad = state.hooks[0], grad is not None and bool(grad[state.i])
        hook.before_step(policy, state, self)
        if state.needs_grad:
            now = copy.copy(state)  # backward predicts again, when `state` has moved on
            state.x0, state.eps = checkpoint(self._predicted, policy, now, state.x, use_reentrant=False)
        else:
            self.estimate(policy, state)
        gaussian = hook.transition(policy, state, self)  # may resample, so x_t is read after it
        x_t = state.x
        state.x = hook.propose(policy, state, gaussian)
        if record:
            noisy = bool((gaussian.std > 0).all())
            log_prob = gaussian.log_prob(state.x) if noisy else torch.zeros(len(x_t), device=x_t.device)
            latents = {"x_t": x_t, "x_s": state.x, "mean": gaussian.mean}
            step = {"t": state.t, "s": state.s, "log_prob": log_prob.detach()}
            state.history.append(step | {k: v.detach().cpu() for k, v in latents.items()})
        hook.after_step(policy, state)

    def _predicted(self, policy, state: State, x: Tensor) -> tuple[Tensor, Tensor]:
        state.x = x
        self.estimate(policy, state)
        return state.x0, state.eps

    def _trajectory(self, state: State) -> Trajectory:
        columns = (torch.stack([step[key] for step in state.history], 1) for key in STEP)
        return Trajectory(*columns, {k: v.detach() for k, v in state.cond.items()}, state.prompts)


STEP = ("x_t", "x_s", "t", "s", "log_prob", "mean")  # what is recorded of a step
