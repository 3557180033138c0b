import json

import pytest
import torch
from data_parts import BLUE, RED, Encoding, fit, pick_a_pic, trainer
from datasets import Dataset

from lit_align.algorithms.preference.lipo import LiPO
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.preference_pairs import PreferencePairs
from lit_align.data.rankings import Rankings
from lit_align.policies.adapters import Full, LoRA
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


def own_pairs(folder, color):
    from data_parts import picture

    for name in ("a", "b", "c", "d"):
        (folder / f"{name}.png").write_bytes(picture(color))
    rows = [{"prompt": "p", "win": f"{w}.png", "lose": f"{x}.png"} for w, x in ("ab", "cd")]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "pairs.jsonl")


def encoded(folder, tmp_path, change=None, **options):
    """A run over own pairs: what it encoded, and its training batch."""
    module = Encoding()
    if change:
        change(module.policy)
    fit(PreferencePairs(folder, batch_size=2, encode_once=True, **options), tmp_path, module)
    return module.calls["encode"], module.batches["train"]


def test_what_a_cached_row_depends_on_makes_it_anew(tmp_path, caplog):
    def vae(policy):
        with torch.no_grad():
            next(policy.pipe.vae.encoder.parameters()).mul_(1.01)

    def text_encoder(policy):
        with torch.no_grad():
            list(policy.pipe.text_encoder_2.parameters())[-1].add_(0.01)

    path = own_pairs(tmp_path, (255, 0, 0))
    first, batch = encoded(path, tmp_path)
    with caplog.at_level("INFO"):
        again, same = encoded(path, tmp_path)
    assert (first, again) == (4, 0) and torch.equal(batch["win_latents"], same["win_latents"])
    assert "latents and captions of 2 rows are read from" in caplog.text and "encode_once-" in caplog.text
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())  # the same pixels, a new time
    assert encoded(path, tmp_path)[0] == 4
    own_pairs(tmp_path, (0, 0, 255))  # other pixels under the same names
    changed, other = encoded(path, tmp_path)
    assert changed == 4 and not torch.equal(batch["win_latents"], other["win_latents"])
    for change in (vae, text_encoder):
        assert [encoded(path, tmp_path, change)[0], encoded(path, tmp_path, change)[0]] == [4, 0]
    assert encoded(path, tmp_path, seed=1)[0] == 4


def test_captions_are_not_cached_where_a_text_encoder_is_trained(tmp_path):
    path = own_pairs(tmp_path, (255, 0, 0))
    encoded(path, tmp_path)

    def train_text(policy):
        policy.adapter = Full(text_encoder=True)

    assert "cond" not in encoded(path, tmp_path, train_text)[1]


@pytest.mark.parametrize("given, due", [(None, 16), (16, 16)])
def test_images_have_the_policys_resolution(tmp_path, given, due):
    data = PickAPic(pick_a_pic(tmp_path / "a.parquet", [1.0, 0.0]), batch_size=2, resolution=given)
    module = Encoding()
    fit(data, tmp_path, module)
    assert module.batches["train"]["win"].shape[-1] == due


def test_two_resolutions_that_differ_are_an_error(tmp_path):
    data = PickAPic(pick_a_pic(tmp_path / "a.parquet", [1.0, 0.0]), resolution=24)
    with pytest.raises(ValueError, match="data.resolution is 24 and the policy's resolution is 16: set both to the same"):
        fit(data, tmp_path, Encoding())
