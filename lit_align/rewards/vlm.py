"""What rewards of vision-language models share: the model, its chat, its next token, its answers."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import fetch, find
from lit_align.rewards import tiny


def in_chunks(f: Callable, size: int, *columns) -> Tensor:
    """f of `size` rows of the columns at a time, concatenated."""
    return torch.cat([f(*(c[i : i + size] for c in columns)) for i in range(0, len(columns[0]), size)])


def loaded(cls, pretrained: str | None, **options) -> nn.Module:
    """cls.from_pretrained, in eval mode and without gradient. ValueError if the weights lack a tensor or have one of
    another shape; those that the model has no place for are ignored."""
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = cls.from_pretrained(pretrained, **options)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{pretrained or 'the checkpoint'} lacks {missing[0]}: it holds no {cls.__name__} of this size."
        )
    if wrong := sorted(info["mismatched_keys"]):
        name, found, needed = wrong[0]
        raise ValueError(f"{pretrained or 'the checkpoint'}: {name} is {tuple(found)}, and must be {tuple(needed)}.")
    return model.eval().requires_grad_(False)


def load_into(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """module.load_state_dict, in float32. ValueError names the first tensor that is missing, unknown or of another
    shape."""
    own = module.state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own:
            raise ValueError(f"{where} {'lacks' if name in own else 'has an unknown tensor'} {name}.")
        if own[name].shape != state[name].shape:
            found, needed = tuple(state[name].shape), tuple(own[name].shape)
            raise ValueError(f"{where}: {name} is {found}, and must be {needed}.")
    module.load_state_dict({name: value.float() for name, value in state.items()})
    module.eval().requires_grad_(False)


def published(file: str, part: str) -> str:
    """The one string of a published Python file that contains `part`, with `{name}` where it is filled in. The file is
    parsed, never run; a local path, or an https address."""
    found, inner = [], set()
    for node in ast.walk(ast.parse(Path(fetch(file)).read_text())):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(value) for value in node.values}
            found.append(
                "".join(v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append(node.value)
    found = list(dict.fromkeys(text for text in found if part in text))
    if len(found) != 1:
        raise ValueError(
            f"{file} has {len(found)} strings that contain {part!r}; it must be the published file, with one."
        )
    return found[0]


class Unreadable(ValueError):
    """An answer that does not say what it was asked for. The message names the answer."""


def read_all(read: Callable[[str], float], answers: list[str], on_failure: str) -> Tensor:
    """read(answer) of each (N,), float32. One that raises Unreadable raises it on, or is NaN where on_failure is
    "mask"."""
    numbers = []
    for answer in answers:
        try:
            numbers.append(read(answer))
        except Unreadable:
            if on_failure == "stop":
                raise
            numbers.append(float("nan"))
    return torch.tensor(numbers)


def the_number(answer: str, label: str, low: float, high: float) -> float:
    """The number after `label` in an answer. Unreadable unless it stands there exactly once and lies in [low, high]."""
    found = re.findall(re.escape(label) + r"\s*(-?\d+(?:\.\d+)?)(?![\d/%]|\.\d)", answer)
    if len(found) != 1 or answer.count(label) != 1 or not low <= float(found[0]) <= high:
        raise Unreadable(
            f"the judge must say `{label}` and a number from {low:g} to {high:g} once; it said {answer!r}."
        )
    return float(found[0])


def smart_size(processor, height: int, width: int) -> tuple[int, int]:
    """Qwen's size of an image: sides that are multiples of a merged patch, area between the processor's bounds."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    low, high = processor.size["shortest_edge"], processor.size["longest_edge"]
    return smart_resize(height, width, processor.patch_size * processor.merge_size, low, high)


def patches(processor, images: Tensor) -> tuple[Tensor, Tensor]:
    """What Qwen's image processor makes of images (N, 3, H, W) in [0, 1], differentiable: flat patches of all images
    (N g_h g_w, 3 T p p), merged patches side by side, and the grid (1, g_h, g_w) of each, (N, 3)."""
    size, p, m = smart_size(processor, *images.shape[-2:]), processor.patch_size, processor.merge_size
    x = images.float()
    if size != tuple(x.shape[-2:]):
        x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    n, h, w = len(x), size[0] // p, size[1] // p
    x = ((x - mean) / std).view(n, 3, h // m, m, p, w // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.unsqueeze(6).expand(*x.shape[:6], processor.temporal_patch_size, p, p)  # a picture is a still film
    return x.reshape(n * h * w, -1), torch.tensor([[1, h, w]], device=x.device).expand(n, 3)


def square(images: Tensor, side: int) -> Tensor:
    """CLIP's input from whole images (N, 3, H, W) in [0, 1]: padded to a square with CLIP's mean colour, resized
    (bicubic), normalised; differentiable."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    (h, w), x = images.shape[-2:], images.float()
    mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    long, top, left = max(h, w), max(w - h, 0) // 2, max(h - w, 0) // 2
    canvas = ((mean * 255).int() / 255).expand(len(x), 3, long, long).clone()  # an 8-bit colour, as released
    canvas[..., top : top + h, left : left + w] = x
    if long != side:
        canvas = F.interpolate(canvas, (side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return (canvas - mean) / std


class VLM(nn.Module):
    """A chat model of transformers that sees images, frozen; always in eval mode.

    Models of the Qwen-VL line (2, 2.5, 3, 3.5) get their images by `patches`: gradients reach them. Others get them
    by their own processor, as 8-bit pictures.

    Args:
        pretrained: hub id or folder; "tiny" for random weights of a tiny Qwen-VL.
        dtype: of the weights; what is read from the model is float32.
        chunk: conversations in one forward pass.
        state: weights to take in place of those of `pretrained`.
        kind: of the tiny model.
    """

    def __init__(self, pretrained: str, dtype: str, chunk: int, state: dict | None = None, kind: str = "Qwen2_5_VL"):
        super().__init__()
        self.chunk, self.dtype = chunk, getattr(torch, dtype)
        if pretrained == "tiny":
            self.model, self.tokenizer, self.pictures = tiny.qwen(kind)
            self.template, self.differentiable = self.tokenizer.chat_template, True
            return
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
            ProcessorMixin,
        )

        where = find(pretrained)
        if state is None:
            self.model = loaded(AutoModelForImageTextToText, where, dtype=self.dtype)
        else:
            config = AutoConfig.from_pretrained(where)
            words = next(v for k, v in state.items() if k.endswith("embed_tokens.weight"))
            config.get_text_config().vocab_size = len(words)
            cls = AutoModelForImageTextToText._model_mapping[type(config)]
            self.model = loaded(cls, None, config=config, state_dict=state, dtype=self.dtype)
        self.differentiable = self.model.config.model_type.startswith("qwen")
        if self.differentiable:  # their own processors need torchvision, for films
            self.tokenizer = AutoTokenizer.from_pretrained(where)
            self.pictures = AutoImageProcessor.from_pretrained(where)
            template = ProcessorMixin.get_processor_dict(where)[0].get("chat_template")
            self.template = template or self.tokenizer.chat_template
        else:
            self.processor = AutoProcessor.from_pretrained(where)
            self.tokenizer, self.template = self.processor.tokenizer, self.processor.chat_template
        if not self.template:
            raise ValueError(f"{pretrained} has no chat template: it is no chat model.")
        self.tokenizer.padding_side = "left"

    def train(self, mode: bool = True) -> "VLM":
        """Stays in eval mode."""
        return super().train(False)

    def token(self, word: str) -> int:
        """The id of a word that is one token. ValueError if it is several."""
        ids = self.tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(
                f"{word!r} is {len(ids)} tokens of this model, and must be one to be read from its logits."
            )
        return ids[0]

    def chat(self, images: int, text: str) -> str:
        """A user's turn with a number of images and then a text, as the model's chat template writes it."""
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
        turns, options = [{"role": "user", "content": content}], {"tokenize": False, "add_generation_prompt": True}
        return self.tokenizer.apply_chat_template(turns, chat_template=self.template, **options)

    def inputs(self, images: Tensor, texts: list[str]) -> dict[str, Tensor]:
        """The model's inputs for images (N, K, 3, H, W) in [0, 1], K to a turn, and N texts; padded on the left."""
        chats, device = [self.chat(images.shape[1], text) for text in texts], self.model.device
        if not self.differentiable:
            from PIL import Image

            pixels = (images.detach().float() * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
            pictures = [[Image.fromarray(picture) for picture in row] for row in pixels]
            return self.processor(images=pictures, text=chats, padding=True, return_tensors="pt").to(device, self.dtype)
        values, grid = patches(self.pictures, images.flatten(0, 1).to(device))
        mark = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        each = int(grid[0].prod()) // self.pictures.merge_size**2
        words = self.tokenizer([chat.replace(mark, mark * each) for chat in chats], padding=True, return_tensors="pt")
        ids = words.input_ids.to(device)
        return {
            "input_ids": ids,
            "attention_mask": words.attention_mask.to(device),
            "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
            "pixel_values": values.to(self.model.dtype),
            "image_grid_thw": grid,
        }

    def next_token(self, images: Tensor, texts: list[str], ids: list[int]) -> Tensor:
        """Logits (N, len(ids)), float32, of the first token of the answers."""

        def logits(images, texts):
            return self.model(**self.inputs(images, texts), logits_to_keep=1).logits[:, -1, ids].float()

        return in_chunks(logits, self.chunk, images, texts)

    def yes(self, images: Tensor, texts: list[str]) -> Tensor:
        """P(yes) / (P(yes) + P(no)) of the first token of the answers (N,), with and without a capital."""
        yes, no = (
            [i for w in words if (i := self.tokenizer.encode(w, add_special_tokens=False))[1:] == []]
            for words in (("Yes", "yes"), ("No", "no"))
        )
        ids = [i[0] for i in (*yes, *no)]
        if not yes or not no:
            raise ValueError("yes or no is no single token of this model: its answers cannot be read from its logits.")
        logits = self.next_token(images, texts, ids)
        return torch.sigmoid(logits[:, : len(yes)].logsumexp(1) - logits[:, len(yes) :].logsumexp(1))

    @torch.no_grad()
    def answers(self, images: Tensor, texts: list[str], max_new_tokens: int = 512) -> list[str]:
        """The likeliest answers, token by token."""
        said = []
        for i in range(0, len(texts), self.chunk):
            inputs = self.inputs(images[i : i + self.chunk], texts[i : i + self.chunk])
            ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            ids = ids[:, inputs["input_ids"].shape[1] :]
            said += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return said
