from collections import Counter

import pytest
import torch
from data_parts import BLUE, RED, Watcher, fit, pick_a_pic, trainer
from datasets import Dataset

from lit_align.algorithms.preference.lipo import LiPO
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.rankings import Rankings
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion


def test_lists_are_encoded_once(tmp_path):
    policy = StableDiffusion("tiny", LoRA(rank=2))
    rows = [{"prompt": f"p{i}", "images": [RED, BLUE], "scores": [1.0, 0.0]} for i in range(4)]
    Dataset.from_list(rows).to_parquet(tmp_path / "lists.parquet")
    data = Rankings(str(tmp_path / "lists.parquet"), resolution=policy.resolution, batch_size=2, encode_once=True)
    module = LiPO(policy=policy)
    trainer(tmp_path, max_steps=2).fit(module, data)
    batch = next(iter(data.train_dataloader()))
    assert (
        batch["images_latents"].shape == (2, 2, *policy.latent_shape) and batch["scores"].tolist() == [[[1], [0]]] * 2
    )


class Encoding(Watcher):
    """Counts what it encodes and keeps its batches."""

    def __init__(self, resolution=16):
        super().__init__()
        from lit_align.policies.sdxl import StableDiffusionXL

        self.policy, self.calls, self.batches = StableDiffusionXL("tiny", resolution=resolution), Counter(), {}
        for name in ("encode", "condition"):
            setattr(self.policy, name, self.counted(name, getattr(self.policy, name)))

    def counted(self, name, function):
        def call(rows):
            self.calls[name] += len(rows)
            return function(rows)

        return call

    def training_step(self, batch, batch_idx):
        self.batches["train"] = batch
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.batches["val"] = batch


@pytest.mark.parametrize("samples_online", [False, True])
def test_encoders_leave_unless_the_method_samples(tmp_path, samples_online):
    module, moved = Encoding(), []
    module.samples_online, module.policy.offload_encoders = samples_online, lambda: moved.append(1)
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0])
    fit(PickAPic(path, resolution=16, batch_size=2, encode_once=True), tmp_path, module)
    assert len(moved) == (0 if samples_online else 1)


def test_images_and_captions_are_encoded_once(tmp_path):
    train, val = (pick_a_pic(tmp_path / f"{name}.parquet", [1.0, 0.5, 0.0]) for name in ("train", "val"))

    def run():
        data = PickAPic(train, val_split=val, resolution=16, batch_size=3, encode_once=True, ties="keep")
        return fit(data, tmp_path, Encoding(), num_sanity_val_steps=0)[0]

    first, second = run(), run()
    assert first.calls == {"encode": 12, "condition": 6} and second.calls == {}
    for split in ("train", "val"):
        batch = second.batches[split]
        assert set(batch) == {"prompt", "index", "columns", "win_latents", "lose_latents", "cond", "label"}
        assert batch["win_latents"].shape == batch["lose_latents"].shape == (3, 4, 8, 8)
        assert [batch["label"][batch["index"].index(i)].item() for i in range(3)] == [1.0, 0.5, 1.0]
        for name, value in first.policy.condition(batch["prompt"]).items():
            torch.testing.assert_close(batch["cond"][name], value)
        assert torch.equal(batch["win_latents"], first.batches[split]["win_latents"])
    posterior = latents(second.policy, (255, 0, 0)), latents(second.policy, (0, 0, 255))  # mean and standard deviation
    for i, index in enumerate(batch["index"]):
        mean, std = posterior[1 if index == 2 else 0]  # label_0 is 0 in row 2 alone
        z = (batch["win_latents"][i] - mean) / std
        assert z.abs().max() < 6 and 0.7 < z.std() < 1.3


def latents(policy, color):
    vae, image = policy.pipe.vae, torch.tensor(color).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255
    posterior = vae.encode(image * 2 - 1).latent_dist
    return posterior.mean[0] * vae.config.scaling_factor, posterior.std[0] * vae.config.scaling_factor


def test_another_resolution_is_encoded_anew(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0])
    for resolution in (16, 32):
        module, _ = fit(PickAPic(path, batch_size=2, encode_once=True), tmp_path, Encoding(resolution))
        assert module.calls["encode"] == 4 and module.batches["train"]["win_latents"].shape[-1] == resolution // 2


def test_a_stream_has_no_table_to_cache(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0])
    with pytest.raises(ValueError, match="encode_once false"):
        fit(PickAPic(path, streaming=True, encode_once=True), tmp_path, Encoding())
