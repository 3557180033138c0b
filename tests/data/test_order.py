import pytest
from data_parts import fit, passes, pick_a_pic
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data.order import ResumableSampler
from lit_align.data.pick_a_pic import PickAPic
from lit_align.data.prompts import Prompts
from lit_align.data.tables import read_prompts


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
