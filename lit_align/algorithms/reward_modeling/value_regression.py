"""SVDD-MC's value network: regression of a sample's reward on the states that it passed."""

import os

import torch
from torch import Tensor

from lit_align.algorithms.online import Online, repeat_rows
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import select_rows
from lit_align.diffusion.transition import DDIM
from lit_align.rewards.latent_value import LatentValue
from lit_align.rewards.reward import Reward


class ValueRegression(Online):
    """Trains v(x_t, t, c) to be E[r(c, x_0) | x_t], Monte Carlo regression (Li et al. 2024, arXiv 2408.08252, algorithm
    of SVDD-MC): samples of the frozen policy are rewarded, and (v(x_s, s, c) - r(c, x_0))^2 is minimised over the
    states x_s that they passed. The released code adds noise to images instead.

    The loss is in units of the rewards' variance, whose mean and variance are those of the first batch. Logs
    `train/r2`, the share of the variance that is explained. Writes the network to `<run>/value`.

    Args:
        reward: r.
        value: the network.
        samples_per_prompt: samples of a prompt in a batch.
        rollout: the sampler that SVDD will steer (default: 50 steps of DDIM with eta 1, guidance 7.5).
    """

    def __init__(
        self, reward: Reward, value: LatentValue, samples_per_prompt: int = 1, rollout: Sampler | None = None, **kwargs
    ):
        super().__init__(rollout=rollout or Sampler(50, 7.5, DDIM(eta=1.0)), **kwargs)
        self.policy.requires_grad_(False)
        self.reward, self.value = reward.eval().requires_grad_(False), value
        self.samples_per_prompt = samples_per_prompt
        with torch.no_grad():  # gives its layers their sizes
            x = torch.zeros(1, *self.policy.latent_shape)
            value(self.policy, x, None, self.rollout.timesteps(self.policy)[1:2], [""])

    @torch.no_grad()
    def collect(self, batch: dict) -> dict:
        """{"x" (N T, ...), "t" (N T,), "target" (N T,), "prompt"}: the states of N = B K samples before the last
        step."""
        rows, found = repeat_rows(batch, self.samples_per_prompt), []
        for part in torch.arange(len(rows["prompt"])).split(self.minibatch):
            some = select_rows(rows, part.tolist())
            state = self.rollout(self.policy, some["prompt"], columns=some["columns"], record=True)
            found.append((state.trajectory, self.judge(self.reward, state.x, some)))
        reward = self.log_reward(torch.cat([r for _, r in found]), rows["prompt"])
        if self.value.std == 1 and self.value.mean == 0:
            self.value.mean.fill_(reward.mean())
            self.value.std.fill_(reward.std().clamp(min=1e-3))
        x, t = (torch.cat([getattr(path, name)[:, :-1] for path, _ in found]) for name in ("x_s", "s"))  # (N, T, ...)
        steps = x.shape[1]
        prompts = [p for p in rows["prompt"] for _ in range(steps)]
        return {"x": x.flatten(0, 1), "t": t.flatten(), "target": reward.repeat_interleave(steps), "prompt": prompts}

    def optimizer_steps(self, collected: dict):
        """`updates` steps over all states, each on its own share of them."""
        for share in self.shares(len(collected["t"])):
            yield [select_rows(collected, share.tolist())]

    def batch_loss(self, m: dict) -> Tensor:
        target = m["target"].to(self.policy.device)
        value = self.value(self.policy, m["x"].to(target.device), None, m["t"].to(target.device), m["prompt"])
        error = (value - target).square().mean()
        self.log_mean("train/r2", 1 - error.detach() / target.var().clamp(min=1e-6), len(target))
        return error / self.value.std.square()

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            self.value.save(os.path.join(self.trainer.default_root_dir, "value"))
