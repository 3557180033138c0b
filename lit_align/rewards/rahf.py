"""RAHF, rich automatic human feedback: scores of an image, maps of its faults, and the words that it misses."""

import math
import os
import re
from typing import Literal

import torch
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards.preprocess import normalise, stretch
from lit_align.rewards.rahf_heads import HeatmapPredictor, ScorePredictor
from lit_align.rewards.reward import Reward
from lit_align.rewards.tokens import tokenize
from lit_align.rewards.weights import build, fill, part, read

SCORES = ("plausibility", "alignment", "aesthetics", "overall")
HEATMAPS = ("implausibility", "misalignment")
DELIMITERS = r"[,.?!\":; ]+"  # between the words of a prompt
VIT_NAMES = (  # of transformers' ViTModel -> of version 4, with which the file was written
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
TINY = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
TINY_VIT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}


def published_name(name: str) -> str:
    """A tensor's name in the released file."""
    for pattern, replacement in VIT_NAMES if name.startswith("vit.") else ():
        name = re.sub(pattern, replacement, name)
    return name


class RAHF(Reward):
    """The model of RichHF-18K (Liang et al. 2024, arXiv 2312.10240, section 4), as its first author rebuilt it with one
    head for each output (github.com/youweiliang/RichHF). The tokens of a ViT-L/16 and of the prompt go through T5's
    encoder; convolutions on the image's tokens give scores and maps; T5's decoder writes the prompt and marks the words
    that the image misses.

    The image is stretched to a square. Punctuation is taken from prompts, as in training. A prompt scores as it does
    alone: the padding of a batch is masked (official: it is read).

    Args:
        checkpoint: the released `rahf_model.pt`, a file; null for random weights, or those of `vit`.
        pretrained: hub id or folder of T5's configuration and tokenizer; "tiny" for a small model.
        score: the reward; all for four numbers per image.
        vit: to train from pre-trained parts, without a checkpoint: hub id or folder of a ViT; T5's weights are then
            those of `pretrained`, and the heads are random.
    """

    name, differentiable, text_limit = "rahf", True, 512
    artefact = "`rahf_model.pt`, linked by github.com/youweiliang/RichHF"
    licence = "CC BY-NC 4.0 for the weights"
    scale = "0 to 1 each"
    blind_to = "detail, as the image has 384 pixels; the shape of an image that is not square"

    def __init__(
        self,
        checkpoint: str | None,
        pretrained: str = "google-t5/t5-base",
        score: Literal["plausibility", "alignment", "aesthetics", "overall", "all"] = "overall",
        vit: str | None = None,
    ):
        super().__init__()
        self.score, self.names = score, SCORES if score == "all" else ()
        state = read(checkpoint) if checkpoint else {}
        if checkpoint:
            self._load(state, checkpoint, pretrained)
        elif vit and pretrained != "tiny":
            self._pretrained(vit, pretrained)
        else:
            self._random()
        vision, width = self.vit.config, self.t5.config.d_model
        cells = (vision.image_size // vision.patch_size) ** 2
        self.visual_token_projection = nn.Linear(vision.hidden_size, width)
        self.heatmap_predictor = nn.ModuleDict({name: HeatmapPredictor(width) for name in HEATMAPS})
        self.score_predictor = nn.ModuleDict({name: ScorePredictor(width, cells) for name in SCORES})
        for name in ("visual_token_projection", "heatmap_predictor", "score_predictor") if checkpoint else ():
            fill(getattr(self, name), part(state, f"{name}."), checkpoint)
        self.eval()

    def _random(self) -> None:
        from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTModel

        from lit_align.policies import tiny

        self.tokenizer = tiny.CLIPModel()[1]
        self.vit = ViTModel(ViTConfig(**TINY_VIT, image_size=32, patch_size=16))
        self.t5 = T5ForConditionalGeneration(T5Config(**TINY, vocab_size=len(self.tokenizer)))

    def _pretrained(self, vit: str, pretrained: str) -> None:
        from transformers import T5ForConditionalGeneration, T5Tokenizer, ViTModel

        self.vit = ViTModel.from_pretrained(find(vit), dtype=torch.float32)
        self.t5 = T5ForConditionalGeneration.from_pretrained(find(pretrained), dtype=torch.float32)
        self.tokenizer = T5Tokenizer.from_pretrained(find(pretrained))

    def _load(self, state: dict[str, Tensor], checkpoint: str, pretrained: str) -> None:
        from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer, ViTConfig, ViTModel

        where, vit = find(pretrained), part(state, "vit.")
        width, _, patch, _ = vit["embeddings.patch_embeddings.projection.weight"].shape
        config = ViTConfig(
            hidden_size=width,
            intermediate_size=len(vit["encoder.layer.0.intermediate.dense.weight"]),
            num_hidden_layers=len({name.split(".")[2] for name in vit if name.startswith("encoder.layer.")}),
            num_attention_heads=width // 64,
            image_size=math.isqrt(vit["embeddings.position_embeddings"].shape[1] - 1) * patch,
            patch_size=patch,
        )
        self.vit = build(ViTModel, config, vit, checkpoint)
        self.t5 = build(T5ForConditionalGeneration, T5Config.from_pretrained(where), part(state, "t5."), checkpoint)
        self.tokenizer = T5Tokenizer.from_pretrained(where)

    def encode(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the image's cells, (B, C, h, w), and of the prompt's tokens, (B, L, C), with their mask."""
        pixels = normalise(stretch(images, self.vit.config.image_size), (0.5,) * 3, (0.5,) * 3)
        seen = self.visual_token_projection(self.vit(pixel_values=pixels).last_hidden_state)  # (B, 1 + h w, C)
        words = [" ".join(filter(None, re.split(DELIMITERS, prompt))) for prompt in prompts]
        tokens = tokenize(self, self.tokenizer, words, self.text_limit)
        length = int(tokens.attention_mask.sum(1).max())
        ids, mask = (tokens[name][:, :length].to(images.device) for name in ("input_ids", "attention_mask"))
        out = self.t5.encoder(
            inputs_embeds=torch.cat([seen, self.t5.encoder.embed_tokens(ids)], 1),
            attention_mask=torch.cat([mask.new_ones(seen.shape[:2]), mask], 1),
        ).last_hidden_state
        side = math.isqrt(seen.shape[1] - 1)
        cells = out[:, 1 : seen.shape[1]].transpose(1, 2).unflatten(2, (side, side))
        return cells, out[:, seen.shape[1] :], mask

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        cells = self.encode(images, prompts)[0]
        if self.score != "all":
            return self.score_predictor[self.score](cells)
        return torch.stack([self.score_predictor[name](cells) for name in SCORES], 1)

    def feedback(self, images: Tensor, prompts: list[str], marked: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What training compares: scores (B, 4), maps (B, 2, H, W), in the order of SCORES and HEATMAPS, and the mean
        cross-entropy of `marked`, the prompts with the missed words marked, as T5 writes them."""
        from transformers.modeling_outputs import BaseModelOutput

        cells, text, mask = self.encode(images, prompts)
        scores = torch.stack([self.score_predictor[name](cells) for name in SCORES], 1)
        maps = torch.stack([self.heatmap_predictor[name](cells) for name in HEATMAPS], 1)
        due = self.tokenizer(marked, padding=True, truncation=True, max_length=self.text_limit, return_tensors="pt")
        labels = due.input_ids.masked_fill(due.attention_mask == 0, -100).to(images.device)  # padding is not learnt
        out = self.t5(encoder_outputs=BaseModelOutput(last_hidden_state=text), attention_mask=mask, labels=labels)
        return scores, maps, out.loss

    def save(self, folder: str) -> dict:
        """Writes `rahf_model.pt` under its published names, and T5's configuration and tokenizer."""
        os.makedirs(folder, exist_ok=True)
        file = os.path.join(folder, "rahf_model.pt")
        torch.save({published_name(name): value for name, value in self.state_dict().items()}, file)
        self.t5.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return {"checkpoint": file, "pretrained": folder}

    def heatmaps(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Where the image is implausible and where it misses the prompt: maps (B, 384, 384) in [0, 1] of the image
        stretched to a square, as `implausibility` and `misalignment`."""
        cells = self.encode(images.float(), prompts)[0]
        return {name: self.heatmap_predictor[name](cells) for name in HEATMAPS}

    @torch.no_grad()
    def words(self, images: Tensor, prompts: list[str], max_new_tokens: int = 100) -> list[list[tuple[str, bool]]]:
        """Each prompt as the model writes it: (word, whether the image shows it)."""
        from transformers.modeling_outputs import BaseModelOutput

        _, text, mask = self.encode(images.float(), prompts)
        ids = self.t5.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=text), attention_mask=mask, max_new_tokens=max_new_tokens
        )
        written = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [[(w.removesuffix("_0"), not w.endswith("_0")) for w in prompt.split()] for prompt in written]
