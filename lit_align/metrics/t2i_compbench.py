"""T2I-CompBench: attributes, places, numbers and actions of several objects."""

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.metrics.benchmark import Benchmark
from lit_align.metrics.detector import OpenDetector
from lit_align.paths import find
from lit_align.rewards.blip_vqa import BLIPVQA
from lit_align.rewards.clip_score import CLIPScore
from lit_align.rewards.geneval import Detection
from lit_align.rewards.preprocess import resize
from lit_align.rewards.reward import Reward

FLAT = ("on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of")
DEEP = ("in front of", "behind", "hidden")
NUMBERS = {w: n for n, w in enumerate("one two three four five six seven eight".split(), 1)} | {"a": 1, "an": 1}
PERSON = ("girl", "boy", "man", "woman")
OTHER = dict.fromkeys(PERSON, "person") | {
    "ship": "boat",
    "telivision": "tv",
    "goldfish": "fish",
    "painting": "picture",
}


def overlap(a: tuple, b: tuple) -> tuple[float, float, float]:
    """Intersection over union of two boxes, and the intersection's share of each."""
    area = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    inside = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    share = lambda whole: inside / whole if whole else 0.0
    return share(area(a) + area(b) - inside), share(area(a)), share(area(b))


def placed(relation: str, a: tuple, b: tuple, near: float = 150.0, least: float = 0.1) -> float:
    """How far box a lies so from box b, 0 to 1: `near` in pixels (of images of 512), `least` the IoU up to which two
    boxes are apart."""
    dx, dy = (b[0] + b[2] - a[0] - a[2]) / 2, (b[1] + b[3] - a[1] - a[3]) / 2
    if relation in FLAT[:3]:
        return 1.0 if min(abs(dx), abs(dy)) < near else near / max(abs(dx), abs(dy))
    towards = {"on the right of": (-dx, dy), "on the left of": (dx, dy), "on the bottom of": (-dy, dx)}
    along, across = towards.get(relation, (dy, dx))  # on the top of
    iou = overlap(a, b)[0]
    return 0.0 if along <= 0 or along <= abs(across) else 1.0 if iou < least else least / iou


def stacked(relation: str, a: tuple, b: tuple, depth: Tensor, least: float = 0.5) -> float:
    """How far box a is before (`in front of`) or behind box b by the mean of `depth` (H, W), higher is nearer. Boxes
    that do not overlap give 0."""
    mean = lambda box: depth[int(box[1]) : int(box[3]) + 1, int(box[0]) : int(box[2]) + 1].mean().item()
    nearer, iou = mean(a) - mean(b), overlap(a, b)[0]
    right = nearer > 0 if relation == "in front of" else nearer < 0
    return min(iou / least, 1.0) if right else 0.0


def pair_score(found: dict[str, list[Detection]], first: str, second: str, place) -> float:
    """0.25 of each object's confidence plus half of `place(box, box)`, of the surest of each; without one of the two
    0.25 of the other's confidence."""
    a, b = found.get(first), found.get(second)
    if first == second:
        a, b = (a[:1], a[1:2]) if a else (None, None)
    score = 0.25 * sum(one[0].score for one in (a, b) if one)
    return score + (place(a[0].box, b[0].box) / 2 if a and b else 0.0)


def counted(found: list[Detection]) -> int:
    """Objects without those that share more than 0.9 of themselves with one before."""
    kept: list[Detection] = []
    for one in found:
        if not any(max(overlap(one.box, other.box)) > 0.9 for other in kept):
            kept.append(one)
    return len(kept)


class Depth(nn.Module):
    """A DPTForDepthEstimation of transformers: how near each pixel is.

    Args:
        pretrained: hub id or folder; "tiny" for random weights.
    """

    artefact = "`Intel/dpt-large`"

    def __init__(self, pretrained: str = "Intel/dpt-large"):
        from transformers import DPTConfig, DPTForDepthEstimation

        super().__init__()
        if pretrained == "tiny":
            shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
            shape |= {"backbone_out_indices": [0, 1, 2, 3], "image_size": 32, "patch_size": 8, "fusion_hidden_size": 8}
            self.model = DPTForDepthEstimation(DPTConfig(**shape, neck_hidden_sizes=[8, 8, 8, 8], is_hybrid=False))
        else:
            self.model = DPTForDepthEstimation.from_pretrained(find(pretrained), dtype=torch.float32)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        """(H, W) of an image (3, H, W) in [0, 1]; higher is nearer."""
        side = self.model.config.image_size
        pixels = (resize(image[None], (side, side)).clamp(0, 1) - 0.5) / 0.5
        near = self.model(pixel_values=pixels).predicted_depth[:, None]
        return F.interpolate(near, image.shape[1:], mode="bilinear", align_corners=True)[0, 0]


class T2ICompBench(Benchmark):
    """T2I-CompBench and T2I-CompBench++ (Huang et al. 2023, arXiv 2307.06350, released code), one category at a time.

    - color, shape, texture: the product over the prompt's phrases of BLIP's P(yes) when asked for the phrase.
    - spatial: confidence and place of the two objects, see `pair_score` and `placed`; below 0.5 it counts 0.
    - 3d_spatial: the same with the depth, see `stacked`, without that floor.
    - numeracy: of each object half for its presence and half for its exact number.
    - non_spatial: CLIP ViT-B/32's cosine.
    - complex: the mean of color and spatial, of color and non_spatial, or of all three, as the column `kind` of a
      prompt says: spatial, action or both (complex_val_spatial.txt and complex_val_action.txt list them).

    The published prompts are text files, one for each category; ten images of a prompt are measured. A prompt's phrases
    and objects are read by spaCy's en_core_web_sm as in the released code (pip install spacy, then python -m spacy
    download en_core_web_sm), or come from the columns `phrases` and `objects`, each a list of texts. The detector is
    OWLv2 in place of UniDet and the depth is DPT's: these categories' figures are not those of papers. (The released
    code reads the depth map with rows and columns exchanged.)

    Args:
        category: one of the above.
        asker: answers questions with P(yes) (default: BLIPVQA).
        detector: finds objects.
        clip: the text-image score of non_spatial, 100 x cosine (default: CLIPScore of CLIP ViT-B/32).
        depth: how near pixels are.
    """

    artefact = f"{BLIPVQA.artefact}; {OpenDetector.artefact}; `openai/clip-vit-base-patch32`; `Intel/dpt-large`"
    blind_to = "whatever the category does not ask for"

    def __init__(
        self,
        category: Literal[
            "color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex"
        ] = "color",
        asker: Reward | None = None,
        detector: OpenDetector | None = None,
        clip: Reward | None = None,
        depth: Depth | None = None,
    ):
        super().__init__()
        self.category, self.name = category, f"t2i_compbench_{category}"
        attributes, places = ("color", "shape", "texture", "complex"), ("spatial", "3d_spatial", "numeracy", "complex")
        self.asker = (asker or BLIPVQA()) if category in attributes else None
        self.detector = (detector or OpenDetector()) if category in places else None
        self.clip = None
        if category in ("non_spatial", "complex"):
            self.clip = clip or CLIPScore("openai/clip-vit-base-patch32")
        self.depth = (depth or Depth()) if category == "3d_spatial" else None
        self.requires_grad_(False)

    def judge(self, images: Tensor, prompts: list[str], phrases=None, objects=None, kind=None) -> list[dict]:
        given = lambda column, i: column[i] if column is not None and column[i] is not None else None
        rows = [(given(phrases, i), given(objects, i), given(kind, i)) for i in range(len(prompts))]
        scores = [self.score(image, prompt, *row) for image, prompt, row in zip(images, prompts, rows, strict=True)]
        return [{"scores": [("", score)], self.name: score} for score in scores]

    def score(self, image: Tensor, prompt: str, phrases, objects, kind) -> float:
        attributes = lambda: self.attributes(image, phrases or noun_chunks(prompt))
        spatial = lambda: self.spatial(image, prompt, objects or nouns(prompt))
        action = lambda: self.clip(image[None], [prompt]).item() / 100
        if self.category == "complex":
            if kind not in ("spatial", "action", "both"):
                raise ValueError(
                    f"complex prompts need a column `kind`: spatial, action or both; {prompt!r} has {kind!r}."
                )
            parts = {"spatial": (attributes, spatial), "action": (attributes, action)}
            parts = parts.get(kind, (attributes, spatial, action))
            return sum(part() for part in parts) / len(parts)
        if self.category == "numeracy":
            return self.numeracy(image, objects or numbered(prompt))
        if self.category == "non_spatial":
            return action()
        return spatial() if "spatial" in self.category else attributes()

    def attributes(self, image: Tensor, phrases: list[str]) -> float:
        """The product of P(yes) of at most eight phrases, as questions."""
        asked = [f"{phrase}?" for phrase in phrases[:8]]
        return self.asker(image.expand(len(asked), -1, -1, -1), asked).double().prod().item() if asked else 1.0

    def spatial(self, image: Tensor, prompt: str, objects: list[str]) -> float:
        first, second = (OTHER.get(name, name) if name in PERSON else name for name in (objects[0], objects[-1]))
        found = self.detector(image, list(dict.fromkeys((first, second))))
        deep = self.category == "3d_spatial"
        prompt = prompt.replace("on top of", "on the top of")
        relation = next((word for word in (DEEP if deep else FLAT) if word in prompt), None)
        if relation is None:
            raise ValueError(f"{prompt!r} names no place ({', '.join(DEEP if deep else FLAT)}).")
        if deep:
            depth = self.depth(image)
            return pair_score(found, first, second, lambda a, b: stacked(relation, a, b, depth))
        score = pair_score(found, first, second, lambda a, b: placed(relation, a, b))
        return score if score >= 0.5 else 0.0

    def numeracy(self, image: Tensor, objects: list[str]) -> float:
        """`objects` as "two dogs" or "two dog": a number and a name each."""
        wanted = []
        for text in objects:
            number, name = text.split(" ", 1)
            if number not in NUMBERS:
                raise ValueError(f"{text!r} begins with no number from one to eight.")
            wanted.append((OTHER.get(name, name), NUMBERS[number]))
        found = self.detector(image, [name for name, _ in wanted])
        score = lambda name, n: 0.0 if not found[name] else 0.5 + 0.5 * (counted(found[name]) == n)
        return sum(score(name, n) for name, n in wanted) / len(wanted)


def parsed(prompt: str):
    """The prompt as spaCy reads it. ValueError if it is not installed."""
    try:
        import spacy

        return spacy.load("en_core_web_sm")(prompt)
    except (ModuleNotFoundError, OSError) as error:
        raise ValueError(
            "T2I-CompBench reads prompts by spaCy: pip install spacy, then python -m spacy download en_core_web_sm; or "
            "give the prompts' file the columns `phrases` and `objects`."
        ) from error


def noun_chunks(prompt: str) -> list[str]:
    """Its noun phrases, without those that are places."""
    skipped = ("top", "the side", "the left", "the right")
    return [text for chunk in parsed(prompt).noun_chunks if (text := str(chunk)) not in skipped]


def nouns(prompt: str) -> list[str]:
    return [token.text for token in parsed(prompt) if token.pos_ == "NOUN"]


def numbered(prompt: str) -> list[str]:
    """Each number and the name after it, its last word in the singular."""
    found, words = [], list(parsed(prompt))
    for i, word in enumerate(words):
        name = list(itertools.takewhile(lambda w: w.pos_ == "NOUN", words[i + 1 :]))
        if word.text.lower() in NUMBERS and name:
            found.append(" ".join([word.text.lower(), *(w.text for w in name[:-1]), name[-1].lemma_]))
    return found
