"""The half of a method that trains: optimizer, training step, a checkpoint of what is trained."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_align.algorithms import restore
from lit_align.algorithms.parts.clipping import clip_gradients
from lit_align.algorithms.sampling import Sampling
from lit_align.paths import find
from lit_align.policies.adapters import LoRA
from lit_align.policies.policy import Policy
from lit_align.rewards.reward import Reward


class Algorithm(Sampling):
    """What all methods share. A family adds the loop (`batch_loss`), a method adds the equation.

    Args:
        policy: the model to align.
        optimizer: called with the trainable parameters (default: AdamW with learning rate 1e-5, with LoRA 1e-4).
        lr_scheduler: called with the optimizer, stepped after every optimizer step; by a method that makes several on a
            batch, after the batch.
        init_from: a checkpoint of this library; training starts from its weights, and step, optimizer and random state
            start afresh (to resume a run give `--ckpt_path`). A fully trained reference starts there as well.
        caption_dropout: share of training captions replaced by the empty one, in [0, 1], in denoising losses.
        sampler, rewards: see Sampling.
    """

    feedback: tuple[str, ...] = ()  # the batch keys the method learns from
    uses_reference = False  # True if training compares with the reference policy
    moves_reference = False  # True if the method updates the reference
    samples_online = False  # True if training samples from prompts
    max_grad_norm: float | None = None  # gradient clipping of a method with manual optimization

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        caption_dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(policy=policy, **kwargs)
        if optimizer is None:
            optimizer = partial(torch.optim.AdamW, lr=1e-4 if isinstance(policy.adapter, LoRA) else 1e-5)
        self.optimizer, self.lr_scheduler, self.init_from = optimizer, lr_scheduler, init_from
        self.caption_dropout = caption_dropout
        self.strict_loading = False  # a checkpoint holds what is trained and nothing else

    def batch_loss(self, batch: dict) -> Tensor:
        """The training loss of one batch, a scalar. A method with manual optimization gets its minibatches here, and
        gives each one's share of the loss."""
        raise TypeError(f"{type(self).__name__} has no training loss.")

    # What a batch holds, as the policy's own tensors

    def latents(self, batch: dict, key: str) -> Tensor:
        """The batch's images under `key` as latents (B, ...), or (B, K, ...) of the lists in `images`: cached ones, or
        encoded now."""
        cached = batch.get(f"{key}_latents")
        if cached is not None:
            return cached
        images = batch[key]
        if key != "images":
            return self.policy.encode(images)
        return self.policy.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def cond(self, batch: dict) -> dict[str, Tensor]:
        """The batch's captions as conditioning, some of them dropped in training: every tensor (B, ...)."""
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
        super().setup(stage)
        if stage == "fit":
            self.check_columns([part for part in self.children() if isinstance(part, Reward)], "train")
        self.initialise()
        fresh = self.trainer.global_step == 0  # after a fit in this process the weights are no longer the reference's
        if self.uses_reference or (stage == "test" and fresh and not self.policy.trains_text):
            self.policy.add_reference(moving=self.moves_reference and stage == "fit")  # test compares with the base

    def configure_model(self) -> None:
        """Shards the denoiser under a ModelParallelStrategy (FSDP2). Raises ValueError if parameters outside the
        denoiser are trainable: FSDP would not synchronise them."""
        if self.device_mesh is not None:
            self.policy.shard(self.device_mesh["data_parallel"])
            if beside := [n for n, p in self.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]:
                raise ValueError(
                    f"{type(self).__name__} trains {beside[0]} and {len(beside) - 1} more tensors outside the "
                    "denoiser, which FSDP does not shard: set --trainer.strategy ddp."
                )

    def parameter_groups(self) -> list:
        """What the optimizer gets: parameters, or groups of them."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameter_groups())
        self._hyperparameters = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @property
    def batch_number(self) -> int:
        """The number of the training batch, from 0, over all epochs and resumptions."""
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

    def on_train_start(self) -> None:
        if self.trainer.ckpt_path:
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            restore.restore_hyperparameters(self.trainer.optimizers[0], self._hyperparameters, schedulers)

    def on_before_optimizer_step(self, optimizer) -> None:  # an fp16 scaler has undone its scaling by now
        """Clips the gradients of each parameter group apart, so that a value function's gradients do not shrink the
        policy's, and logs their norm before clipping as `train/grad_norm`.

        Raises FloatingPointError if it is not finite, before the step. (In 16-mixed precision the loss scaler skips
        such a step.)"""
        by_value = self.trainer.gradient_clip_algorithm == "value"
        max_norm = self.trainer.gradient_clip_val if self.automatic_optimization else self.max_grad_norm
        norms = [clip_gradients(group["params"], None if by_value else max_norm) for group in optimizer.param_groups]
        norm = torch.stack(norms).norm()
        if not norm.isfinite() and self.trainer.precision != "16-mixed":
            raise FloatingPointError(
                f"the gradient is {norm.item()} at step {self.global_step}, and no weight was changed: lower the "
                "learning rate, or look at the rows of this batch."
            )
        self.log("train/grad_norm", norm)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Leaves clipping by norm to `on_before_optimizer_step`."""
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Context for one backward of an accumulated optimizer step: under DDP, gradients are synchronised only when
        `last` is true."""
        return nullcontext() if last or self.trainer.world_size == 1 else self.trainer.strategy.block_backward_sync()

    def require_finite(self, loss: Tensor, rows: list) -> Tensor:
        """Returns the loss; raises FloatingPointError, naming the rows it comes from, if it is not finite."""
        if not loss.isfinite():
            shown = f"{rows[:8]}{' ...' if rows[8:] else ''}"
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step} on {shown}: "
                "lower the learning rate, use bf16 in place of fp16, or look at these rows."
            )
        return loss

    def log_reward(self, reward: Tensor, prompts: list[str]) -> Tensor:
        """Returns the rewards (N,) or (N, R) of N samples, and logs their mean over all ranks as `train/reward`, and
        the parts of a weighted sum or of several rewards as `train/reward/<name>`. Raises FloatingPointError if one is
        not finite."""
        finite = reward.isfinite().view(len(reward), -1).all(1)  # (N,)
        if not finite.all():
            bad = prompts[int(finite.logical_not().nonzero()[0])]
            raise FloatingPointError(f"the reward is not finite at step {self.global_step} for {bad!r}.")
        self.log_mean("train/reward", self.all_gather(reward.detach().mean()).mean(), len(reward))
        parts = dict(zip(self.reward.names, reward.unbind(1))) if reward.ndim > 1 else {}
        for name, r in (getattr(self.reward, "latest", {}) | parts).items():
            self.log_mean(f"train/reward/{name}", r.mean(), len(r))
        return reward

    def zero_loss(self) -> Tensor:
        """Zero loss connected to all trainable parameters, so that a rank without samples still joins DDP's all-reduce.
        (Under FSDP all ranks have to run the same forwards.)"""
        return 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)

    def check(self, batch: dict) -> None:
        """Raises TypeError if the batch lacks what the method learns from."""
        missing = [k for k in self.feedback if k not in batch and f"{k}_latents" not in batch]
        if missing:
            raise TypeError(
                f"{type(self).__name__} learns from {', '.join(self.feedback)}; "
                f"{type(self.trainer.datamodule).__name__} gave {', '.join(batch)}: choose another --data."
            )

    def on_train_end(self) -> None:
        """Writes the trained weights in diffusers' format to `<run>/policy`."""
        self.policy.save(os.path.join(self.trainer.default_root_dir, "policy"))

    # Checkpoints: what is trained, and only that

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        restore.check_finite(checkpoint.get("state_dict", {}))
        checkpoint["optimizer_class"] = type(self.trainer.optimizers[0]).__name__

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Checks the weights and the optimizer against this run's, and leaves the hyperparameters to this run."""
        if "state_dict" not in checkpoint:  # sharded weights lie elsewhere
            return
        state = checkpoint["state_dict"]
        restore.check_weights(self, state, "the checkpoint")
        if not self.policy.reference_moves:  # in a test of a run that moved it
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("policy._frozen.reference.")}
        if self.trainer.training:
            optimizer = self.optimizer([torch.nn.Parameter(torch.zeros(1))])
            restore.check_optimizer(checkpoint.get("optimizer_class"), type(optimizer).__name__)
            checkpoint["lr_schedulers"] = [restore.keep_counters(s) for s in checkpoint.get("lr_schedulers", [])]

    def state_dict(self, *args, **kwargs) -> dict:
        prefix, own = kwargs.get("prefix", ""), {n for n, p in self.named_parameters() if p.requires_grad}
        kept = {prefix + name for name in own | {f"policy.{name}" for name in self.policy.state_names()}}
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k in kept or k.endswith("_extra_state")}

    def load_weights(self, path: str) -> None:
        """Loads the trained weights of a checkpoint file; raises ValueError unless it holds all of this policy's."""
        if path.endswith(".safetensors"):
            raise ValueError(f"init_from takes a .ckpt file of this library; {path} is none: load it by policy.lora.")
        weights = torch.load(find(path), map_location="cpu", weights_only=True)["state_dict"]
        restore.check_weights(self, weights, f"init_from {path}", policy_alone=True)
        self.load_state_dict(weights, strict=False)
