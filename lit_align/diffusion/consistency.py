"""The processes of distilled models that are sampled in a few steps, on the grid of their distillation."""

import torch
from torch import Tensor

from lit_align.diffusion.process import VP, append_dims


class Consistency(VP):
    """The process of latent consistency models (arXiv 2310.04378; diffusers' LCMScheduler) and of trajectory
    consistency models (arXiv 2402.19159; TCDScheduler): a sample is predicted from every time, and noised again.

    The published steps are those of the transitions CPS(1) and TCD(0.3).

    Args:
        distilled_steps: times of the distillation, of which a grid takes n.
        timestep_scaling: k of the boundary condition x_0 = c_skip x_t + c_out x_0-hat, with c_skip = 1 / (1 + (2 k
            t)^2) and c_out = 2 k t / sqrt(1 + (2 k t)^2); None: x_0 is x_0-hat.
    """

    consistency = True

    def __init__(self, *args, distilled_steps: int = 50, timestep_scaling: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.distilled_steps, self.timestep_scaling = distilled_steps, timestep_scaling

    @classmethod
    def from_scheduler(cls, config: dict) -> "Consistency":
        from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

        lcm = config["_class_name"] == "LCMScheduler"
        c = (LCMScheduler if lcm else TCDScheduler).from_config(config).config
        tables = DDIMScheduler.from_config({k: v for k, v in c.items() if k != "_use_default_values"})
        scaling = c.timestep_scaling if lcm else None
        options = {"distilled_steps": c.original_inference_steps, "timestep_scaling": scaling}
        return cls(tables.alphas_cumprod, c.prediction_type, set_alpha_to_one=lcm, **options)

    def timesteps(self, n: int) -> Tensor:
        total = self.distilled_steps
        if not 1 <= n <= total:
            raise ValueError(f"{n} sampling steps asked for; this process was distilled to between 1 and {total}.")
        every = self.num_train_timesteps // total
        skipped = torch.linspace(0, total, n + 1, dtype=torch.float64)[:-1].floor().long()
        end = torch.tensor([-1 if self.set_alpha_to_one else 0])
        return torch.cat([(total - skipped) * every - 1, end]).to(self.alphas.device)

    def to_x0(self, pred: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = super().to_x0(pred, x_t, t)
        if self.timestep_scaling is None:
            return x_0
        k = append_dims(2 * self.timestep_scaling * t.float().clamp(min=0), x_t)  # -1 is clean data, as it is
        return x_t.float() / (1 + k.square()) + x_0 * k / (1 + k.square()).sqrt()
