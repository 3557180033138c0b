"""The base of every method: optimizer, a checkpoint of what is trained, validation by sampling."""

import os
from contextlib import AbstractContextManager, nullcontext

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_align.diffusion.sampler import Sampler, State
from lit_align.paths import find
from lit_align.policies.policy import Policy
from lit_align.rewards.reward import Reward


class Algorithm(L.LightningModule):
    """What all methods share. A family adds the loop (`step`), a method adds the equation.

    Args:
        policy: the model to align.
        optimizer: called with the trainable parameters (default: torch's AdamW).
        lr_scheduler: called with the optimizer, stepped after every optimizer step; by a method that makes several on a
            batch, after the batch.
        sampler: how images are drawn at validation, test and predict (default: 50 DDIM steps, guidance 7.5).
        rewards: scores of those images, logged as `val/reward/<name>`; the first is the headline of `test`.
        init_from: a checkpoint of this library whose weights training starts from (weights only: step, optimizer and
            random state start afresh; resuming is Lightning's `--ckpt_path`). A fully trained reference starts there
            too.
        caption_dropout: share of training captions replaced by the empty one, in [0, 1], where a denoising loss is
            learnt from.
    """

    feedback: tuple[str, ...] = ()  # the batch keys the method learns from
    uses_reference = False  # whether training compares with the reference policy
    moves_reference = False  # whether the method refreshes it
    samples_online = False  # whether training samples from prompts
    max_grad_norm: float | None = None  # gradient clipping where a method steps by hand; the Trainer's is off there

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        sampler: Sampler | None = None,
        rewards: list[Reward] | None = None,
        init_from: str | None = None,
        caption_dropout: float = 0.0,
    ):
        super().__init__()
        self.policy = policy
        self.optimizer, self.lr_scheduler = optimizer or torch.optim.AdamW, lr_scheduler
        self.sampler = sampler or Sampler()
        self.rewards = torch.nn.ModuleList(rewards or []).eval().requires_grad_(False)
        self.caption_dropout = caption_dropout
        self.strict_loading = False  # a checkpoint holds what is trained and nothing else
        self.init_from = init_from
        self._logged: dict[str, tuple] = {}  # name -> (sum, rows) of this training batch

    def batch_loss(self, batch: dict) -> Tensor:
        """The training loss of one batch, a scalar."""
        raise TypeError(f"{type(self).__name__} trains nothing: use predict or test.")

    # What a batch holds, as the policy's own tensors

    def latents(self, batch: dict, key: str) -> Tensor:
        """The batch's images under `key` as latents (B, C, h, w): cached ones, or encoded now."""
        cached = batch.get(f"{key}_latents")
        return self.policy.encode(batch[key]) if cached is None else cached

    def cond(self, batch: dict) -> dict[str, Tensor]:
        """The batch's captions as conditioning, some of them dropped while training: every tensor (B, ...)."""
        keep = torch.rand(len(batch["prompt"])) >= (self.caption_dropout if self.trainer.training else 0.0)
        if "cond" not in batch:
            return self.policy.condition([p if k else "" for p, k in zip(batch["prompt"], keep.tolist())])
        if keep.all():
            return batch["cond"]
        keep, empty = keep.to(self.device), self.policy.condition([""])
        return {k: torch.where(keep.view(-1, *[1] * (v.ndim - 1)), v, empty[k]) for k, v in batch["cond"].items()}

    # Training

    def initialise(self) -> None:
        """Loads `init_from`, once, when everything that it may hold has been built."""
        if self.init_from:
            self.load_weights(self.init_from)
            self.init_from = None

    def setup(self, stage: str) -> None:
        self.initialise()
        fresh = self.trainer.global_step == 0  # after a fit in this process the weights are no reference any more
        if self.uses_reference or (stage == "test" and fresh and not self.policy.trains_text):
            self.policy.add_reference(moving=self.moves_reference and stage == "fit")  # test compares with the base

    def configure_model(self) -> None:
        """Shards the denoiser under a ModelParallelStrategy (FSDP2), and ValueError where more is trained: nobody would
        keep that alike on all ranks. Otherwise nothing."""
        if self.device_mesh is not None:
            self.policy.shard(self.device_mesh["data_parallel"])
            if beside := [n for n, p in self.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]:
                raise ValueError(
                    f"{type(self).__name__} trains {beside[0]} and {len(beside) - 1} more tensors beside the denoiser, "
                    "which FSDP does not shard: set --trainer.strategy ddp."
                )

    def parameter_groups(self) -> list:
        """What the optimizer gets: parameters, or groups of them."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @property
    def batch_number(self) -> int:
        """Of the training batch at hand, from 0, over all epochs and resumptions."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        """Seeds the step from (seed, batch number, rank): a resumed run draws what the uninterrupted one would have."""
        self._logged = {}
        base = int(os.environ.get("PL_GLOBAL_SEED", 0))
        torch.manual_seed(base * 1_000_003 + self.batch_number * self.trainer.world_size + self.global_rank)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        self.check(batch)
        loss = self.require_finite(self.batch_loss(batch), batch["index"])
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer) -> None:
        if not self.automatic_optimization:  # an fp16 scaler has undone its scaling by now
            self.clip_by_group(optimizer, self.max_grad_norm)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_by_group(optimizer, gradient_clip_val)

    def clip_by_group(self, optimizer, max_norm: float | None) -> None:
        """Clips the gradients of each parameter group by itself, so that a value function's do not shrink the
        policy's."""
        for group in optimizer.param_groups if max_norm else ():
            torch.nn.utils.clip_grad_norm_(group["params"], max_norm)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Around each backward pass of an optimizer step made by hand: under DDP ranks exchange gradients in the last
        alone."""
        return nullcontext() if last or self.trainer.world_size == 1 else self.trainer.strategy.block_backward_sync()

    def require_finite(self, loss: Tensor, rows: list) -> Tensor:
        """The loss; FloatingPointError, which names the rows it comes from, where it is not finite."""
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step} on {rows}: "
                "lower the learning rate, use bf16 in place of fp16, or look at these rows."
            )
        return loss

    def log_reward(self, reward: Tensor, prompts: list[str]) -> Tensor:
        """Rewards of N samples, (N,) or (N, R), with their mean over all ranks logged; FloatingPointError where one is
        not finite."""
        fine = reward.isfinite().view(len(reward), -1).all(1)  # (N,)
        if not fine.all():
            bad = [p for p, ok in zip(prompts, fine.tolist()) if not ok]
            raise FloatingPointError(f"the reward is not finite at step {self.global_step} for {bad[0]!r}.")
        self.log_mean("train/reward", self.all_gather(reward.detach().mean()).mean(), len(reward))
        for name, r in getattr(self.reward, "latest", {}).items():  # of a weighted sum
            self.log_mean(f"train/reward/{name}", r.mean(), len(r))
        return reward

    def zero_loss(self) -> Tensor:
        """A loss of 0 that reaches every trained tensor: a rank without a sample keeps step with the others (under DDP;
        FSDP's ranks have to run the same forwards)."""
        return 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)

    def check(self, batch: dict) -> None:
        """Raises TypeError where the batch lacks what the method learns from."""
        missing = [k for k in self.feedback if k not in batch and f"{k}_latents" not in batch]
        if missing:
            raise TypeError(
                f"{type(self).__name__} learns from {', '.join(self.feedback)}; "
                f"{type(self.trainer.datamodule).__name__} gave {', '.join(batch)}: choose another --data."
            )

    def on_train_end(self) -> None:
        """Leaves the trained weights where diffusers reads them: `<run>/policy`."""
        self.policy.save(os.path.join(self.trainer.default_root_dir, "policy"))

    # Checkpoints: what is trained, and only that

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Leaves out a reference that moved where the policy's does not: in a test."""
        if "state_dict" in checkpoint and not self.policy.reference_moves:  # sharded weights lie elsewhere
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("policy._frozen.reference.")}

    def state_dict(self, *args, **kwargs) -> dict:
        prefix, own = kwargs.get("prefix", ""), {n for n, p in self.named_parameters() if p.requires_grad}
        kept = {prefix + name for name in own | {f"policy.{name}" for name in self.policy.state_names()}}
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k in kept or k.endswith("_extra_state")}

    def load_weights(self, path: str) -> None:
        """Loads the trained weights of a checkpoint file; ValueError when it holds none of this policy's."""
        weights = torch.load(find(path), map_location="cpu", weights_only=True)["state_dict"]
        if not set(weights) & {name for name, p in self.named_parameters() if p.requires_grad}:
            raise ValueError(f"init_from {path} holds no weight of this policy: check policy and adapter against it.")
        self.load_state_dict(weights, strict=False)

    # Sampling

    def draw(self, batch: dict) -> State:
        """The sampler's last state for the batch's prompts, each seeded by its row."""
        return self.sampler(self.policy, batch["prompt"], seeds=batch["index"])

    @torch.no_grad()
    def sample(self, batch: dict) -> dict:
        """Draws one image per prompt: {"image" (B, 3, H, W), "scores": {name: (B,)}, "latents"}."""
        state = self.draw(batch)
        image = self.policy.decode(state.x).float()
        scores = {reward.name: reward(image, batch["prompt"]).float() for reward in self.rewards}
        return {"image": image, "scores": scores, "latents": state.x}

    def baseline(self, batch: dict) -> dict | None:
        """What `test` compares `sample` with: the reference on the same prompts and seeds, where there is one that
        stayed."""
        if not self.policy.has_reference or self.policy.reference_moves:
            return None
        with self.policy.reference():
            return self.sample(batch)

    def outputs(self, batch: dict, sample: dict) -> dict:
        """What callbacks get to see of a prompt batch."""
        rows = {k: batch[k] for k in ("prompt", "index", "seed", "columns") if k in batch}
        return rows | {"image": sample["image"].cpu(), "scores": sample["scores"]}

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict:
        sample, n = self.sample(batch), len(batch["prompt"])
        for name, score in sample["scores"].items():
            self.log_mean(f"val/reward/{name}", score.mean(), n)
        self.log_diversity("val", sample["latents"])
        return self.outputs(batch, sample)

    def log_diversity(self, stage: str, latents: Tensor) -> None:
        """Mean distance between two samples, per latent dimension."""
        if len(latents) > 1:
            x = latents.float().flatten(1)
            self.log_mean(f"{stage}/diversity", torch.pdist(x).mean() / x.shape[1] ** 0.5, len(x))

    def test_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict:
        """Samples and the baseline's samples on the same prompts and seeds."""
        sample = self.sample(batch)
        out = self.outputs(batch, sample)
        for name, score in sample["scores"].items():
            self.log_mean(f"test/reward/{name}", score.mean(), len(score))
        self.log_diversity("test", sample["latents"])
        if before := self.baseline(batch):
            drift = self.policy.error(sample["latents"], before["latents"]).sqrt()  # (B,)
            self.log_mean("test/drift", drift.mean(), len(drift))
            out |= {"reference_image": before["image"].cpu(), "reference_scores": before["scores"]}
        return out

    def predict_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict:
        return self.outputs(batch, self.sample(batch))

    def log_mean(self, name: str, value: Tensor, n: int) -> None:
        """Logs a mean over n rows: while training of this rank's batch, whatever the number of calls; otherwise of the
        epoch and all ranks."""
        if train := self.trainer.training:
            total, rows = self._logged.get(name, (0.0, 0))
            self._logged[name] = total, rows = total + value.detach() * n, rows + n
            value = total / rows
        kwargs = {} if train else {"on_step": False, "on_epoch": True, "sync_dist": True, "add_dataloader_idx": False}
        self.log(name, value, batch_size=n, prog_bar=name == "train/reward", **kwargs)
