import io
import json

import lightning as L
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from lit_align.data.images import decode
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.preference_pairs import PreferencePairs
from lit_align.data.prompts import Prompts
from lit_align.data.tables import read_prompts
from lit_align.shapes.pairs import row


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
    with pytest.raises(ValueError, match="column `win` not found in .*; columns are prompt, chosen, lose; set --data.win_column"):
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


def test_a_corrupt_image_is_an_error_with_its_row(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0], images=(RED, b"not an image"))
    data = PickAPic(path, resolution=8)
    rows = data.load("train")
    with pytest.raises(ValueError, match="row 7, column jpg_1 of .* holds no readable image"):
        data.collate([{**rows[0], "index": 7}])


def test_corrupt_rows_can_be_skipped_and_are_told(tmp_path):
    rows = [row("a", RED, BLUE, 1.0, "m", 0, 0), row("b", RED, RED[:40], 1.0, "m", 1, 0), row("c", BLUE, RED, 1.0, "m", 2, 0)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.warns(UserWarning, match=r"1 of 3 rows hold an unreadable image and are skipped: \[1\]"):
        kept = PickAPic(str(tmp_path), resolution=8, on_corrupt="skip").load("train")
    assert kept["caption"] == ["a", "c"]


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


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_rows_the_whole_run_would_have(tmp_path, many, options, workers):
    make = lambda: Prompts(many, batch_size=2, num_workers=workers)  # noqa: E731
    whole, _ = fit(make(), tmp_path, max_epochs=3, **options)
    assert len({tuple(sorted(sum(whole.seen[i * 11 : (i + 1) * 11], []))) for i in range(3)}) > 1  # a new order each epoch
    for stop in (4, 11, 16):  # batches: within an epoch, at its end, within the next
        steps = stop // options.get("accumulate_grad_batches", 1)
        first, t = fit(make(), tmp_path, max_epochs=-1, max_steps=steps, **options)
        t.save_checkpoint(tmp_path / "stop.ckpt")
        rest, _ = fit(make(), tmp_path, max_epochs=3, ckpt_path=str(tmp_path / "stop.ckpt"), **options)
        assert first.seen + rest.seen == whole.seen


def test_two_ranks_share_the_rows_without_overlap(many):
    from lit_align.data.datamodule import ResumableSampler

    rows = read_prompts(many)
    parts = [list(ResumableSampler(rows, num_replicas=2, rank=r, seed=1)) for r in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == 11 and not set(parts[0]) & set(parts[1])
    late = ResumableSampler(rows, start=4, num_replicas=2, rank=0, seed=1)
    assert list(late) == parts[0][4:] and list(late) == parts[0]  # only the first pass starts late


def test_loading_leaves_the_global_random_state_alone(tmp_path, many):
    data = Prompts(many, batch_size=2)
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    state = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_rows_for_a_batch(tmp_path, many):
    with pytest.raises(ValueError, match="23 training rows do not fill one batch of 64"):
        fit(Prompts(many, batch_size=64), tmp_path)


def test_streaming_reads_shuffles_and_resumes(tmp_path):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.5] * 12)
    make = lambda: PickAPic(path, resolution=8, batch_size=2, streaming=True, buffer_size=4)  # noqa: E731
    whole, _ = fit(make(), tmp_path, max_epochs=2)
    assert len(whole.seen) == 12
    first, t = fit(make(), tmp_path, max_epochs=-1, max_steps=4)
    t.save_checkpoint(tmp_path / "stop.ckpt")
    rest, _ = fit(make(), tmp_path, max_epochs=2, ckpt_path=str(tmp_path / "stop.ckpt"))
    assert first.seen + rest.seen == whole.seen


class Encoding(Watcher):
    def __init__(self):
        super().__init__()
        from lit_align.policies.sdxl import StableDiffusionXL

        self.policy, self.encoded = StableDiffusionXL("tiny"), 0
        encode = self.policy.encode
        self.policy.encode = lambda images: (setattr(self, "encoded", self.encoded + len(images)), encode(images))[1]

    def training_step(self, batch, batch_idx):
        self.batch = batch
        return super().training_step(batch, batch_idx)


def test_encode_once_caches_on_disk(tmp_path, monkeypatch):
    path = pick_a_pic(tmp_path / "train.parquet", [1.0, 0.0, 1.0, 0.0])
    make = lambda: PickAPic(path, resolution=16, batch_size=4, encode_once=True)  # noqa: E731
    torch.manual_seed(0)
    first, _ = fit(make(), tmp_path, Encoding())
    assert first.encoded > 0
    batch = first.batch
    assert batch["win_latents"].shape == (4, 4, 8, 8) and batch["lose_latents"].shape == (4, 4, 8, 8) and "win" not in batch
    torch.testing.assert_close(batch["cond"]["text"], first.policy.condition(batch["prompt"])["text"])
    assert batch["cond"]["pooled"].shape == (4, 16) and batch["cond"]["time_ids"].shape == (4, 6)
    second, _ = fit(make(), tmp_path, Encoding())
    assert second.encoded <= 2  # the sample that tells the shapes; no row again
    assert torch.equal(second.batch["win_latents"], batch["win_latents"])
    plain, _ = fit(PickAPic(path, resolution=16, batch_size=4), tmp_path, Encoding())
    order = np.argsort(batch["index"]).tolist()
    assert sorted(batch["prompt"]) == sorted(plain.batch["prompt"]) and len(order) == 4
