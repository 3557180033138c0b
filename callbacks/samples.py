"""Predicted images and videos on disk."""

import json
import os

import lightning as L
from lit_align.callbacks.grid import save_png, save_video, to_pictures, video_ending


class SampleWriter(L.Callback):
    """`predict` writes `<folder>/<index>.png` (of a video .mp4, or .gif where PyAV is not installed) and one line of
    `metadata.jsonl` for each: file_name, prompt, seed, scores, `cost`, the calls of network, decoder and steering
    reward per prompt (a mean over the batch), and, where hooks rewrite
    prompts, `rewritten`, what was drawn in place of the prompt.

    A line is written after its image, batch by batch: an interrupted run keeps what it has. Further ranks write
    `metadata_<rank>.jsonl`.

    Args:
        folder: default `<run>/predict`.
    """

    def __init__(self, folder: str | None = None):
        self.folder, self.path = folder, None

    def on_predict_start(self, trainer, module) -> None:
        self.path = self.folder or os.path.join(trainer.default_root_dir, "predict")
        os.makedirs(self.path, exist_ok=True)
        name = "metadata.jsonl" if trainer.is_global_zero else f"metadata_{trainer.global_rank}.jsonl"
        self.metadata = os.path.join(self.path, name)
        open(self.metadata, "w").close()

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if not isinstance(outputs, dict) or "image" not in outputs:  # of a module that returns no samples
            return
        with open(self.metadata, "a") as file:
            rows = zip(outputs["image"], outputs["prompt"], outputs["index"], outputs["seed"])
            for i, (image, prompt, index, seed) in enumerate(rows):
                name = f"{index:05d}{video_ending() if image.ndim == 4 else '.png'}"
                pictures, path = to_pictures(image), os.path.join(self.path, name)
                save_video(pictures, path, outputs["fps"]) if image.ndim == 4 else save_png(pictures[0], path)
                scores = {key: float(score[i]) for key, score in outputs["scores"].items()}
                line = {"file_name": name, "prompt": prompt, "seed": seed, **scores}
                line |= {"rewritten": outputs["rewritten"][i]} if "rewritten" in outputs else {}
                file.write(json.dumps(line | ({"cost": outputs["cost"]} if "cost" in outputs else {})) + "\n")

    def on_predict_end(self, trainer, module) -> None:
        if trainer.is_global_zero:
            print(f"samples and metadata.jsonl in {self.path}")

    def teardown(self, trainer, module, stage: str) -> None:
        if stage == "predict" and trainer.is_global_zero and not self.path:  # Lightning calls no hook of an empty one
            print("predict wrote nothing: there was no batch of prompts.")
