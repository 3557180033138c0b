"""Qwen-Image-Edit: edits an image by an instruction (arXiv 2508.02324)."""

import torch
from torch import Tensor

from lit_align.diffusion.conditioning import fill_tensors
from lit_align.policies.editing import Editing, to_pil
from lit_align.policies.packing import pack, unpack
from lit_align.policies.qwen_image import QwenImage


def qwen_processor(pictures, words):
    """A Qwen2VLProcessor of an image processor and a tokenizer. What it lacks, a processor of films, needs torchvision:
    without that, transformers neither loads nor makes one."""
    from transformers import Qwen2VLProcessor

    class Pictures(Qwen2VLProcessor):
        get_attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])

    Pictures.__name__, Pictures.__module__ = Qwen2VLProcessor.__name__, Qwen2VLProcessor.__module__  # as it is saved
    return Pictures(pictures, words)


class QwenImageEdit(Editing, QwenImage):
    """Qwen-Image with the image that is edited, twice: Qwen2.5-VL reads it with the instruction, and its latents are
    tokens after those of the image that is made. Guidance leads away from a blank with the same image. (diffusers
    resizes the image to about 1024^2 pixels; here it has the policy's size.)"""

    pipeline_class = "QwenImageEditPipeline"

    def load_parts(self, where, revision):
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Pictures

        place = {"subfolder": "processor", "revision": revision}
        pictures = Pictures.from_pretrained(where, **place)
        return {"processor": qwen_processor(pictures, AutoTokenizer.from_pretrained(where, **place))}

    def embed(self, prompts: list[str], device: torch.device, source: list[Tensor]) -> dict[str, Tensor]:
        pictures = [self.seen(image) for image in source]
        text = self.read(prompts, pictures, device)
        null = {f"null.{name}": v for name, v in self.read([" "] * len(prompts), pictures, device).items()}
        return text | null | {"source": self.source_latents(source)}

    def seen(self, image: Tensor):
        """What Qwen2.5-VL is shown of an image (3, H, W)."""
        return to_pil(image)

    def read(self, prompts: list[str], pictures: list, device: torch.device) -> dict[str, Tensor]:
        """Hidden states (B, L, D) of Qwen2.5-VL, and which are real (B, L)."""
        text, mask = self.pipe.encode_prompt(prompts, pictures, device)
        mask = torch.ones(text.shape[:2], device=text.device) if mask is None else mask
        return {"text": text, "mask": mask.bool()}

    def predict(self, x_t, t, cond):
        (h, w), (high, wide) = x_t.shape[2:], cond["source"].shape[2:]
        sizes = [[(1, h // 2, w // 2), (1, high // 2, wide // 2)]] * len(x_t)
        tokens = torch.cat([pack(x_t), pack(cond["source"])], 1)
        out = self.denoiser(tokens, cond["text"], cond["mask"], t, sizes).sample
        return unpack(out[:, : h * w // 4], h, w)


class QwenImageEditPlus(QwenImageEdit):
    """Qwen-Image-Edit 2509 and later, with one image: Qwen2.5-VL is shown it at about 384^2 pixels."""

    pipeline_class = "QwenImageEditPlusPipeline"

    def seen(self, image):
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        picture = to_pil(image)
        width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, picture.width / picture.height)
        return self.pipe.image_processor.resize(picture, height, width)

    def read(self, prompts, pictures, device):
        rows = [self.pipe.encode_prompt([p], [picture], device)[0] for p, picture in zip(prompts, pictures)]
        text = fill_tensors(rows)
        mask = [torch.arange(text[0].shape[1], device=device) < row.shape[1] for row in rows]
        return {"text": torch.cat(text), "mask": torch.stack(mask)}
