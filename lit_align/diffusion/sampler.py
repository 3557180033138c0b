"""The one sampling loop."""

import copy
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
    """

    def __init__(
        self,
        steps: int = 50,
        guidance_scale: float = 7.5,
        transition: Transition | None = None,
        steering: list[Hook] | None = None,
    ):
        self.steps, self.guidance_scale = steps, guidance_scale
        self.transition = transition or DDIM(eta=0.0)
        self.steering = tuple(steering or ())

    @property
    def is_steered(self) -> bool:
        """Whether it differs from plain sampling."""
        return bool(self.steering)

    def plain(self) -> "Sampler":
        """The same sampler without steering."""
        return Sampler(self.steps, self.guidance_scale, self.transition)

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
        then does not matter."""
        t, s = self.timesteps(policy)[:2].unsqueeze(1)
        noise = torch.ones(1, 1, device=t.device)
        x_t = policy.process.add_noise(torch.zeros_like(noise), noise, t)
        return not self.transition(policy.process, x_t, torch.zeros_like(noise), noise, t, s).mean.abs().gt(1e-6).any()

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
            prompts, cond: what to draw: one prompt per sample, or the policy's conditioning.
            columns: further columns of the prompts' rows, for hooks with a reward.
            x: initial noise (P, ...); drawn if absent.
            seeds: one per sample; its noise then does not depend on what else is in the batch.
            hooks: a method's own hooks, around those of `steering`.
            grad: (steps,) bool: the steps whose prediction keeps its gradient; each is recomputed in backward instead
                of stored. The other steps still pass gradient along x_t -> x_s. None: no gradient at all.
            record: store a Trajectory in `state.trajectory`.
        """
        hooks = chain((*hooks, *self.steering), policy, self)
        with torch.set_grad_enabled(grad is not None):
            cond = policy.condition(prompts) if cond is None else cond
            n = len(next(iter(cond.values())))
            generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
            if x is None:
                x = randn_like(torch.empty(n, *policy.latent_shape, device=policy.device), generators)
            state = State(x.float(), cond, prompts, columns or {}, generators, self.steps, hooks=hooks)
            before, grid, state.i = policy.calls.copy(), self.timesteps(policy).to(x.device), 0
            hooks[0].on_init(policy, state)
            while state.i < self.steps:
                state.t, state.s = (grid[state.i + k].expand(len(state.x)) for k in (0, 1))
                self._step(policy, state, grad, record)
                state.i = hooks[0].control(policy, state)
            hooks[0].on_end(policy, state)
            state.calls = Counter({k: v / n for k, v in (policy.calls - before).items()})
        if record:
            state.trajectory = self._trajectory(state)
        return state

    def _step(self, policy, state: State, grad: Tensor | None, record: bool) -> None:
        hook, state.needs_grad = state.hooks[0], grad is not None and bool(grad[state.i])
        if state.needs_grad:
            now = copy.copy(state)  # backward predicts again, when `state` has moved on
            state.x0, state.eps = checkpoint(self._predicted, policy, now, state.x, use_reentrant=False)
        else:
            hook.predict(policy, state, self)
        x_t, gaussian = state.x, hook.transition(policy, state, self)
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
        state.hooks[0].predict(policy, state, self)
        return state.x0, state.eps

    def _trajectory(self, state: State) -> Trajectory:
        columns = (torch.stack([step[key] for step in state.history], 1) for key in STEP)
        return Trajectory(*columns, {k: v.detach() for k, v in state.cond.items()}, state.prompts)


STEP = ("x_t", "x_s", "t", "s", "log_prob", "mean")  # what is recorded of a step
