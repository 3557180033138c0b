"""The sampling half of a method: validate, test and predict."""

import warnings

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_align.algorithms import hyperparameters
from lit_align.data.datamodule import AlignData
from lit_align.diffusion.budget import COSTS
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State, select_rows
from lit_align.metrics.metric import ImageMetric, given
from lit_align.policies.policy import Policy
from lit_align.ranges import check_ranges
from lit_align.rewards.reward import Reward, components, judge, missing_column, refuse_masks, refuse_videos


class Sampling(L.LightningModule):
    """Samples images from a policy and scores them in `validate`, `test` and `predict`.

    Args:
        policy: the model.
        sampler: how images are sampled (default: 50 DDIM steps, guidance 7.5).
        rewards: scores of these images, logged as `val/reward/<name>`; the first is the headline of `test`.
        metrics: figures of all samples of `validate` and `test` together, logged as `val/metric/<name>`.
    """

    ranges: dict[str, str] = {}  # ranges of this class's numbers that differ from RANGES

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler | None = None,
        rewards: list[Reward] | None = None,
        metrics: list[ImageMetric] | None = None,
    ):
        super().__init__()
        hyperparameters.save(self)
        self.policy, self.sampler = policy, sampler or Sampler()
        self.rewards = torch.nn.ModuleList(rewards or []).eval().requires_grad_(False)
        self.metrics = torch.nn.ModuleList(metrics or []).eval().requires_grad_(False)
        self._measured = -1  # the last row that this rank gave to the metrics
        self._told = False  # whether a rewritten prompt has been shown
        self._logged: dict[str, tuple] = {}  # name -> (sum, rows) in this optimizer step's batches

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path, *args, **kwargs):
        """Rebuilds the module of a run of the command line from its checkpoint. A module that was built in Python needs
        its objects again: `load_from_checkpoint(path, policy=policy)`."""
        saved = hyperparameters.read(cls, checkpoint_path, kwargs)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found keys that are")  # a checkpoint holds what is trained
            module = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        module.save_hyperparameters(saved)
        return module

    def setup(self, stage: str) -> None:
        for part in (self, self.sampler, self.sampler.transition):
            check_ranges(part, self.ranges)
        samplers = [v for v in vars(self).values() if isinstance(v, Sampler)]
        self._steering = torch.nn.ModuleList(m for s in samplers for m in s.modules())  # to the module's device
        self.check_columns(self.rewards, {"fit": "val", "validate": "val"}.get(stage, stage))
        videos = self.policy.image_axes == 4
        refuse_videos(self.rewards, videos)
        if videos and len(self.metrics):
            raise ValueError("model.metrics measure images, and the policy makes videos: leave metrics out.")
        refuse_masks(self.rewards, f"model.rewards of {type(self).__name__}")

    def check_columns(self, rewards, split: str) -> None:
        """Raises ValueError if a reward needs a column that the split's data lacks (train, val, test or predict)."""
        data = self.trainer.datamodule
        if not isinstance(data, AlignData) or (split != "train" and not data.prompt_files[split]):
            return  # of other data, `judge` names the column at the first batch
        available = data.column_names(split)
        for reward in rewards:
            missing = [name for name, needed in reward.columns.items() if needed and name not in available]
            if missing:
                raise ValueError(missing_column(reward, missing[0], available))
        for metric in self.metrics if split in ("val", "test") else ():
            given(metric, {"columns": dict.fromkeys(available)})

    # Samples and their scores

    def draw(self, batch: dict, sampler: Sampler | None = None) -> State:
        """Final sampler state for the batch's prompts; each row's `seed` seeds its noise."""
        sampler = sampler or self.sampler
        return sampler(self.policy, batch["prompt"], columns=batch.get("columns"), seeds=batch["seed"])

    @torch.no_grad()
    def sample(self, batch: dict, sampler: Sampler | None = None) -> dict:
        """Draws one image per prompt: {"image" (B, 3, H, W), "scores": {name: (B,)}, "latents", "cost": {name: calls
        per prompt, see Budget}, "truncated": {name: share of the prompts whose end the reward did not read}}, and what
        `rewritten` says where hooks have rewritten the prompts."""
        state, before = self.draw(batch, sampler), self.truncated()
        image, scores = self.policy.decode(state.x).float(), {}
        for reward in self.rewards:
            score = reward.combine(components(reward, image, batch))
            names = [f"{reward.name}/{name}" for name in reward.names] if score.ndim > 1 else [reward.name]
            scores |= dict(zip(names, score.view(len(image), -1).unbind(1), strict=True))
        cut = {name: (count - before.get(name, 0)) / len(image) for name, count in self.truncated().items()}
        cost = dict(state.calls)
        sample = {"image": image, "scores": scores, "latents": state.x, "cost": cost, "truncated": cut}
        return sample | (self.rewritten(state) if state.texts != state.prompts else {})

    def rewritten(self, state: State) -> dict:
        """{"texts", "rewritten": share of the prompts that hooks have rewritten}; says so of the first one."""
        pairs = [(prompt, text) for prompt, text in zip(state.prompts, state.texts) if text != prompt]
        if not self._told:
            rank_zero_info(f"prompts are rewritten: {pairs[0][0]!r} is drawn as {pairs[0][1]!r}")
        self._told = True
        return {"texts": state.texts, "rewritten": len(pairs) / len(state.texts)}

    def truncated(self) -> dict[str, int]:
        """Reward, or part of one, that cuts prompts -> number of prompts that it has cut."""
        parts = [part for part in self.rewards.modules() if isinstance(part, Reward)]
        return {part.name: part.truncated for part in parts if part.truncated is not None}

    def judge(self, reward: Reward, latents: Tensor, rows: dict, size: int | None = None) -> Tensor:
        """Decodes latents (N, ...) and scores the images with their rows ({"prompt", "columns"}), `size` at a time:
        (N,), or (N, R) if the reward gives R numbers."""
        return judge(reward, self.policy, latents, rows, size)

    def reference_sample(self, batch: dict) -> dict | None:
        """Baseline of `test`: the reference's samples for the same prompts and seeds; None if there is no reference or
        it has been updated."""
        if not self.policy.has_reference or self.policy.reference_moves:
            return None
        with self.policy.reference():
            return self.sample(batch)

    # Validate, test, predict

    def outputs(self, batch: dict, sample: dict) -> dict:
        """What callbacks receive for a prompt batch."""
        rows = {k: batch[k] for k in ("prompt", "index", "seed", "columns") if k in batch}
        rows |= {"fps": self.policy.fps} if sample["image"].ndim == 5 else {}
        rows |= {"rewritten": sample["texts"]} if "texts" in sample else {}
        return rows | {"image": sample["image"].cpu(), "scores": sample["scores"], "cost": sample["cost"]}

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict:
        sample = self.sample(batch)
        self.log_sample("val", sample)
        self.measure_samples(batch, sample["image"])
        return self.outputs(batch, sample)

    def test_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict:
        """Samples, and the reference's samples for the same prompts and seeds."""
        sample = self.sample(batch)
        out = self.outputs(batch, sample)
        self.log_sample("test", sample)
        self.measure_samples(batch, sample["image"])
        if reference := self.reference_sample(batch):
            drift = self.policy.error(sample["latents"], reference["latents"]).sqrt()  # (B,)
            self.log_mean("test/drift", drift.mean(), len(drift))
            out |= {"reference_image": reference["image"].cpu(), "reference_scores": reference["scores"]}
        return out

    def predict_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict:
        return self.outputs(batch, self.sample(batch))

    # Metrics

    def measure_samples(self, batch: dict, images: Tensor) -> None:
        """Gives samples to the metrics, each once: rows come in their order, and those that a distributed sampler adds
        to fill the last batch stand before those that this rank has had."""
        if not self.metrics:
            return
        new = [i for i, index in enumerate(batch["index"]) if self.trainer.world_size == 1 or index > self._measured]
        self._measured = max(self._measured, *batch["index"])
        rows = select_rows({"prompt": batch["prompt"], "columns": batch.get("columns", {})}, new)
        for metric in self.metrics if new else ():
            metric.update(images[new].clamp(0, 1), rows["prompt"], **given(metric, rows))

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def log_metrics(self, stage: str) -> None:
        """Logs the metrics of the epoch's samples, and forgets these."""
        for metric in self.metrics:
            if self._measured >= 0 and not self.trainer.sanity_checking:
                for name, value in metric.compute().items():
                    self.log(f"{stage}/metric/{name}", value.to(self.device))
            metric.reset()
        self._measured = -1

    # Logs

    def log_sample(self, stage: str, sample: dict) -> None:
        """Logs each score's mean, the share of prompts that each reward cut and that hooks rewrote, the diversity: mean
        distance between two samples over sqrt(latent dimensions), and what steered sampling cost per prompt."""
        for name, score in sample["scores"].items():
            self.log_mean(f"{stage}/reward/{name}", score.mean(), len(score))
        x = sample["latents"].float().flatten(1)
        for name, share in sample["truncated"].items():
            self.log_mean(f"{stage}/truncated/{name}", x.new_tensor(share), len(x))
        if "rewritten" in sample:
            self.log_mean(f"{stage}/rewritten", x.new_tensor(sample["rewritten"]), len(x))
        if len(x) > 1:
            self.log_mean(f"{stage}/diversity", torch.pdist(x).mean() / x.shape[1] ** 0.5, len(x))
        for name in COSTS if self.sampler.is_steered else ():
            self.log_mean(f"{stage}/cost/{name}", x.new_tensor(sample["cost"].get(name, 0.0)), len(x))

    def log_mean(self, name: str, value: Tensor, n: int) -> None:
        """Logs a mean over n rows: in training, over all calls on this rank for the batches of an optimizer step;
        otherwise over the epoch and all ranks."""
        if train := self.trainer.training:
            total, rows = self._logged.get(name, (0.0, 0))
            self._logged[name] = total, rows = total + value.detach() * n, rows + n
            value = total / rows
        kwargs = {} if train else {"on_step": False, "on_epoch": True, "sync_dist": True, "add_dataloader_idx": False}
        self.log(name, value, batch_size=n, prog_bar=name in ("train/loss", "train/reward"), **kwargs)
