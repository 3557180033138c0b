"""GenEval: an object detector reads the image, and rules compare it with what the prompt asks for."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards.clip import load_clip, pixels, text_features
from lit_align.rewards.reward import Reward

CLASSES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, "
    "clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")  # COCO's, in its order, as GenEval calls them
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
GREY = 0x99 / 255  # what an object is shown to CLIP on
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in units of 1/255


class Detection(NamedTuple):
    box: tuple[float, float, float, float]  # left, top, right, bottom, in pixels
    score: float
    mask: Tensor | None = None  # (H, W) bool


Objects = dict[str, list[Detection]]  # by class, the most confident first
Namer = Callable[[str, list[Detection]], list[str]]  # the colours of detections of a class


# Rules


def confident(detections: list[tuple[str, Detection]], tag: str, most: int = 16) -> Objects:
    """The detections of each class with a score above 0.3, or 0.9 for the tag `counting`, the `most` confident ones."""
    objects: Objects = {}
    for name, found in sorted(detections, key=lambda pair: -pair[1].score):
        kept = objects.setdefault(name, [])
        if found.score > (0.9 if tag == "counting" else 0.3) and len(kept) < most:
            kept.append(found)
    return {name: kept for name, kept in objects.items() if kept}


def relations(a: Detection, b: Detection, threshold: float = 0.1) -> set[str]:
    """Where a lies from b: none, one or two of RELATIONS. The offset of their centres is shortened by `threshold` times
    the sum of their widths, or heights, and must then be more than half of the whole offset's length."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.box, b.box
    dx, dy = (ax0 + ax1 - bx0 - bx1) / 2, (ay0 + ay1 - by0 - by1) / 2
    shorter = lambda d, sizes: max(abs(d) - threshold * sizes, 0) * (1 if d > 0 else -1)
    x, y = shorter(dx, ax1 - ax0 + bx1 - bx0), shorter(dy, ay1 - ay0 + by1 - by0)
    if max(abs(x), abs(y)) < 1e-3:
        return set()
    x, y = x / (dx * dx + dy * dy) ** 0.5, y / (dx * dx + dy * dy) ** 0.5
    return {name for name, holds in zip(RELATIONS, (x < -0.5, x > 0.5, y < -0.5, y > 0.5)) if holds}


def in_place(found: list[Detection], target: list[Detection], relation: str) -> bool:
    """Whether every one of `found` lies so from every one of `target`."""
    return all(relation in relations(a, b) for a in found for b in target)


def reasons(objects: Objects, include: list[dict], exclude: list[dict] | None, colors: Namer) -> list[str]:
    """Why an image is not correct, by the rules of Ghosh et al. 2023 (arXiv 2310.11513, released code); empty if it is.

    A clause {"class", "count", "color"?, "position"?: [relation, index of a clause before]} of `include` needs at least
    `count` objects; its colour and position are those of the `count` most confident ones. A class of `exclude` must
    have fewer than `count`.
    """
    wrong, matched = [], []  # matched: the objects of each clause, None if it does not hold
    for clause in include:
        name, count = clause["class"], clause["count"]
        found = objects.get(name, [])[:count]
        why = None
        if len(found) < count:
            why = f"expected {name}>={count}, found {len(found)}"
        elif color := clause.get("color"):
            seen = colors(name, found).count(color)
            why = f"expected {color} {name}>={count}, found {seen}" if seen < count else None
        if not why and (position := clause.get("position")):
            relation, target = position[0], matched[position[1]]
            if target is None:
                why = f"no target for {name} to be {relation}"
            elif not in_place(found, target, relation):
                why = f"expected {name} {relation} target"
        matched.append(None if why else found)
        wrong += [why] if why else []
    for clause in exclude or []:
        found = len(objects.get(clause["class"], []))
        if found >= clause["count"]:
            wrong.append(f"expected {clause['class']}<{clause['count']}, found {found}")
    return wrong


def graded(objects: Objects, include: list[dict], colors: Namer) -> tuple[float, bool]:
    """The reward of Flow-GRPO's released server, and whether the image is strictly correct: as many objects, not more.

    The reward is the mean of these terms. Of each clause 1 - |count - found| / count, which is below 0 beyond twice the
    count. Of a clause with as many objects as it asks for, the same for those of its colour; then for its position 1 if
    it holds, 0 and a further 1 if it does not, 0 if the clause that it refers to does not hold. Of any other clause
    with a colour or a position, 0.
    """
    terms, matched = [], []
    for clause in include:
        name, count = clause["class"], clause["count"]
        found = objects.get(name, [])
        color, position = clause.get("color"), clause.get("position")
        terms.append(1 - abs(count - len(found)) / count)
        holds = len(found) == count
        if not holds and (color or position):
            terms.append(0.0)
        if holds and color:
            seen = colors(name, found).count(color)
            terms.append(1 - abs(count - seen) / count)
            holds = seen == count
        if holds and position:
            target = matched[position[1]]
            holds = target is not None and in_place(found, target, position[0])
            terms += [1.0] if holds else [0.0] if target is None else [0.0, 1.0]
        matched.append(found if holds else None)
    return sum(terms) / max(len(terms), 1), all(found is not None for found in matched)


# The models that read an image


class InstanceDetector(nn.Module):
    """Mask2Former with COCO's 80 classes, as GenEval's detector is run: the image's shorter side is 800 pixels (the
    longer one at most 1333), and the 100 most likely pairs of query and class are objects. A score is the class's
    probability times the mean probability inside the mask.

    Weights are transformers', which were trained apart from the published detector of MMDetection: scores near a
    threshold fall on either side.

    Args:
        pretrained: hub id or folder of a Mask2FormerForUniversalSegmentation; "tiny" for random weights.
    """

    def __init__(self, pretrained: str):
        super().__init__()
        if pretrained == "tiny":
            from lit_align.policies import tiny

            self.model, self.sides = tiny.Mask2Former(), (64, 106)
        else:
            from transformers import Mask2FormerForUniversalSegmentation

            self.model, self.sides = Mask2FormerForUniversalSegmentation.from_pretrained(find(pretrained)), (800, 1333)
        if self.model.config.num_labels != len(CLASSES):
            found = f"{self.model.config.num_labels} classes"
            raise ValueError(f"{pretrained} has {found}; GenEval needs a detector of COCO's {len(CLASSES)} objects.")

    def forward(self, image: Tensor) -> list[tuple[str, Detection]]:
        """Every detection in an image (3, H, W) in [0, 1], with its class."""
        (height, width), (short, long) = image.shape[1:], self.sides
        scale = min(short / min(height, width), long / max(height, width))
        h, w = (int(side * scale + 0.5) for side in (height, width))
        mean, std = (image.new_tensor(v).view(3, 1, 1) / 255 for v in (MEAN, STD))
        x = F.interpolate((image * 255).round()[None] / 255, (h, w), mode="bilinear", align_corners=False)
        x = F.pad((x - mean) / std, (0, -w % 32, 0, -h % 32))
        out = self.model(pixel_values=x)
        probability = out.class_queries_logits[0].softmax(1)[:, :-1]  # (queries, classes); the last is none of them
        top, index = probability.flatten().topk(len(probability))
        query, name = index // len(CLASSES), index % len(CLASSES)
        masks = F.interpolate(out.masks_queries_logits, x.shape[2:], mode="bilinear", align_corners=False)[..., :h, :w]
        masks = F.interpolate(masks, (height, width), mode="bilinear", align_corners=False)[0][query]
        inside = masks > 0
        certainty = (masks.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        scores, names = (top * certainty).tolist(), [CLASSES[i] for i in name.tolist()]
        return [(n, Detection(box_of(m), s, m)) for n, s, m in zip(names, scores, inside, strict=True) if m.any()]


def box_of(mask: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask (H, W), the last two exclusive."""
    x, y = mask.any(0).nonzero().flatten(), mask.any(1).nonzero().flatten()
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


class GenEval(Reward):
    """GenEval (Ghosh et al. 2023, arXiv 2310.11513) as a reward: whether the image shows the objects that its row asks
    for, as many, in their colours and places. The columns are those of GenEval's metadata: `include`, `tag`, `exclude`.

    - `partial`: `graded`, which Flow-GRPO trains on (Liu et al. 2025, arXiv 2505.05470); it ignores `exclude`.
    - `strict`: 1 if there are exactly as many objects as asked for, by the same rules, else 0.
    - `correct`: 1 by GenEval's own rules (`reasons`), else 0.

    A colour is the most likely one of ten by CLIP, of the object's box with all but the object in grey. The detector is
    transformers' (see InstanceDetector), so numbers are not exactly those of papers. (Flow-GRPO's released server shows
    its detector JPEGs, with red and blue exchanged.)

    Args:
        rule: partial, strict or correct.
        pretrained: the detector: hub id or folder of a Mask2FormerForUniversalSegmentation.
        clip: hub id or folder of the CLIPModel that names colours.
        name: in logs.
    """

    differentiable = False
    artefact = "facebook/mask2former-swin-small-coco-instance, openai/clip-vit-large-patch14"
    licence = "detector: see its card; CLIP: MIT (its code)"
    scale = "partial: at most 1, below 0 for far too many objects; strict, correct: 0 or 1"
    blind_to = "everything but the objects asked for: style, quality, objects of no clause"

    def __init__(
        self,
        rule: Literal["partial", "strict", "correct"] = "partial",
        pretrained: str = "facebook/mask2former-swin-small-coco-instance",
        clip: str = "openai/clip-vit-large-patch14",
        name: str = "geneval",
    ):
        super().__init__()
        self.rule, self.name = rule, name
        self.detector = InstanceDetector(pretrained)
        self.model, self.tokenizer = load_clip("tiny" if pretrained == "tiny" else clip)
        self.classifiers: dict[str, Tensor] = {}  # class -> (10, D) a unit vector for each colour
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: list[str], include, tag, exclude=None) -> Tensor:
        rows = zip(images, include, tag, exclude or [None] * len(tag), strict=True)
        return torch.tensor([self.score(*row) for row in rows], device=images.device)

    def score(self, image: Tensor, include: list[dict], tag: str, exclude: list[dict] | None) -> float:
        objects, colors = self.objects(image, tag), lambda name, found: self.colors(image, name, found)
        if self.rule == "correct":
            return float(not reasons(objects, include, exclude, colors))
        partial, strict = graded(objects, include, colors)
        return partial if self.rule == "partial" else float(strict)

    def objects(self, image: Tensor, tag: str) -> Objects:
        """The confident detections in an image (3, H, W) in [0, 1]. Raises ValueError for an unknown tag."""
        if tag not in TAGS:
            raise ValueError(f"the tag {tag!r} is none of GenEval's: {', '.join(TAGS)}.")
        return confident(self.detector(image), tag)

    def colors(self, image: Tensor, name: str, found: list[Detection]) -> list[str]:
        """The colour of each of the detections of a class."""
        if name not in self.classifiers:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            text = F.normalize(text_features(self, texts), dim=1)
            self.classifiers[name] = F.normalize(text.view(len(COLORS), len(TEMPLATES), -1).mean(1), dim=1)
        crops = []
        for detection in found:
            left, top, right, bottom = detection.box
            shown = image.where(detection.mask, GREY)[:, top:bottom, left:right]
            crops.append(pixels(self.model, shown[None]))
        features = self.model.get_image_features(pixel_values=torch.cat(crops)).pooler_output
        return [COLORS[i] for i in (features @ self.classifiers[name].T).argmax(1).tolist()]
