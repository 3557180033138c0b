"""The reward-gradient family: prompts -> sampling, with gradient at chosen steps -> decode -> `loss(reward)`."""

from typing import Any

from torch import Tensor

from lit_align.algorithms.algorithm import Algorithm
from lit_align.algorithms.online import tile_rows
from lit_align.diffusion.sampler import Sampler, all_steps
from lit_align.diffusion.state import State
from lit_align.rewards.reward import Reward


class RewardGradient(Algorithm):
    """Base of the methods that follow the gradient of a differentiable reward. A method overrides `grad_steps` or
    `generate`, and `loss`.

    Optimization is automatic: the Trainer clips and accumulates gradients. Logs `train/reward` (mean).

    Args:
        reward: the differentiable reward to maximise.
        rollout: the sampler that is differentiated (default: 50 DDIM steps, guidance 7.5).
    """

    feedback, samples_online = ("prompt",), True

    def __init__(self, reward: Reward, rollout: Sampler | None = None, **kwargs):
        super().__init__(**kwargs)
        if not reward.differentiable:
            raise ValueError(
                f"{type(self).__name__} needs the reward's gradient and {reward.name} has none: "
                "choose a differentiable reward, or a method of the policy_gradient family."
            )
        self.reward = reward.eval().requires_grad_(False)
        self.rollout = rollout or Sampler()

    def grad_steps(self, steps: int) -> Tensor:
        """(steps,) bool: steps of the rollout that keep their gradient. Each is recomputed in backward, so memory is
        that of one step."""
        return all_steps(steps)

    def generate(self, batch: dict) -> Tensor:
        """Latents (n B, ...) with gradient, for the batch's B prompts repeated n times: a b a b."""
        return self.roll(batch, grad=self.rank_zero(self.grad_steps(self.rollout.steps))).x

    def roll(self, batch: dict, **kwargs) -> State:
        """The rollout's last state for the rows of a batch."""
        return self.rollout(self.policy, batch["prompt"], columns=batch.get("columns"), **kwargs)

    def loss(self, reward: Tensor) -> Tensor:
        """The method's loss per image: (n B,) from rewards (n B,)."""
        return -reward

    def batch_loss(self, batch: dict) -> Tensor:
        x_0 = self.generate(batch)
        rows = tile_rows(batch, len(x_0) // len(batch["prompt"]))
        reward = self.log_reward(self.judge(self.reward, x_0, rows), rows["prompt"])
        return self.connected(self.loss(reward).mean())

    def connected(self, loss: Tensor) -> Tensor:
        """Returns the loss; if no step kept its gradient, connects it to the parameters with gradient zero."""
        return loss if loss.requires_grad else loss + self.zero_loss()

    def rank_zero(self, value: Any) -> Any:
        """Rank 0's value on every rank: with sharded weights all ranks must run the same forwards."""
        return self.trainer.strategy.broadcast(value)
