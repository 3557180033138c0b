"""The one sampling loop: a state of particles, a hook where methods differ, and a record of what happened."""

import copy
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_align.diffusion.transition import DDIM, Gaussian, Transition


def select_rows(value: Any, idx: list[int]) -> Any:
    """Rows idx of a value whose tensors and lists are particle-major, through dicts; anything else is left as it is."""
    if isinstance(value, Tensor) and value.ndim:
        return value[torch.tensor(idx, device=value.device)]
    if isinstance(value, dict):
        return {k: select_rows(v, idx) for k, v in value.items()}
    return [value[i] for i in idx] if isinstance(value, list) else value


def randn_like(x: Tensor, generators: list[torch.Generator] | None) -> Tensor:
    """Standard noise in the shape of x (P, ...), each particle's from its own generator where there are any."""
    if generators is None:
        return torch.randn_like(x)
    return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)


@dataclass
class Trajectory:
    """A recorded rollout of B samples and T steps; conditioning and prompts as the sampler got them. The latents lie on
    the CPU, whatever the policy's device."""

    x_t: Tensor  # (B, T, ...)
    x_s: Tensor  # (B, T, ...): what the step led to
    t: Tensor  # (B, T)
    s: Tensor  # (B, T)
    log_prob: Tensor  # (B, T), mean over the sample; 0 for a deterministic step
    mean: Tensor  # (B, T, ...) of the law x_s was drawn from
    cond: dict
    prompts: list[str] | None

    @staticmethod
    def cat(parts: list["Trajectory"]) -> "Trajectory":
        """Rollouts one after the other."""
        if len(parts) == 1:
            return parts[0]

        def join(values: list) -> Any:
            if isinstance(values[0], dict):
                return {k: join([v[k] for v in values]) for k in values[0]}
            return torch.cat(values) if isinstance(values[0], Tensor) else sum(values, [])

        return Trajectory(*(join([getattr(part, f.name) for part in parts]) for f in fields(Trajectory)))

    def minibatch(self, rows: Tensor, steps: Tensor) -> dict:
        """Single steps (rows[m], steps[m]), on the policy's device: x_t, x_s, mean (M, ...), t, s, log_prob (M,) and
        cond."""
        names, device = ("x_t", "x_s", "t", "s", "log_prob", "mean"), self.t.device
        step = {name: getattr(self, name)[rows, steps].to(device) for name in names}
        return step | {"cond": select_rows(self.cond, rows.tolist())}


@dataclass
class State:
    """P particles on their way; every tensor, list and dict of them is particle-major."""

    x: Tensor  # (P, ...)
    cond: dict
    prompts: list[str] | None = None
    generators: list[torch.Generator] | None = None
    group: Tensor = None  # (P,) which prompt a particle belongs to
    logw: Tensor = None  # (P,) log-weights
    i: int = 0  # step
    t: Tensor = None  # () its time
    s: Tensor = None  # () the time it leads to
    x0: Tensor = None  # the estimate of x_0 at this step
    eps: Tensor = None  # the noise direction of this step
    keep: bool = False  # whether this step's prediction keeps its gradient
    extras: dict = field(default_factory=dict)  # what a method carries along
    history: list[dict] = field(default_factory=list)  # recorded steps
    calls: Counter = field(default_factory=Counter)  # network evaluations of this run, per particle
    trajectory: Trajectory | None = None

    def reindex(self, idx: Tensor) -> None:
        """Particle p becomes what particle idx[p] was, in everything; a second copy continues with a fresh noise
        stream."""
        idx, seen = idx.tolist(), set()
        parents = self.generators
        for f in fields(self):
            if f.name not in ("generators", "history", "calls"):
                setattr(self, f.name, select_rows(getattr(self, f.name), idx))
        self.history = [select_rows(step, idx) for step in self.history]
        if parents is not None:
            self.generators = [parents[i] if i not in seen and not seen.add(i) else _branch(parents[i]) for i in idx]


def _branch(parent: torch.Generator) -> torch.Generator:
    seed = torch.randint(2**62, (), generator=parent).item()
    return torch.Generator().manual_seed(seed)


class Hook:
    """Where sampling methods differ. Each method may change the state; the defaults are plain sampling."""

    def on_init(self, policy, state: State) -> None:
        """Before the first step: the initial noise is in state.x."""

    def predict(self, policy, state: State, sampler: "Sampler") -> None:
        """Sets state.x0 and state.eps from state.x at state.t. eps is the direction noise is put back along, which
        CFG++, for one, takes from another prediction than x0. A method that needs the gradient in x enables it here."""
        t = state.t.expand(len(state.x))
        state.x0, state.eps = sampler.predict(policy, state.x, t, state.cond, state.keep)

    def propose(self, policy, state: State, gaussian: Gaussian) -> Tensor:
        """x_s, by default one draw."""
        return gaussian.sample(randn_like(state.x, state.generators)) if gaussian.std.any() else gaussian.mean

    def after_step(self, policy, state: State) -> None:
        """After state.x has become x_s; x0 and eps are still the step's. Resampling happens here."""

    def control(self, policy, state: State) -> int:
        """The step to take next: repeat (state.i), go back, or on (the default)."""
        return state.i + 1

    def on_end(self, policy, state: State) -> None:
        """After the last step."""


def last_k(n: int, k: int) -> Tensor:
    """Gradient in the last k of n steps (DRaFT-K, arXiv 2309.17400)."""
    return torch.arange(n) >= n - k


def random_steps(n: int) -> Tensor:
    """Gradient in step i with probability (i + 1) / (n + 1), independently (AlignProp as released, arXiv
    2310.03739)."""
    return torch.randint(n + 1, (n,)) <= torch.arange(n)


def all_steps(n: int) -> Tensor:
    """Gradient in every step (DRaFT)."""
    return torch.ones(n, dtype=torch.bool)


class Sampler:
    """Draws x_0 from a policy.

    Args:
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 is the conditional prediction alone.
        transition: the rule of a step (default: DDIM with eta 0, for a flow the Euler step).
    """

    def __init__(self, steps: int = 50, guidance_scale: float = 7.5, transition: Transition | None = None):
        self.steps, self.guidance_scale = steps, guidance_scale
        self.transition = transition or DDIM(eta=0.0)

    def timesteps(self, policy) -> Tensor:
        return policy.process.timesteps(self.steps)

    def predict(self, policy, x_t: Tensor, t: Tensor, cond: dict, keep: bool = True) -> tuple[Tensor, Tensor]:
        """The guided estimates of x_0 and eps at x_t (P, ...), t (P,).

        Without `keep` the network's output is a constant, and gradient passes to x_t through the formula alone.
        """
        with torch.set_grad_enabled(keep and torch.is_grad_enabled()):
            pred = policy.denoise(x_t, t, cond, self.guidance_scale)
        return policy.process.to_x0(pred, x_t, t), policy.process.to_eps(pred, x_t, t)

    def gaussian(self, policy, x_t: Tensor, t: Tensor, s: Tensor, cond: dict) -> tuple[Gaussian, Tensor, Tensor]:
        """The law of x_s given x_t under the policy as it is now, and its estimates of x_0 and eps; times (P,)."""
        x_0, eps = self.predict(policy, x_t, t, cond)
        return self.transition(policy.process, x_t.float(), x_0, eps, t, s), x_0, eps

    def __call__(
        self,
        policy,
        prompts: list[str] | None = None,
        *,
        cond: dict | None = None,
        x: Tensor | None = None,
        seeds: list[int] | None = None,
        hook: Hook | None = None,
        grad: Tensor | None = None,
        record: bool = False,
    ) -> State:
        """Runs the loop and returns its last state, x_0 (latents) in `state.x`.

        Args:
            prompts, cond: what to draw: one of the two; a prompt per particle, or the policy's conditioning.
            x: initial noise (P, ...); drawn where absent.
            seeds: one per particle: its noise is then its own, whatever else is in the batch.
            hook: the method's changes to the loop.
            grad: (steps,) bool: the steps whose prediction keeps its gradient, each recomputed in backward instead of
                stored. A step without still passes gradient along x_t -> x_s. None: no gradient at all.
            record: keep a Trajectory in `state.trajectory`.
        """
        hook = hook or Hook()
        with torch.set_grad_enabled(grad is not None):
            cond = policy.condition(prompts) if cond is None else cond
            n = len(next(iter(cond.values())))
            generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
            if x is None:
                x = randn_like(torch.empty(n, *policy.latent_shape, device=policy.device), generators)
            state = State(x.float(), cond, prompts, generators)
            state.group, state.logw = torch.arange(n, device=x.device), torch.zeros(n, device=x.device)
            before, grid = policy.calls.copy(), self.timesteps(policy).to(x.device)
            hook.on_init(policy, state)
            while state.i < self.steps:
                state.t, state.s = grid[state.i], grid[state.i + 1]
                self._step(policy, state, hook, grad, record)
                state.i = hook.control(policy, state)
            hook.on_end(policy, state)
            state.calls = Counter({k: v / len(state.x) for k, v in (policy.calls - before).items()})
        if record:
            state.trajectory = self._trajectory(state)
        return state

    def _step(self, policy, state: State, hook: Hook, grad: Tensor | None, record: bool) -> None:
        state.keep = grad is not None and bool(grad[state.i])
        if state.keep:
            now = copy.copy(state)  # backward predicts again, when `state` has moved on
            state.x0, state.eps = checkpoint(self._predicted, hook, policy, now, state.x, use_reentrant=False)
        else:
            hook.predict(policy, state, self)
        n, x_t = len(state.x), state.x
        t, s = state.t.expand(n), state.s.expand(n)
        gaussian = self.transition(policy.process, x_t, state.x0, state.eps, t, s)
        state.x = hook.propose(policy, state, gaussian)
        if record:
            noisy = bool((gaussian.std > 0).all())
            log_prob = gaussian.log_prob(state.x) if noisy else torch.zeros(n, device=x_t.device)
            latents = {"x_t": x_t, "x_s": state.x, "mean": gaussian.mean}
            step = {"t": t, "s": s, "log_prob": log_prob.detach()}
            state.history.append(step | {k: v.detach().cpu() for k, v in latents.items()})
        hook.after_step(policy, state)

    def _predicted(self, hook: Hook, policy, state: State, x: Tensor) -> tuple[Tensor, Tensor]:
        state.x = x
        hook.predict(policy, state, self)
        return state.x0, state.eps

    def _trajectory(self, state: State) -> Trajectory:
        steps = state.history
        column = lambda key: torch.stack([step[key] for step in steps], 1)
        cond = {k: v.detach() for k, v in state.cond.items()}
        names = ("x_t", "x_s", "t", "s", "log_prob", "mean")
        return Trajectory(*map(column, names), cond, state.prompts)
