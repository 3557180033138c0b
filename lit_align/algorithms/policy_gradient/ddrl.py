"""DDRL: Flow-GRPO whose anchor is the denoising loss on data in place of the KL to a reference."""

import torch
from torch import Tensor

from lit_align.algorithms.policy_gradient.flow_grpo import FlowGRPO
from lit_align.diffusion.state import Trajectory, select_rows


class DDRL(FlowGRPO):
    """Ye et al. 2025, arXiv 2512.04332 (data-regularised): the policy gradient + data_weight times the denoising loss
    on the batch's images, the forward KL from the data up to a constant. It does not depend on what a reference says
    about samples that it has never seen.

    As released, the images are noised to the times of the rollout, and advantages are GRPO's. (The paper's advantage is
    -exp(-A), which the released configs leave out.)

    Args:
        data_weight: of the denoising loss (released: 0.01).
    """

    feedback = ("prompt", "image")

    def __init__(self, data_weight: float = 0.01, beta: float = 0.0, **kwargs):
        super().__init__(beta=beta, **kwargs)
        self.data_weight = data_weight

    def collect(self, batch: dict) -> tuple[Trajectory, Tensor]:
        collected = super().collect(batch)
        self._data = {"x_0": self.latents(batch, "image"), "cond": self.cond(batch), "prompt": batch["prompt"]}
        return collected

    def update(self, trajectory: Trajectory, advantage: Tensor, groups: Tensor, steps: Tensor) -> list[dict]:
        """The minibatches of the rollout, and those of the images."""
        n = len(self._data["x_0"])
        parts = torch.arange(n).split(self.minibatch)
        images = [select_rows(self._data, part.tolist()) | {"share": len(part) / n} for part in parts]
        return [*super().update(trajectory, advantage, groups, steps), *images]

    def batch_loss(self, m: dict) -> Tensor:
        if "x_0" not in m:
            return super().batch_loss(m)
        process, x_0 = self.policy.process, m["x_0"]
        grid = self.rollout.timesteps(self.policy).to(x_0.device)[:-1]
        t, eps = grid[torch.randint(len(grid), (len(x_0),), device=x_0.device)], torch.randn_like(x_0)
        prediction = self.policy.denoise(process.add_noise(x_0, eps, t), t, m["cond"])
        error = self.policy.error(prediction, process.target(x_0, eps, t)).mean()
        self.log_mean("train/data_error", error.detach(), len(x_0))
        return self.data_weight * m["share"] * error
