"""DRaFT: backpropagates the reward through the last K sampling steps."""

import torch
from torch import Tensor

from lit_align.algorithms.reward_gradient.reward_gradient import RewardGradient
from lit_align.diffusion.sampler import last_k


class DRaFT(RewardGradient):
    """Clark et al. 2023, arXiv 2309.17400, algorithm 1: gradient of r(x_0(theta, c, x_T), c), with x_K constant.

    Args:
        K: number of last steps with gradient (DRaFT-K; the paper's choice is 1); None: all (DRaFT).
    """

    def __init__(self, K: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.K = self.rollout.steps if K is None else K
        if not 1 <= self.K <= self.rollout.steps:
            raise ValueError(f"K is {K}; this rollout allows 1 to {self.rollout.steps} steps.")

    def grad_steps(self, steps: int) -> Tensor:
        return last_k(steps, self.K)


class DRaFTLV(RewardGradient):
    """DRaFT-LV (Clark et al. 2023, arXiv 2309.17400, algorithm 1): DRaFT-1 plus n more estimates of its gradient from
    the same sample,

        x_1 = alpha_1 sg(x_0) + sigma_1 eps,    x_0-hat = (x_1 - sigma_1 eps_theta(x_1, 1, c)) / alpha_1,

    with time 1 the sampler's last noisy time. The paper adds the n + 1 gradients; here they are averaged.

    Args:
        n: draws of eps.
    """

    def __init__(self, n: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.n = n

    def generate(self, batch: dict) -> Tensor:
        cond = self.policy.condition(batch["prompt"], batch.get("columns"))
        x_0 = self.rollout(self.policy, cond=cond, grad=last_k(self.rollout.steps, 1)).x
        repeated = torch.cat([x_0.detach()] * self.n)  # (n B, ...)
        t = self.rollout.timesteps(self.policy)[-2].expand(len(repeated))
        x_1 = self.policy.process.add_noise(repeated, torch.randn_like(repeated), t)
        cond = {k: torch.cat([v] * self.n) for k, v in cond.items()}
        return torch.cat([x_0, self.rollout.predict(self.policy, x_1, t, cond)[0]])
