"""FK steering: resamples particles during sampling by potentials of the reward of their estimated x_0."""

from typing import Literal

import torch

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.rewards.reward import Reward, judge, refuse_masks
from lit_align.steering.particles import Particles


class FKSteering(Particles):
    """Singhal et al. 2025, arXiv 2501.06848: K particles per prompt, with Feynman-Kac potentials of r(c, x_0-hat). A
    prompt's particles are resampled when their weights degenerate; the best one by r is returned.

    Weights that did not lead to resampling multiply the next ones (released: they are dropped). At the last step the
    potentials are completed so that their product is exp(lambda r(c, x_0)): as K grows, particles follow p(x_0 | c)
    exp(lambda r). Steps need noise, or copies of a particle stay identical.

    Args:
        reward: r.
        particles: K.
        lmbda: lambda, the inverse temperature, in 1/reward.
        potential: difference (r - previous r), max (largest r so far) or sum (sum of r so far).
        start, end, every: resampling times, as fractions of the run: at `start`, then each `every` up to `end`, and at
            the last step. (The paper: steps 20 to 80, every 20, of 100.)
        ess: a prompt's particles are resampled when their effective sample size is below this fraction of K.
    """

    def __init__(
        self,
        reward: Reward,
        particles: int = 4,
        lmbda: float = 10.0,
        potential: Literal["difference", "max", "sum"] = "max",
        start: float = 0.2,
        end: float = 0.8,
        every: float = 0.2,
        ess: float = 0.5,
    ):
        super().__init__(particles, ess)
        refuse_masks(reward, "FKSteering")
        self.reward, self.lmbda, self.potential = reward.eval().requires_grad_(False), lmbda, potential
        self.start, self.end, self.every = start, end, every
        if not (0 <= start <= end <= 1 and every > 0):
            raise ValueError(f"FKSteering: 0 <= start <= end <= 1 and every > 0; got {start}, {end} and {every}.")

    def schedule(self, steps: int) -> set[int]:
        """Steps of a run after which particles are resampled, the last one included."""
        count = int((self.end - self.start) / self.every + 1e-6) + 1
        return {min(round((self.start + k * self.every) * steps), steps - 1) for k in range(count)} | {steps - 1}

    def check(self, policy, sampler: Sampler) -> None:
        if sum(isinstance(hook, FKSteering) for hook in sampler.steering) > 1:
            raise ValueError("steering lists FKSteering twice; their particles cannot be told apart: keep one.")
        noisy = (sampler.step_std(policy) > 0).tolist()
        steps = self.schedule(sampler.steps) - {sampler.steps - 1}
        if not any(noisy[i + 1] for i in steps):
            raise ValueError(
                "FKSteering resamples particles before a noisy step, and this sampler has none after its schedule "
                f"(steps {sorted(steps)} of {sampler.steps}): it would only take the best of {self.particles} samples. "
                "Give the sampler a transition with noise (DDIM with eta 1, FlowSDE), or use BestOfN."
            )

    def on_init(self, policy, state: State) -> None:
        self.spread(state)
        zero = torch.zeros(len(state.x), device=state.x.device)
        before = torch.full_like(zero, -torch.inf) if self.potential == "max" else zero
        # reward: r of the potential; log_product: sum of log potentials; logw: of those since the last resampling
        state.extras[self] = {"reward": before, "log_product": zero.clone(), "logw": zero.clone()}
        super().on_init(policy, state)

    def after_step(self, policy, state: State) -> None:
        super().after_step(policy, state)
        if state.i not in self.schedule(state.steps):
            return
        extras, last = state.extras[self], state.i == state.steps - 1
        with torch.no_grad():
            reward = judge(self.reward, policy, state.x if last else state.x0, state.rows, state.minibatch)
        if last:
            log_g = self.lmbda * reward - extras["log_product"]
        elif self.potential == "difference":
            log_g = self.lmbda * (reward - extras["reward"])
        else:
            previous = extras["reward"]
            reward = torch.maximum(reward, previous) if self.potential == "max" else reward + previous
            log_g = self.lmbda * reward
        extras |= {"reward": reward, "log_product": extras["log_product"] + log_g, "logw": extras["logw"] + log_g}
        self.resample(state)

    def on_end(self, policy, state: State) -> None:
        """Keeps the best particle of each sample."""
        super().on_end(policy, state)
        self.keep(state, state.extras[self]["reward"])
