"""MPS: a preference under a condition, the words that say what matters."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards.clip import CLIPReward, load_clip
from lit_align.rewards.cross_model import CrossModel
from lit_align.rewards.tokens import tokenize
from lit_align.rewards.weights import build, part, read

OVERALL = (  # the released model's condition
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)


class MPS(CLIPReward):
    """MPS (Zhang et al. 2024, arXiv 2405.14705): logit_scale x cosine of the prompt's feature and of the image's, which
    attends only to those words of the prompt that matter under a condition.

    A word matters if its largest product with a word of the condition, over the largest of the prompt's words, is above
    a threshold. (The official code divides by the largest of the batch, so it must be asked for one prompt at a time.)

    Args:
        checkpoint: what `python -m lit_align convert_mps` makes of the released file; null for the CLIP of `pretrained`
            and random fusion layers, to train from.
        pretrained: hub id or folder of a transformers CLIPModel: its configuration and tokenizer.
        condition: words that say what matters; the released model was trained for these alone.
        threshold: 0.3 in the official evaluation, 0.01 in the official model's own forward.
    """

    name = "mps"
    artefact = "`MPS_overall_checkpoint.pth`, linked by github.com/Kwai-Kolors/MPS, converted by `convert_mps`"
    licence = "MIT"
    scale = "logit_scale x cosine, its range is not published"

    def __init__(
        self,
        checkpoint: str | None,
        pretrained: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        condition: str = OVERALL,
        threshold: float = 0.3,
    ):
        if checkpoint:
            from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

            state, where = read(checkpoint), find(pretrained)
            clip = build(CLIPModel, CLIPConfig.from_pretrained(where), part(state, "model."), checkpoint)
            super().__init__(clip, CLIPTokenizer.from_pretrained(where))
            self.cross_model = CrossModel.load(part(state, "cross_model."), checkpoint)
        else:
            super().__init__(*load_clip(pretrained))
            sizes = (2, 2, 4) if pretrained == "tiny" else (4, 16, 64)  # layers, heads and their width
            self.cross_model = CrossModel(self.model.config.projection_dim, *sizes)
        self.condition, self.threshold = self.ids([condition]), threshold
        self.truncated = None  # counts prompts, not the condition
        self.eval()

    def ids(self, prompts: list[str]) -> Tensor:
        """Token ids (B, 77); padding is attended to as all tokens are."""
        return tokenize(self, self.tokenizer, prompts, self.model.config.text_config.max_position_embeddings).input_ids

    def text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Projected text features of every token, (B, 77, D), and of the whole, (B, D)."""
        out = self.model.text_model(input_ids=ids.to(self.model.device))
        return self.model.text_projection(out.last_hidden_state), self.model.text_projection(out.pooler_output)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self._scores(images, prompts, self.condition)[:, 0]

    def under(self, images: Tensor, prompts: list[str], conditions: list[str]) -> Tensor:
        """Scores under each of C conditions, (B, C)."""
        truncated = self.truncated
        ids = self.ids(conditions)
        self.truncated = truncated  # counts prompts, not conditions
        return self._scores(images, prompts, ids)

    def _scores(self, images: Tensor, prompts: list[str], conditions: Tensor) -> Tensor:
        words, whole = self.text(self.ids(prompts))
        seen = self.model.vision_model(pixel_values=self.pixels(images)).last_hidden_state
        seen, found = self.model.visual_projection(seen), []  # (B, 257, D)
        for condition in self.text(conditions)[0]:
            similar = (words @ condition.T).amax(2)  # (B, 77)
            matters = similar / similar.amax(1, keepdim=True) > self.threshold
            fused = self.cross_model(seen, words, matters[:, None, None])
            found.append(self.model.logit_scale.exp() * F.cosine_similarity(fused[:, 0], whole))
        return torch.stack(found, 1)

    def save(self, folder: str) -> dict:
        """Writes `mps.safetensors`, as `convert_mps` does, and CLIP's configuration and tokenizer."""
        from safetensors.torch import save_model

        os.makedirs(folder, exist_ok=True)
        file = os.path.join(folder, "mps.safetensors")
        both = nn.ModuleDict({"model": self.model, "cross_model": self.cross_model})
        save_model(both, file)
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return {"checkpoint": file, "pretrained": folder}
