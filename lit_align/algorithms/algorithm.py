"""The training half of a method: optimizer, training step, checkpoint of the trained weights."""

import math
import os
from functools import partial

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_align.algorithms import restore
from lit_align.algorithms.parts.advantages import scored
from lit_align.algorithms.parts.clipping import clip_gradients
from lit_align.algorithms.parts.constant_reward import ConstantReward
from lit_align.algorithms.sampling import Sampling
from lit_align.diffusion.conditioning import fill_conditioning
from lit_align.diffusion.process import append_dims
from lit_align.policies.adapters import LoRA
from lit_align.policies.policy import Policy
from lit_align.rewards.reward import Reward, refuse_masks, refuse_videos


class Algorithm(Sampling):
    """Base of all training methods. A family adds the training loop (`batch_loss`), a method adds the equation.

    Args:
        policy: the model to align.
        optimizer: called with the trainable parameters (default: AdamW with learning rate 1e-5, with LoRA 1e-4).
        lr_scheduler: called with the optimizer; stepped after every optimizer step, or once per batch in methods that
            make several optimizer steps per batch.
        init_from: a checkpoint of this library whose weights training starts from, with a new optimizer, step count and
            random state (to resume, give `--ckpt_path`). With adapter Full the reference starts from them too.
        caption_dropout: fraction of training captions replaced by the empty caption, in [0, 1], in denoising losses.
        sampler, rewards: see Sampling.
    """

    feedback: tuple[str, ...] = ()  # batch keys that the method learns from
    uses_reference = False  # True if the loss compares with the reference policy
    moves_reference = False  # True if the method updates the reference
    samples_online = False  # True if training samples from prompts
    takes_several_rewards = False  # True if training takes a reward of R numbers per image
    takes_masked_rewards = False  # True if training leaves out samples that could not be scored (Reward.masks)
    models_ties = False  # True if the method learns from pairs whose `label` is 0.5
    weighs_pairs = False  # True if the method multiplies a pair's loss by its `weight`
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
        self.strict_loading = False  # a checkpoint holds the trained weights only
        self._constant_reward = ConstantReward()

    def batch_loss(self, batch: dict) -> Tensor:
        """Training loss of a batch, a scalar; with manual optimization, a minibatch's share of the step's loss."""
        raise TypeError(f"{type(self).__name__} has no training loss.")

    def latents(self, batch: dict, key: str) -> Tensor:
        """Latents of the batch's images under `key`, cached or encoded now: (B, ...), or (B, K, ...) for the lists
        under `images`."""
        cached = batch.get(f"{key}_latents")
        if cached is not None:
            return cached
        if key != "images":
            return self.policy.encode(batch[key])
        return self.policy.encode(batch[key].flatten(0, 1)).unflatten(0, batch[key].shape[:2])

    def cond(self, batch: dict) -> dict[str, Tensor]:
        """Conditioning of the batch's captions, every tensor (B, ...). In training, a fraction `caption_dropout` is
        dropped."""
        keep = torch.rand(len(batch["prompt"])) >= (self.caption_dropout if self.trainer.training else 0.0)
        if "cond" not in batch:
            prompts = [p if k else "" for p, k in zip(batch["prompt"], keep.tolist())]
            return self.policy.condition(prompts, batch.get("columns"))
        if keep.all():
            return batch["cond"]
        null = self.policy.null_of(batch["cond"]) if self.policy.reads else self.policy.condition([""])
        empty, cond = fill_conditioning([batch["cond"] | null, batch["cond"]])
        return {k: torch.where(append_dims(keep.to(v.device), v), v, empty[k]) for k, v in cond.items()}

    # Training

    def initialise(self) -> None:
        """Loads `init_from`, once, after everything that it may hold has been built."""
        if self.init_from:
            restore.load_weights(self, self.init_from)
            self.init_from = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            rewards = [part for part in self.children() if isinstance(part, Reward)]
            self.check_columns(rewards, "train")
            refuse_videos(rewards, self.policy.image_axes == 4)
            if not self.takes_masked_rewards:
                refuse_masks(self, type(self).__name__)
        self.initialise()
        fresh = self.trainer.global_step == 0  # False after a fit in this process: the weights have changed
        if self.uses_reference or (stage == "test" and fresh and not self.policy.trains_text):
            self.policy.add_reference(moving=self.moves_reference and stage == "fit")  # test compares with it

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
        """Parameters, or parameter groups, for the optimizer."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self):
        groups = self.parameter_groups()
        try:
            optimizer = self.optimizer(groups)
            self._hyperparameters = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            if self.lr_scheduler is None:
                return optimizer
            scheduler = self.lr_scheduler(optimizer)
        except (TypeError, ValueError) as error:  # PyTorch's, of a negative learning rate, say
            raise ValueError(f"optimizer or lr_scheduler: {error}") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def batch_number(self) -> int:
        """Index of the training batch, from 0, over all epochs and resumed runs."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        """Seeds each step from (seed, batch number, rank), so a resumed run draws what the full run would have."""
        self._grad_norm = None
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # the first batch of an optimizer step
            self._logged = {}
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        torch.manual_seed(seed * 1_000_003 + self.batch_number * self.trainer.world_size + self.global_rank)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        self.check(batch)
        loss = self.require_finite(self.batch_loss(batch), batch["index"])
        self.log_mean("train/loss", loss, 1)
        return loss

    def on_train_start(self) -> None:
        if self.trainer.ckpt_path:
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            restore.restore_hyperparameters(self.trainer.optimizers[0], self._hyperparameters, schedulers)

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        if self._grad_norm is not None:  # a log in the middle of training_step would reset those before it
            self.log("train/grad_norm", self._grad_norm)

    def on_before_optimizer_step(self, optimizer) -> None:  # fp16 gradients are unscaled by now
        """Clips the gradients of each parameter group separately, so a value function's gradients do not shrink the
        policy's, and raises FloatingPointError before the step if their norm is NaN or inf. (In 16-mixed precision the
        loss scaler skips such a step.)"""
        by_value = self.trainer.gradient_clip_algorithm == "value"
        max_norm = self.trainer.gradient_clip_val if self.automatic_optimization else self.max_grad_norm
        norms = [clip_gradients(group["params"], None if by_value else max_norm) for group in optimizer.param_groups]
        norm = torch.stack(norms).norm()
        if not norm.isfinite() and self.trainer.precision != "16-mixed":
            raise FloatingPointError(
                f"the gradient is {norm.item()} at step {self.global_step}, and no weight was changed: lower the "
                "learning rate, or look at the rows of this batch."
            )
        self._grad_norm = norm

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Leaves clipping by norm to `on_before_optimizer_step`."""
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def require_finite(self, loss: Tensor, rows: list) -> Tensor:
        """Returns the loss. Raises FloatingPointError, with the rows it comes from, if it is NaN or inf."""
        if not loss.isfinite():
            shown = f"{rows[:8]}{' ...' if rows[8:] else ''}"
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step} on {shown}: "
                "lower the learning rate, use bf16 in place of fp16, or look at these rows."
            )
        return loss

    def log_reward(self, reward: Tensor, prompts: list[str]) -> Tensor:
        """Logs the mean reward over all ranks as `train/reward` and returns the rewards, (N,) or (N, R), unchanged. The
        parts of a weighted sum, or R rewards, are logged as `train/reward/<name>`. Of a reward that masks, the means
        are over the samples that were scored, and the share of the others is logged as `train/unscored`. Raises
        FloatingPointError if any other reward is not finite, or if no sample was scored on any rank, and ValueError for
        R rewards where the method takes one."""
        if reward.ndim > 1 and not self.takes_several_rewards:
            raise ValueError(
                f"{type(self).__name__} takes one number per image and {self.reward.name} gives {reward.shape[1]}: put "
                "the rewards into a WeightedSum."
            )
        known = scored(reward) | (not self.reward.masks)
        finite = reward.isfinite().view(len(reward), -1).all(1) | ~known  # (N,)
        if not finite.all():
            bad = prompts[int(finite.logical_not().nonzero()[0])]
            raise FloatingPointError(f"the reward is not finite at step {self.global_step} for {bad!r}.")
        values = reward[known].detach().flatten()
        limits = values.aminmax() if len(values) else (reward.new_tensor(math.inf), reward.new_tensor(-math.inf))
        stats = torch.stack([values.sum(), reward.new_tensor(len(values)), *limits])
        total, count, low, high = self.all_gather(stats).view(-1, 4).T
        if not count.sum():
            raise FloatingPointError(f"none of the samples of step {self.global_step} could be scored.")
        self._constant_reward.add(low.min().item(), high.max().item(), self.batch_number)
        self.log_mean("train/reward", total.sum() / count.sum(), len(reward))
        if self.reward.masks:
            self.log_mean("train/unscored", 1 - known.float().mean(), len(reward))
        parts = dict(zip(self.reward.names, reward.unbind(1))) if reward.ndim > 1 else {}
        for name, r in (getattr(self.reward, "latest", {}) | parts).items() if known.any() else ():
            self.log_mean(f"train/reward/{name}", r[known].mean(), len(r))
        return reward

    def zero_loss(self) -> Tensor:
        """Zero loss connected to every trainable parameter, so a rank with no samples still joins DDP's gradient
        all-reduce. (Under FSDP all ranks must run the same forwards.)"""
        return 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)

    def check(self, batch: dict) -> None:
        """Raises TypeError if the batch lacks a key that the method learns from, and ValueError at a tie (`label` 0.5)
        if the method needs a winner, or at weights that it does not read."""
        missing = [k for k in self.feedback if k not in batch and f"{k}_latents" not in batch]
        if missing:
            raise TypeError(
                f"{type(self).__name__} learns from {', '.join(self.feedback)}; "
                f"{type(self.trainer.datamodule).__name__} gave {', '.join(batch)}: choose another --data."
            )
        if "weight" in batch and not self.weighs_pairs:
            raise ValueError(f"{type(self).__name__} does not weight pairs: set --data.weight_by null.")
        ties = batch.get("label", torch.ones(1)) == 0.5
        if "win" in self.feedback and not self.models_ties and ties.any():
            row = batch["index"][int(ties.int().argmax())]
            raise ValueError(f"row {row} is a tie, and {type(self).__name__} needs a winner: set --data.ties drop.")

    def on_train_end(self) -> None:
        """Writes the trained weights in diffusers' format to `<run>/policy`."""
        self.policy.save(os.path.join(self.trainer.default_root_dir, "policy"))

    # Checkpoints of the trained weights

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        restore.check_finite(checkpoint.get("state_dict", {}))
        checkpoint["optimizer_class"] = type(self.trainer.optimizers[0]).__name__
        checkpoint["lora_alpha"] = getattr(self.policy.adapter, "alpha", None)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Checks weights and optimizer against this run's; the hyperparameters stay this run's."""
        restore.prepare(self, checkpoint)

    def state_dict(self, *args, **kwargs) -> dict:
        prefix, trained = kwargs.get("prefix", ""), {n for n, p in self.named_parameters() if p.requires_grad}
        kept = {prefix + name for name in trained | {f"policy.{name}" for name in self.policy.state_names()}}
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k in kept or k.endswith("_extra_state")}
