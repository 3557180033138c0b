"""DPOK: policy gradient with a KL penalty at every step and a learnt baseline."""

import torch
from torch import Tensor

from lit_align.algorithms.parts.latent_critic import Value, param_groups
from lit_align.algorithms.policy_gradient.policy_gradient import PolicyGradient, StepBatch


class DPOK(PolicyGradient):
    """Fan et al. 2023, arXiv 2305.16381, algorithm 1: -reward_weight A clip(rho, 1 - e, 1 + e) + kl_weight KL(p_theta
    || p_ref) per step, with A = r - V(x_t, c, t) and unnormalised reward r.

    The ratio is clipped on both sides without PPO's minimum, as released: outside the interval the reward gives no
    gradient. The KL is that of the two Gaussians (released: the squared distance of the noise predictions, which is 10
    times as large at most of 50 DDIM steps: multiply a released kl_weight by 10). V starts at the first rollout's mean
    reward. It is fitted to the reward by squared error in the policy's steps (released: before them, on a replay
    buffer).

    Args:
        reward_weight, kl_weight: of the two terms.
        clip_range: e.
        value_lr: learning rate of V.
    """

    uses_reference, uses_advantage = True, False

    def __init__(
        self,
        reward_weight: float = 10.0,
        kl_weight: float = 0.1,
        clip_range: float = 1e-4,
        value_lr: float = 1e-4,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reward_weight, self.kl_weight, self.clip_range = reward_weight, kl_weight, clip_range
        self.value_lr = value_lr
        self.value = Value(self.policy, self.rollout.timesteps(self.policy)[:-1])
        torch.nn.init.zeros_(self.value.head.weight)  # V is a constant at the start

    def parameter_groups(self) -> list:
        return param_groups(self.policy, self.value, self.value_lr)

    def advantages(self, prompts: list[str], reward: Tensor) -> Tensor:
        if self.batch_number == 0 and not self.value.head.weight.any():  # not that of `init_from`
            self.value.head.bias.data.fill_(self.all_gather(reward).mean().item())
        return reward

    def loss(self, step: StepBatch) -> Tensor:
        e, value = self.clip_range, self.value(step.x_t, self.policy.summary(step.cond), step.t)
        advantage = step.advantage - value.detach()
        kl, value_loss = step.gaussian.kl(step.reference), (value - step.advantage).square()
        self.log_mean("train/kl_step", kl.detach().mean(), len(kl))
        self.log_mean("train/value_loss", value_loss.detach().mean(), len(kl))
        clipped = torch.clamp(step.ratio, 1 - e, 1 + e)
        return -self.reward_weight * advantage * clipped + self.kl_weight * kl + value_loss
