import io
import json
import pickle
from collections import Counter

import lightning as L
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from lit_align.algorithms.preference.lipo import LiPO
from lit_align.data.datamodule import AlignData
from lit_align.data.images import decode
from lit_align.data.order import ResumableSampler
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.preference_pairs import PreferencePairs
from lit_align.data.prompts import Prompts
from lit_align.data.rankings import Rankings
from lit_align.data.tables import read_prompts
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.shapes.make.pairs import row


def picture(color, size=(20, 20), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))


def pick_a_pic(path, labels, has_label=True, images=(RED, BLUE)):
    rows = [row(f"prompt {i}", *images, label, "m", i, 0) | {"has_label": has_label} for i, label in enumerate(labels)]
    Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


def trainer(tmp_path, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=tmp_path, **(quiet | {"enable_checkpointing": False} | kwargs))


class Watcher(L.LightningModule):
    """Notes what it is fed."""

    def __init__(self):
        super().__init__()
        self.w, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["index"])
        return self.w * 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data, tmp_path, module=None, ckpt_path=None, **kwargs):
    module = module or Watcher()
    t = trainer(tmp_path, **({"max_epochs": 1} | kwargs))
    t.fit(module, data, ckpt_path=ckpt_path, weights_only=False)
    return module, t


def test_winner_first_by_label_and_ties_dropped(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0, 0.5, 1.0])
    data = PickAPic(path, resolution=16, batch_size=3)
    rows = data.load("train")
    assert rows["caption"] == ["prompt 0", "prompt 1", "prompt 3"]
    batch = data.collate([{**rows[i], "index": i} for i in range(3)])
    assert batch["win"].shape == (3, 3, 16, 16) and batch["prompt"] == ["prompt 0", "prompt 1", "prompt 3"]
    assert batch["win"][0, 0].mean() == 1 and batch["win"][1, 2].mean() == 1 and batch["lose"][1, 0].mean() == 1


def test_ties_kept_carry_their_label(tmp_path):
    data = PickAPic(pick_a_pic(tmp_path / "train.parquet", [0.5, 0.0]), resolution=8, ties="keep")
    rows = data.load("train")
    batch = data.collate([{**rows[i], "index": i} for i in range(2)])
    assert batch["label"].tolist() == [0.5, 1.0] and batch["win"][0, 0].mean() == 1


def test_pairs_as_single_images_each_once(tmp_path):
    """An image that won anywhere is good, one that only ever lost is bad, ties say nothing."""
    green = picture((0, 255, 0))
    shown = [(RED, BLUE, 1.0), (BLUE, green, 1.0), (green, RED, 0.0), (RED, green, 0.5)]
    rows = [row(f"prompt {i}", a, b, label, "m", i, 0) for i, (a, b, label) in enumerate(shown)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    data = PickAPic(str(tmp_path / "train.parquet"), resolution=16, batch_size=3, binary=True)
    table = data.load("train")
    batch = data.collate([table[i] for i in range(3)])
    colors = [("red", "green", "blue")[image.mean((1, 2)).argmax()] for image in batch["image"]]
    assert dict(zip(colors, batch["label"].tolist())) == {"red": 1.0, "blue": 1.0, "green": 0.0}
    assert batch["prompt"] == ["prompt 0", "prompt 0", "prompt 1"] and set(batch) == {"image", "label", "prompt", "index"}
    with pytest.raises(ValueError, match="binary labels are counted over all training rows"):
        PickAPic(str(tmp_path / "train.parquet"), binary=True, streaming=True)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rankings_from_a_file(tmp_path, kind):
    images = [RED, BLUE, picture((0, 255, 0))]
    if kind == "jsonl":
        for name, data in zip("abc", images):
            (tmp_path / name).write_bytes(data)
    cells = images if kind == "parquet" else ["a", "b", "c"]
    rows = [{"prompt": f"p{i}", "images": cells, "taste": [3.0, 1.0, 2.0], "truth": [0.0, i, 1.0]} for i in range(2)]
    path = tmp_path / f"lists.{kind}"
    Dataset.from_list(rows).to_parquet(path) if kind == "parquet" else path.write_text("\n".join(map(json.dumps, rows)))
    data = Rankings(str(path), score_columns=["taste", "truth"], resolution=16, batch_size=2)
    table = data.load("train")
    batch = data.collate([table[i] for i in range(2)])
    assert batch["images"].shape == (2, 3, 3, 16, 16) and batch["images"][1, 1, 2].mean() == 1  # the second is blue
    assert batch["scores"].tolist() == [[[3, 0], [1, 0], [2, 1]], [[3, 0], [1, 1], [2, 1]]]
    with pytest.raises(ValueError, match="column `scores` not found in .*; columns are images, prompt, taste, truth|columns are prompt, images"):
        Rankings(str(path)).load("train")


def test_lists_of_unequal_length_are_named(tmp_path):
    rows = [{"prompt": "p", "images": [RED] * n, "scores": [1.0] * n} for n in (3, 2)]
    Dataset.from_list(rows).to_parquet(tmp_path / "lists.parquet")
    data = Rankings(str(tmp_path / "lists.parquet"), resolution=16)
    table = data.load("train")
    with pytest.raises(ValueError, match=r"row 1 of .*lists.parquet has lists of \[2\] entries; 3 are due"):
        data.collate([table[0], table[1]])


def test_lists_are_encoded_once(tmp_path):
    policy = StableDiffusion("tiny", LoRA(rank=2))
    rows = [{"prompt": f"p{i}", "images": [RED, BLUE], "scores": [1.0, 0.0]} for i in range(4)]
    Dataset.from_list(rows).to_parquet(tmp_path / "lists.parquet")
    data = Rankings(str(tmp_path / "lists.parquet"), resolution=policy.resolution, batch_size=2, encode_once=True)
    module = LiPO(policy=policy)
    trainer(tmp_path, max_steps=2).fit(module, data)
    batch = next(iter(data.train_dataloader()))
    assert batch["images_latents"].shape == (2, 2, *policy.latent_shape) and batch["scores"].tolist() == [[[1], [0]]] * 2


def test_unlabelled_rows_and_text_labels(tmp_path):
    rows = [row("p", RED, BLUE, label, "m", 0, 0) for label in (1.0, 0.0, 1.0)]
    for r, label, has in zip(rows, ("1.0", "0", "0.5"), ("True", "True", "False")):
        r.update(label_0=label, label_1="", has_label=has)
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    assert len(PickAPic(str(tmp_path), resolution=8).load("train")) == 2


def test_what_is_left_out_is_counted(tmp_path, caplog):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.5, 0.5])
    with caplog.at_level("INFO"):
        PickAPic(path, resolution=8).load("train")
    assert "3 rows, 2 ties, 0 without label" in caplog.text and "1 kept" in caplog.text


def test_a_missing_column_is_named_with_those_found(tmp_path):
    Dataset.from_dict({"caption": ["a"], "label_0": [1.0]}).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(ValueError, match="column `jpg_0` not found .* columns are caption, label_0"):
        PickAPic(str(tmp_path / "x.parquet")).load("train")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "x.png", "lose": "y.png"}))
    with pytest.raises(ValueError, match="`win` not found .* columns are prompt, chosen, lose; set --data.win_column"):
        PreferencePairs(str(tmp_path / "pairs.jsonl")).load("train")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_own_pairs_from_files(tmp_path, kind):
    for name, data in (("r.png", RED), ("b.png", BLUE)):
        (tmp_path / name).write_bytes(data)
    columns = {"prompt": ["a", "b"], "win": ["r.png", "b.png"], "lose": ["b.png", "r.png"]}
    if kind == "parquet":
        columns |= {"win": [RED, BLUE], "lose": [BLUE, RED]}
    table = Dataset.from_dict(columns)
    getattr(table, {"jsonl": "to_json"}.get(kind, f"to_{kind}"))(str(tmp_path / f"pairs.{kind}"))
    data = PreferencePairs(str(tmp_path / f"pairs.{kind}"), resolution=8)
    rows = data.load("train")
    batch = data.collate([{**rows[i], "index": i} for i in range(2)])
    assert batch["win"][0, 0].mean() == 1 and batch["win"][1, 2].mean() == 1 and batch["prompt"] == ["a", "b"]


def test_images_keep_their_proportions():
    wide = Image.new("RGB", (40, 20))
    wide.paste((255, 0, 0), (10, 0, 30, 20))  # a red centre square
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    assert decode(buffer.getvalue(), 20, "")[0].min() == 1


def test_own_pairs_of_another_folder_and_other_columns(tmp_path):
    for folder, left, right in (("train", RED, BLUE), ("val", BLUE, RED)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(left)
        (tmp_path / folder / "b.png").write_bytes(right)
        record = {"prompt": "p", "chosen": "a.png", "rejected": "b.png"}
        (tmp_path / folder / "pairs.jsonl").write_text(json.dumps(record))
    paths = [str(tmp_path / folder / "pairs.jsonl") for folder in ("train", "val")]
    data = PreferencePairs(*paths, win_column="chosen", lose_column="rejected", resolution=8)
    for split, winner in (("train", 0), ("val", 2)):
        batch = data.collate([data.load(split)[0]])
        assert batch["win"][0, winner].min() == 1 and batch["lose"][0, winner].max() == 0


def test_own_pairs_as_images_of_datasets(tmp_path):
    rows = Dataset.from_dict({"prompt": ["p"] * 2, "win": [RED, RED], "lose": [BLUE, BLUE[:40]]})
    rows = rows.cast_column("win", ImageFeature()).cast_column("lose", ImageFeature(decode=False))
    rows.cast_column("lose", ImageFeature()).to_parquet(str(tmp_path / "pairs.parquet"))
    data = PreferencePairs(str(tmp_path / "pairs.parquet"), resolution=8)
    rows = data.load("train")
    assert data.collate([rows[0]])["win"][0, 0].min() == 1
    with pytest.raises(ValueError, match="row 1, column lose of .*pairs.parquet holds no readable image"):
        data.collate([rows[1]])


def test_splits_of_a_folder_are_not_mixed(tmp_path):
    for name, n in (("validation-00000-of-00002", 1), ("validation-00001-of-00002", 2), ("validation_unique-00000", 4)):
        pick_a_pic(tmp_path / f"{name}.parquet", [1.0] * n)
    assert len(PickAPic(str(tmp_path), split="validation").load("train")) == 3
    assert len(PickAPic(str(tmp_path), val_split="validation_unique").load("val")) == 4
    assert len(PickAPic(str(tmp_path / "validation-*.parquet")).load("train")) == 3
    with pytest.raises(FileNotFoundError, match="has no train.parquet or train-"):
        PickAPic(str(tmp_path)).load("train")


@pytest.mark.parametrize("broken", [b"not an image", RED[:40], picture((1, 2, 3), (64, 64), "JPEG")[:400], b"", None])
def test_an_unreadable_image_is_an_error_with_its_row_in_the_file(tmp_path, broken):
    rows = [row("tie", RED, BLUE, 0.5, "m", 0, 0), row("p", RED, b"", 1.0, "m", 1, 0) | {"jpg_1": broken}]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    data = PickAPic(str(tmp_path / "train.parquet"), resolution=8)
    with pytest.raises(ValueError, match="row 1, column jpg_1 of .*train.parquet holds no readable image"):
        data.collate([data.load("train")[0]])


def test_a_missing_image_file_is_named(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,win,lose\np,gone.png,gone.png\n")
    data = PreferencePairs(str(tmp_path / "pairs.csv"), resolution=8)
    with pytest.raises(ValueError, match="row 0, column win of .*pairs.csv holds no readable image .*gone.png"):
        data.collate([data.load("train")[0]])


def test_unreadable_rows_can_be_skipped_and_are_told(tmp_path):
    images = [(RED, RED), (RED, BLUE), (RED, RED[:40]), (BLUE, RED)]
    rows = [row(p, *pair, y, "m", 0, 0) for p, pair, y in zip("abcd", images, (0.5, 1.0, 1.0, 1.0))]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.warns(UserWarning, match=r"1 of 3 rows hold an unreadable image and are skipped: \[2\]"):
        kept = PickAPic(str(tmp_path), resolution=8, on_corrupt="skip").load("train")
    assert kept["caption"] == ["b", "d"] and kept["index"] == [1, 3]


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("a red circle\n\ntwo squares\n")
    assert read_prompts(str(tmp_path / "p.txt"))["prompt"] == ["a red circle", "two squares"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "skill": "s", "other": 1}\n')
    assert read_prompts(str(tmp_path / "p.jsonl"))[0] == {"prompt": "x", "skill": "s"}
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_prompts("nowhere.txt")
    with pytest.raises(ValueError, match="ends in '.doc'"):
        (tmp_path / "p.doc").write_text("")
        read_prompts(str(tmp_path / "p.doc"))


@pytest.fixture
def many(tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(f"prompt {i}" for i in range(23)))
    return str(tmp_path / "many.txt")


def passes(seen, batches):
    return [sorted(sum(seen[i : i + batches], [])) for i in range(0, len(seen), batches)]


def test_every_pass_takes_each_row_once_in_a_new_order(tmp_path, many):
    run, _ = fit(Prompts(many, batch_size=2), tmp_path, max_epochs=3)
    assert all(len(set(rows)) == 22 for rows in passes(run.seen, 11))
    assert run.seen[:11] != run.seen[11:22] != run.seen[22:]


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"limit_train_batches": 5}])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_rows_the_whole_run_would_have(tmp_path, many, options, workers):
    def run(steps, **kwargs):
        data = Prompts(many, batch_size=2, num_workers=workers)
        return fit(data, tmp_path, max_epochs=-1, max_steps=steps // per_step, **options, **kwargs)

    per_step = options.get("accumulate_grad_batches", 1)
    whole, _ = run(32)
    for stop in (4, 10, 16):  # batches: within a pass, at its end, within a later one (for one or other of the options)
        first, t = run(stop)
        t.save_checkpoint(tmp_path / "stop.ckpt")
        rest, _ = run(32, ckpt_path=str(tmp_path / "stop.ckpt"))
        assert first.seen + rest.seen == whole.seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_from_a_checkpoint_of_its_midst_ends_like_the_whole_run(tmp_path, many, accumulate, workers):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    options = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    data = lambda: Prompts(many, batch_size=2, num_workers=workers)
    whole, _ = fit(data(), tmp_path, callbacks=[keep], enable_checkpointing=True, **options)
    per_pass = -(-11 // accumulate)  # steps; the last of a pass accumulates what is left
    for step in (3, per_pass, per_pass + 2):
        rest, _ = fit(data(), tmp_path, ckpt_path=str(tmp_path / f"step={step}.ckpt"), **options)
        assert rest.seen == whole.seen[step // per_pass * 11 + step % per_pass * accumulate :]


def test_two_ranks_share_the_rows_without_overlap(many):
    rows = read_prompts(many)

    def order(rank, seen):
        return list(ResumableSampler(rows, 1, 11, lambda: seen, num_replicas=2, rank=rank, seed=1))

    assert len(order(0, 0)) == len(order(1, 0)) == 11 and not set(order(0, 0)) & set(order(1, 0))
    assert order(0, 4) == order(0, 0)[4:] and order(1, 15) == order(1, 11)[4:]


def test_loading_leaves_the_global_random_state_alone(tmp_path, many):
    data = Prompts(many, batch_size=2)
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    state = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_rows_for_a_batch(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="3 training rows do not fill one batch of 64"):
        fit(PickAPic(path, resolution=8, batch_size=64), tmp_path)


def test_prompts_that_do_not_fill_a_batch_are_drawn_again(tmp_path, many):
    """As published recipes ask for: 45 animals, 256 samples at once."""
    data = Prompts(many, batch_size=64)
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(batch["prompt"]) == 64 and len(set(batch["index"])) == 64
    times = Counter(batch["prompt"]).values()
    assert len(times) >= 22 and max(times) <= 3  # of 23, of which there are 69


def test_worker_processes_can_be_handed_the_collate_function(tmp_path):
    data = PickAPic(pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0]), resolution=8, batch_size=2)
    fit(data, tmp_path)
    copy = pickle.loads(pickle.dumps(data.collate))
    rows = [data.train[i] for i in range(2)]
    assert torch.equal(copy(rows)["win"], data.collate(rows)["win"])


@pytest.fixture
def no_sleep(monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s at the end of a parquet stream


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_shuffled_and_resumes(tmp_path, no_sleep, workers):
    def run(steps, **kwargs):
        data = PickAPic(path, resolution=8, batch_size=2, streaming=True, buffer_size=4, num_workers=workers)
        return fit(data, tmp_path, max_epochs=-1, max_steps=steps, **kwargs)

    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.5] * 12)
    whole, _ = run(16)
    first, second = whole.seen[:6], whole.seen[6:12]
    assert passes(whole.seen[:12], 6) == [list(range(0, 24, 2))] * 2  # rows without a tie, by their number in the file
    assert sum(first, []) != list(range(0, 24, 2)) and first != second
    for stop in (4, 6, 9):
        before, t = run(stop)
        t.save_checkpoint(tmp_path / "stop.ckpt")
        rest, _ = run(16, ckpt_path=str(tmp_path / "stop.ckpt"))
        assert before.seen + rest.seen == whole.seen


def test_what_a_stream_cannot_do_is_an_error(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0])
    with pytest.raises(ValueError, match="on_corrupt: error"):
        PickAPic(path, streaming=True, on_corrupt="skip")
    with pytest.raises(ValueError, match="encode_once false"):
        fit(PickAPic(path, streaming=True, encode_once=True), tmp_path, Encoding())


class Encoding(Watcher):
    """Counts what it encodes and keeps its batches."""

    def __init__(self):
        super().__init__()
        from lit_align.policies.sdxl import StableDiffusionXL

        self.policy, self.calls, self.batches = StableDiffusionXL("tiny"), Counter(), {}
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
def test_encoders_leave_unless_the_method_draws(tmp_path, draws):
    module, moved = Encoding(), []
    module.draws, module.policy.offload_encoders = draws, lambda: moved.append(1)
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0])
    fit(PickAPic(path, resolution=16, batch_size=2, encode_once=True), tmp_path, module)
    assert len(moved) == (0 if draws else 1)


def test_images_and_captions_are_encoded_once(tmp_path):
    train, val = (pick_a_pic(tmp_path / f"{name}.parquet", [1.0, 0.5, 0.0]) for name in ("train", "val"))

    def run():
        data = PickAPic(train, val_split=val, resolution=16, batch_size=3, encode_once=True, ties="keep")
        return fit(data, tmp_path, Encoding(), num_sanity_val_steps=0)[0]

    first, second = run(), run()
    assert first.calls == {"encode": 12, "condition": 6} and second.calls == {}
    for split in ("train", "val"):
        batch = second.batches[split]
        assert set(batch) == {"prompt", "index", "win_latents", "lose_latents", "cond", "label"}
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
        module, _ = fit(PickAPic(path, resolution=resolution, batch_size=2, encode_once=True), tmp_path, Encoding())
        assert module.calls["encode"] == 4 and module.batches["train"]["win_latents"].shape[-1] == resolution // 2


def test_validation_takes_pairs_then_prompts(tmp_path, many):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0])
    data = PickAPic(path, val_split=path, val_prompts=many, resolution=8, batch_size=2, val_batch_size=20)
    data.setup("validate")
    pairs, prompts = map(list, data.val_dataloader())
    assert [set(batch) for batch in pairs] == [{"prompt", "index", "win", "lose"}]
    assert [len(batch["prompt"]) for batch in prompts] == [20, 3] and prompts[1]["index"] == [20, 21, 22]
    data = PickAPic(path, test_prompts=many)
    assert data.val_dataloader() == [] and next(iter(data.predict_dataloader()))["prompt"][0] == "prompt 0"
    with pytest.raises(ValueError, match="set --data.test_prompts"):
        PickAPic(path).test_dataloader()


def test_data_is_configured_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AlignData, "data")
    init = {"path": "x", "ties": "keep", "batch_size": 3, "val_prompts": "p.jsonl", "encode_once": True}
    data = parser.instantiate_classes(parser.parse_object({"data": {"class_path": "PickAPic", "init_args": init}})).data
    assert (data.path, data.ties, data.batch_size, data.prompts["val"]) == ("x", "keep", 3, "p.jsonl")
    with pytest.raises(ArgumentError, match="batchsize"):
        parser.parse_object({"data": {"class_path": "PickAPic", "init_args": {"batchsize": 3}}})
