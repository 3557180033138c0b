"""`python -m lit_align export`: writes the weights of a checkpoint as what other programs load."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from lightning.pytorch.utilities import rank_zero_info

from lit_align.algorithms.algorithm import Algorithm
from lit_align.callbacks import EMA, LoRAScaling
from lit_align.policies.adapters import LoRA


class Trainer(L.Trainer):
    """Lightning's Trainer with the command `export`. `fit` of a run whose training has ended writes the run's
    `policy/`, which the run lacks if it was stopped before it could."""

    def export(
        self,
        model: Algorithm,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        format: Literal["diffusers", "kohya"] = "diffusers",
        merge: bool = False,
        out: str | None = None,
        weights_only: bool | None = None,
    ) -> Path:
        """Writes the weights of a checkpoint as what other programs load: LoRA weights, or a whole pipeline.

        Needs no data and no GPU. If the checkpoint holds a moving average of the weights (callback EMA), the average is
        written. Returns the folder.

        Args:
            model: a training method.
            datamodule: not used.
            ckpt_path: last, best, or a checkpoint (default on the command line: last; in Python: the model as it is).
            format: of LoRA weights: diffusers, or kohya for ComfyUI and other programs that read that format.
            merge: add LoRA weights to the base model and write a whole pipeline.
            out: folder (default: export/<checkpoint>, with -kohya or -merged after it, in the run's folder).
            weights_only: as in `fit`: false reads checkpoints with pickled objects, which can run code.
        """
        if not isinstance(model, Algorithm) or not trains_policy(model):
            raise ValueError(f"{type(model).__name__} does not train its policy: there is nothing to export.")
        model.trainer, weights = self, "the weights"
        if ckpt_path and self.load(model, ckpt_path, weights_only):
            weights = "the moving average of the weights (EMA)"
        for callback in self.callbacks:
            if isinstance(callback, LoRAScaling):
                callback.on_train_end(self, model)
        name = f"{Path(ckpt_path or 'model').stem}{'-kohya' * (format == 'kohya')}{'-merged' * merge}"
        folder = Path(out or Path(self.default_root_dir, "export", name))
        model.policy.save(str(folder), format, merge)
        lora = isinstance(model.policy.adapter, LoRA) and not merge
        kind = f"LoRA weights in {format} format" if lora else "a whole pipeline"
        print(f"wrote {kind} to {folder}: {weights}" + (f" of {ckpt_path}" if ckpt_path else ""))
        return folder

    @staticmethod
    def without_gpu(config) -> None:
        """Changes the parsed configuration of `export`: one process on the CPU, no quantization, ckpt_path last."""
        cpu = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}
        config.trainer.update(Namespace(**cpu))
        config.ckpt_path = config.ckpt_path or "last"
        if (policy := config.model.init_args.get("policy")) and policy.init_args.get("quantize"):
            policy.init_args["quantize"] = None

    def load(self, model: Algorithm, ckpt_path: str, weights_only: bool | None = None) -> bool:
        """Loads a checkpoint after the checks that `fit` and `test` make; True if it was the average."""
        if Path(ckpt_path).is_dir():  # sharded
            checkpoint = _load_distributed_checkpoint(Path(ckpt_path))
        else:
            checkpoint = self.strategy.checkpoint_io.load_checkpoint(
                ckpt_path, map_location="cpu", weights_only=weights_only
            )
        if not {"state_dict", "callbacks"} <= checkpoint.keys():
            raise ValueError(f"{ckpt_path} is no checkpoint of this library: give last, best or one of checkpoints/.")
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        ema = EMA()
        ema.load_state_dict(checkpoint["callbacks"].get(ema.state_key, {"average": None}))
        ema.on_train_end(self, model)
        return ema.average is not None

    def _run_stage(self) -> Any:
        before = self.global_step
        result = super()._run_stage()
        model = self.lightning_module
        if self.state.fn == "fit" and 0 < before == self.global_step and isinstance(model, Algorithm):
            for callback in self.callbacks:
                if isinstance(callback, EMA | LoRAScaling):  # EMA steps back in on_fit_end
                    callback.on_train_end(self, model)
            model.on_train_end()
            rank_zero_info(
                f"training had ended before, at step {before}: its result was written to {self.default_root_dir}"
            )
        return result


def trains_policy(model: Algorithm) -> bool:
    return any(p.requires_grad for p in model.policy.parameters())
