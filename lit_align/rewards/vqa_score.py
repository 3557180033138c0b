"""VQAScore: the probability that CLIP-FlanT5 says yes when asked whether the image shows the prompt."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards import tiny
from lit_align.rewards.published import loaded, published
from lit_align.rewards.reward import Reward
from lit_align.rewards.vlm import DType, in_chunks
from lit_align.rewards.vlm_images import square

CONSTANTS = "https://raw.githubusercontent.com/linzhiqiu/t2v_metrics/6ecb74f92028f42c7e64546d3a71e98c8c73068f/"
NAMES = {r"^vision_tower\.vision_tower\.vision_model\.": "vision_tower.vision_tower."}  # transformers before 5


def clip_t5():
    """The class of CLIP-FlanT5: FLAN-T5 that reads CLIP's patches, projected, among the words of its encoder."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, T5ForConditionalGeneration

    class CLIPT5(T5ForConditionalGeneration):
        def __init__(self, config):
            super().__init__(config)
            eyes = CLIPVisionConfig.from_pretrained(find(config.mm_vision_tower))
            self.vision_tower, wide = nn.Module(), config.d_model
            self.vision_tower.vision_tower = CLIPVisionModel(eyes)
            self.mm_projector = nn.Sequential(nn.Linear(eyes.hidden_size, wide), nn.GELU(), nn.Linear(wide, wide))

        def see(self, pixels: Tensor) -> Tensor:
            """Embeddings (N, P, D) of images (N, 3, S, S): the patches of the last layer but one, projected."""
            layers = self.vision_tower.vision_tower(pixels, output_hidden_states=True).hidden_states
            return self.mm_projector(layers[-2][:, 1:])

    return CLIPT5


class VQAScore(Reward):
    """The geometric mean of P("Yes") and P(end), given that, in answer to the question whether the image shows the
    prompt (Lin et al. 2024, arXiv 2404.01291, eq. 1; as released).

    Args:
        pretrained: hub id or folder of CLIP-FlanT5, with its tokenizer.
        system: the released t2v_metrics/constants.py, which holds what the question is preceded by: a file or an https
            address.
        question: `{}` stands for the prompt.
        answer: whose probability is the score.
        dtype: of the weights.
        chunk: images in one forward pass.
    """

    name, differentiable = "vqascore", True
    artefact = "`zhiqiulin/clip-flant5-xxl` or -xl; configuration of `openai/clip-vit-large-patch14-336`"
    licence = "Apache-2.0"
    scale = "a probability, 0 to 1"
    blind_to = "detail beyond 336 x 336 pixels; whether the picture is beautiful"

    def __init__(
        self,
        pretrained: str = "zhiqiulin/clip-flant5-xxl",
        system: str = CONSTANTS + "t2v_metrics/constants.py",
        question: str = 'Does this figure show "{}"? Please answer yes or no.',
        answer: str = "Yes",
        dtype: DType = "bfloat16",
        chunk: int = 8,
    ):
        super().__init__()
        self.question, self.chunk = question, chunk
        if pretrained == "tiny":
            self.model, self.tokenizer = tiny.clip_flant5(clip_t5())
            self.system = ""
        else:
            from transformers import AutoTokenizer, T5Config

            where = find(pretrained)
            config, self.tokenizer = T5Config.from_pretrained(where), AutoTokenizer.from_pretrained(where)
            self.model = loaded(
                clip_t5(), where, pretrained, config=config, dtype=getattr(torch, dtype), key_mapping=NAMES
            )
            self.system = published(system, "assistant")
        self.answer = self.tokenizer(answer).input_ids  # with the end

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        texts = [self.question.replace("{}", prompt) for prompt in prompts]
        return in_chunks(self.probability, self.chunk, images, texts)

    def probability(self, images: Tensor, texts: list[str]) -> Tensor:
        """Of the answer, to the power of 1 / its tokens, (N,)."""
        model, words = self.model, self.tokenizer
        eyes = model.vision_tower.vision_tower.config
        seen = model.see(square(images, eyes.image_size).to(model.dtype))  # (N, P, D)
        ids = [words(part.strip()).input_ids for part in (f"{self.system} USER:", *(f"{t} ASSISTANT:" for t in texts))]
        before, *after = (
            model.shared(torch.tensor(i, device=seen.device)) for i in ids
        )  # each ends with </s>, as released
        rows = [torch.cat([before, image, text]) for image, text in zip(seen, after, strict=True)]
        mask = nn.utils.rnn.pad_sequence([seen.new_ones(len(row)) for row in rows], batch_first=True)
        labels = torch.tensor([self.answer] * len(rows), device=seen.device)
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        logits = model(inputs_embeds=inputs, attention_mask=mask, labels=labels).logits.float()
        return (-F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)).exp()
