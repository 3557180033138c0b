"""DAS: sequential Monte Carlo whose steps follow the reward's gradient, with a reward that is tempered in."""

import torch
from torch import Tensor

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.diffusion.transition import Gaussian
from lit_align.rewards.reward import Reward, judge, refuse_masks
from lit_align.steering.particles import Particles
from lit_align.steering.reward_guidance import RewardGuidance


class DAS(Particles, RewardGuidance):
    """Diffusion alignment as sampling (Kim et al., ICLR 2025, arXiv 2501.05803): K particles per prompt that follow
    p(x_0 | c) exp(r(c, x_0) / alpha) as K grows. With V_i = lambda_i r(c, x_0-hat(x_t)) / alpha at step i, and V = r(c,
    x_0) / alpha at the end, particles are

    - proposed from N(mu + std^2 lambda_{i+1} grad r / alpha, std^2), in place of p(x_s | x_t) = N(mu, std^2),
    - weighted by p / q exp(V_i - V_{i-1}),
    - resampled where their effective sample size is low.

    lambda_i = min((1 + gamma)^u - 1, 1), u the percentage of the run done (the paper's steps, of 100). The particle
    with the largest final weight is returned. The released code leaves gradients and V behind when it resamples; here
    they go with their particles.

    Args:
        reward: r, differentiable.
        particles: K.
        alpha: strength of the prior, in units of the reward per nat.
        gamma: growth of lambda; 0.008 reaches 1 after 87 % of the run.
        ess: a prompt's particles are resampled when their effective sample size is below this fraction of K.
    """

    needs_start = True

    def __init__(
        self, reward: Reward, particles: int = 4, alpha: float = 0.005, gamma: float = 0.008, ess: float = 0.5
    ):
        Particles.__init__(self, particles, ess)
        RewardGuidance.__init__(self, reward)
        refuse_masks(reward, "DAS")
        if alpha <= 0 or gamma <= 0:
            raise ValueError(f"DAS: alpha and gamma are greater than 0; got {alpha} and {gamma}.")
        self.alpha, self.gamma = alpha, gamma

    def temper(self, i: int, steps: int) -> float:
        """lambda at step i of a run; 1 at its end."""
        return min((1 + self.gamma) ** (100 * i / steps) - 1, 1.0) if i < steps else 1.0

    def check(self, policy, sampler: Sampler) -> None:
        super().check(policy, sampler)  # of the gradient
        if not sampler.step_std(policy)[:-1].any():
            raise ValueError(
                "DAS proposes and resamples by the noise of its steps, and this sampler has none: give it a transition "
                "with noise (DDIM with eta 1, FlowSDE)."
            )

    def nfe(self, inside: float, steps: int) -> float:
        return 2 * self.particles * inside

    def on_init(self, policy, state: State) -> None:
        self.spread(state)
        zero = torch.zeros(len(state.x), device=state.x.device)
        state.extras[self] = {"logw": zero, "ratio": zero, "before": zero}  # ratio: log p - log q of the last step
        super().on_init(policy, state)

    def value(self, policy, state: State) -> Tensor:
        value = super().value(policy, state) / self.alpha
        state.extras[self]["value"] = value.detach()
        return value

    def predict(self, policy, state: State, sampler: Sampler) -> None:
        state.extras[self]["gradient"] = self.gradient(policy, state, sampler)

    def weigh(self, state: State, twist: Tensor) -> None:
        """Multiplies the weights by p / q of the last step and exp(V - previous V)."""
        extras = state.extras[self]
        extras["logw"] = extras["logw"] + extras["ratio"] + twist - extras["before"]
        extras["before"] = twist

    def transition(self, policy, state: State, sampler: Sampler) -> Gaussian:
        self.weigh(state, self.temper(state.i, state.steps) * state.extras[self]["value"])
        self.resample(state)
        gaussian, extras = super().transition(policy, state, sampler), state.extras[self]
        extras["force"] = self.temper(state.i + 1, state.steps) * extras["gradient"]
        return Gaussian(gaussian.mean + gaussian.std.square() * extras["force"], gaussian.std)

    def propose(self, policy, state: State, gaussian: Gaussian) -> Tensor:
        x_s, extras = super().propose(policy, state, gaussian), state.extras[self]
        moved = x_s - gaussian.mean + 0.5 * gaussian.std.square() * extras["force"]
        extras["ratio"] = -(moved * extras["force"]).flatten(1).sum(1)  # of both densities; finite where std is 0
        return x_s

    def on_end(self, policy, state: State) -> None:
        super().on_end(policy, state)
        reward = judge(self.reward, policy, state.x, state.rows, state.minibatch)
        state.extras[self]["reward"] = reward
        self.weigh(state, reward / self.alpha)
        self.keep(state, state.extras[self]["logw"])
