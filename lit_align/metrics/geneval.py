"""GenEval's benchmark."""

import json

import torch
from torch import Tensor

from lit_align.metrics.benchmark import Benchmark, share_of_prompts
from lit_align.rewards.geneval import GenEval, reasons


class GenEvalAccuracy(Benchmark):
    """GenEval (Ghosh et al. 2023, arXiv 2310.11513): the mean over its six tasks of the share of correct images.

    Takes the columns of the published evaluation_metadata.jsonl, 553 prompts, of which four images each are measured.
    `geneval/images` and `geneval/prompts` are the shares of correct images, and of prompts with one. `evaluate` writes
    geneval.jsonl in the format of the released results.

    The detector is transformers' Mask2Former, not MMDetection's: figures are not exactly those of papers.

    Args:
        detector: GenEval with the rule `correct`, or None for its default weights.
    """

    name, artefact, blind_to = "geneval", GenEval.artefact, GenEval.blind_to

    def __init__(self, detector: GenEval | None = None):
        super().__init__()
        self.detector = (detector or GenEval()).requires_grad_(False)

    def judge(self, images: Tensor, prompts: list[str], include, tag, exclude=None) -> list[dict]:
        rows = zip(images, prompts, include, tag, exclude or [None] * len(tag), strict=True)
        return [self.one(*row) for row in rows]

    def one(self, image: Tensor, prompt: str, include: list[dict], tag: str, exclude: list[dict] | None) -> dict:
        objects = self.detector.objects(image, tag)
        wrong = reasons(objects, include, exclude, lambda name, found: self.detector.colors(image, name, found))
        metadata = {"tag": tag, "include": include} | ({"exclude": exclude} if exclude else {}) | {"prompt": prompt}
        details = {name: [[*map(float, one.box), one.score] for one in found] for name, found in objects.items()}
        scores = [(tag, not wrong), ("images", not wrong)]
        record = {"scores": scores, "tag": tag, "correct": not wrong, "reason": "\n".join(wrong)}
        return record | {"metadata": json.dumps(metadata), "details": json.dumps(details)}

    def compute(self) -> dict[str, Tensor]:
        found = self.by_group()
        ids, scores = found.pop("images")
        means = {f"{self.name}/{tag}": one.mean().float() for tag, (_, one) in found.items()}
        overall = {self.name: torch.stack(list(means.values())).mean()} | means
        shares = {f"{self.name}/images": scores.mean(), f"{self.name}/prompts": share_of_prompts(ids, scores)}
        return overall | {name: share.float() for name, share in shares.items()}

    def files(self, records: list[dict]) -> dict[str, str]:
        keys = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")
        return {"geneval.jsonl": "".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in records)}
