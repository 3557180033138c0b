"""Videos of every kind of file: which frames are read, what is cut, and what is said."""

import io
import json

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from lit_align.data.captioned_images import CaptionedImages
from lit_align.data.preference_pairs import PreferencePairs
from lit_align.data.videos import chosen, decode_video, measure

N = 12  # frames, at 12 a second; frame k has grey 20 k


def frames(n=N, size=(16, 16)):
    return [Image.new("RGB", size, (20 * k,) * 3) for k in range(n)]


def mp4(path, fps=12, n=N):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width = stream.height = 16
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "0"}
        for frame in frames(n):
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())


def gif(path, n=N, milliseconds=80):
    first, *rest = frames(n)
    first.save(path, "GIF", save_all=True, append_images=rest, duration=milliseconds)


def write(folder, kind):
    path = folder / f"clip.{kind}"
    if kind == "mp4":
        mp4(path)
    elif kind == "gif":
        gif(path)
    elif kind == "npz":
        np.savez(path, frames=np.stack([np.asarray(f) for f in frames()]), fps=12)
    elif kind == "npy":
        np.save(path, np.stack([np.asarray(f) for f in frames()]))
    else:
        path = folder / "clip"
        path.mkdir()
        for k, frame in enumerate(frames()):
            frame.save(path / f"{k:03d}.png")
    return str(path)


def greys(video):
    return (video.mean((1, 2, 3)) * 255 / 20).tolist()


@pytest.mark.parametrize("kind", ["mp4", "gif", "npz", "npy", "folder"])
def test_the_frames_nearest_to_the_policys_times_are_read(tmp_path, kind):
    cell = write(tmp_path, kind)
    known = {"mp4": 12, "gif": 12.5, "npz": 12}.get(kind, 6)  # an array or a folder without a rate has the policy's
    video = decode_video(cell, 4, 6, (8, 8), "here")
    assert video.shape == (4, 3, 8, 8)
    assert greys(video) == pytest.approx([int(k * known / 6 + 0.5) for k in range(4)], abs=0.15)
    if kind in ("gif", "npz"):
        same = decode_video({"bytes": open(cell, "rb").read(), "path": None}, 4, 6, (8, 8), "here")
        assert torch.equal(same, video)
    assert measure(cell, 3, known, "here") and not measure(cell, N, known, "here")


def test_times_are_rounded_to_the_nearest_frame():
    assert chosen(5, 16, 24) == [0, 2, 3, 5, 6] and chosen(4, 16, 8) == [0, 1, 1, 2] and chosen(3, 8, 8) == [0, 1, 2]


def test_what_is_no_video_or_too_short_names_its_row_and_the_mend(tmp_path):
    cell = write(tmp_path, "gif")
    with pytest.raises(ValueError, match=r"^row 3 is a video of 12 frames at 12.5 a second, and 9 frames at 6 a second are needed: set model.policy.num_frames or"):
        decode_video(cell, 9, 6, 8, "row 3")
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "flat.npy", np.zeros((4, 8, 8), np.uint8))
    for name, said in (("broken.mp4", "Invalid data"), ("empty", "has no images"), ("flat.npy", "give 8-bit values"), ("gone.mp4", "No such file")):
        with pytest.raises(ValueError, match=f"^row 3 holds no readable video .*{said}"):
            decode_video(str(tmp_path / name), 4, 6, 8, "row 3")


def data_of(cls, path, **kwargs):
    data = cls(str(path), resolution=8, **kwargs)
    data.num_frames, data.fps = 3, 6.0
    return data


def pairs(tmp_path):
    long, short = write(tmp_path, "mp4"), tmp_path / "short.gif"
    gif(short, 2)
    mp4(tmp_path / "exact.mp4", n=5)
    rows = [("a", "clip.mp4", "exact.mp4"), ("b", "exact.mp4", "short.gif"), ("c", "exact.mp4", "clip.mp4")]
    text = "\n".join(json.dumps(dict(zip(("prompt", "win", "lose"), row))) for row in rows)
    (tmp_path / "pairs.jsonl").write_text(text)
    return tmp_path / "pairs.jsonl", long


def test_pairs_of_videos_count_what_is_cut_and_refuse_what_is_short(tmp_path):
    path, _ = pairs(tmp_path)
    with pytest.raises(ValueError, match=r"row 1, column lose of .*pairs.jsonl is a video of 2 frames"):
        data_of(PreferencePairs, path).load("train")
    data = data_of(PreferencePairs, path, on_corrupt="skip")
    with pytest.warns(UserWarning, match="1 of 3 rows are skipped; the first: row 1, column lose"):
        rows = data.load("train")
    assert data.summary() == "train: 2 kept, 2 with a video longer than 3 frames at 6 a second, its end cut off"
    batch = data.collate([rows[0], rows[1]])
    assert batch["win"].shape == batch["lose"].shape == (2, 3, 3, 8, 8) and batch["prompt"] == ["a", "c"]
    assert greys(batch["win"][0]) == pytest.approx([0, 2, 4], abs=0.15)


def test_captioned_videos_from_a_file_and_from_a_folder_with_texts(tmp_path):
    (tmp_path / "files").mkdir()
    mp4(tmp_path / "files/one.mp4")
    (tmp_path / "files/one.txt").write_text("it grows bright")
    data = data_of(CaptionedImages, tmp_path / "files")
    batch = data.collate([data.load("train")[0]])
    assert batch["prompt"] == ["it grows bright"] and batch["image"].shape == (1, 3, 3, 8, 8)
    clip = io.BytesIO()
    first, *rest = frames()
    first.save(clip, "GIF", save_all=True, append_images=rest, duration=80)
    Dataset.from_dict({"text": ["a"], "image": [clip.getvalue()]}).to_parquet(str(tmp_path / "t.parquet"))
    data = data_of(CaptionedImages, tmp_path / "t.parquet")
    assert data.collate([data.load("train")[0]])["image"].shape == (1, 3, 3, 8, 8)
