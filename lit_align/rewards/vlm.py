"""What rewards of vision-language models share: the model, its chat, its next token, its answers."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards import tiny
from lit_align.rewards.published import loaded
from lit_align.rewards.vlm_images import patches

DType = Literal["float32", "bfloat16", "float16"]


def in_chunks(f: Callable, size: int, *columns) -> Tensor:
    """f of `size` rows of the columns at a time, concatenated."""
    return torch.cat([f(*(c[i : i + size] for c in columns)) for i in range(0, len(columns[0]), size)])


class VLM(nn.Module):
    """A chat model of transformers that sees images, frozen.

    Models of the Qwen-VL line (2, 2.5, 3, 3.5) get their images by `patches`: gradients reach them. Others get them
    by their own processor, as 8-bit pictures.

    Args:
        pretrained: hub id or folder; "tiny" for random weights of a tiny Qwen-VL.
        dtype: of the weights; what is read from the model is float32.
        chunk: conversations in one forward pass.
        state: weights to take in place of those of `pretrained`.
        file: where they are from.
        kind: of the tiny model.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: DType,
        chunk: int,
        state: dict | None = None,
        file: str = "",
        kind: str = "Qwen2_5_VL",
    ):
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
            self.model = loaded(AutoModelForImageTextToText, where, pretrained, dtype=self.dtype)
        else:
            config = AutoConfig.from_pretrained(where)
            words = next(v for k, v in state.items() if k.endswith("embed_tokens.weight"))
            config.get_text_config().vocab_size = len(words)
            cls = AutoModelForImageTextToText._model_mapping[type(config)]
            self.model = loaded(cls, None, file, config=config, state_dict=state, dtype=self.dtype)
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
