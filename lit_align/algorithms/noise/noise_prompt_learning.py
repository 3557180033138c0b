"""Golden noise's training: a network learns what re-denoising does to noise."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.algorithms.online import Online
from lit_align.diffusion.inversion import direction, invert, step
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import select_rows
from lit_align.rewards.reward import Reward
from lit_align.steering.golden_noise import NPNet


class NoisePromptLearning(Online):
    """Zhou et al., ICCV 2025 (arXiv 2411.09502, section 3). For each prompt of a batch, noise z takes one guided step,
    and from there one exact inverse step under weaker guidance, to z'; the pair is kept if the sample from z' has the
    higher reward. NPNet learns z' from z and the caption, by mean squared error. The policy is frozen.

    The paper keeps 100,000 pairs and sees them 30 times; here each batch's pairs are seen `updates` times. Logs
    `train/kept`, the share of pairs that are kept, and `train/golden_gain`, the mean gain in reward of all pairs.
    Writes the network to `<run>/noise/npnet.safetensors`, which `GoldenNoise` loads.

    Args:
        reward: filters pairs; None keeps all of them, and draws no sample.
        inversion_scale: guidance on the way back.
        width: of the Swin's first stage.
        depths: of its stages.
        heads: of their attention.
        rollout: the sampler that the network is for, deterministic (default: 10 steps, guidance 5.5).
    """

    feedback = ("prompt",)

    def __init__(
        self,
        reward: Reward | None,
        inversion_scale: float = 1.0,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        rollout: Sampler | None = None,
        **kwargs,
    ):
        super().__init__(rollout=rollout or Sampler(10, 5.5), **kwargs)
        self.policy.requires_grad_(False)
        self.reward, self.inversion_scale = reward and reward.eval().requires_grad_(False), inversion_scale
        text = self.policy.null(1)["text"].numel()
        self.net = NPNet(self.policy.latent_shape, text, width=width, depths=depths, heads=heads)
        if self.rollout.step_std(self.policy).any():
            raise ValueError("NoisePromptLearning inverts a step, and the rollout's have noise: set DDIM's eta to 0.")

    def redenoise(self, z: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """z' (B, ...) of noise z: a step with the rollout's guidance and the inverse step with `inversion_scale`."""
        policy, process = self.policy, self.policy.process
        t, s = (self.rollout.timesteps(policy)[k].to(z.device).expand(len(z)) for k in (0, 1))
        along = direction(process, policy.denoise(z, t, cond, self.rollout.guidance_scale), z, t)
        x_s = step(process, z, along, t, s)
        back = direction(process, policy.denoise(x_s, t, cond, self.inversion_scale), x_s, t)
        return invert(process, x_s, back, t, s)

    @torch.no_grad()
    def collect(self, batch: dict) -> dict | None:
        rows, found = {"prompt": batch["prompt"], "columns": batch["columns"]}, []
        for part in torch.arange(len(rows["prompt"])).split(self.minibatch):
            some = select_rows(rows, part.tolist())
            z = torch.randn(len(part), *self.policy.latent_shape, device=self.policy.device)
            cond = self.policy.condition(some["prompt"], some["columns"])
            golden = self.redenoise(z, cond)
            gain = torch.ones(len(z), device=z.device)
            if self.reward:
                before, after = (self.rewards_from(x, some) for x in (z, golden))
                gain = after - before
                self.log_mean("train/golden_gain", gain.mean(), len(z))
            found.append({"z": z, "golden": golden, "text": cond["text"], "gain": gain, "prompt": some["prompt"]})
        pairs = {k: torch.cat([f[k] for f in found]) for k in ("z", "golden", "text", "gain")}
        kept = pairs["gain"] > 0
        self.log_mean("train/kept", kept.float().mean(), len(kept))
        pairs |= {"prompt": rows["prompt"]}
        return select_rows(pairs, kept.nonzero().flatten().tolist()) if kept.any() else None

    def rewards_from(self, x: Tensor, rows: dict) -> Tensor:
        """Rewards (B,) of the samples from noise x."""
        state = self.rollout(self.policy, rows["prompt"], columns=rows["columns"], x=x)
        return self.judge(self.reward, state.x, rows)

    def optimizer_steps(self, collected: dict | None):
        """`updates` steps, each on all pairs that were kept; where none was, steps without a gradient."""
        yield from ([collected] for _ in range(self.updates))

    def batch_loss(self, m: dict) -> Tensor:
        return F.mse_loss(self.net(m["z"], m["text"]), m["golden"])

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            self.net.save(os.path.join(self.trainer.default_root_dir, "noise"))
