"""BLIP's visual question answering as a score: the prompt is the question."""

import torch
from torch import Tensor

from lit_align.paths import find
from lit_align.rewards.preprocess import normalise, resize
from lit_align.rewards.reward import Reward


class BLIPVQA(Reward):
    """P(yes) / (P(yes) + P(no)) of BLIP's first word in answer to the prompt as a question (Li et al. 2022, arXiv
    2201.12086); T2I-CompBench asks it for each phrase of a prompt (Huang et al. 2023, arXiv 2307.06350).

    Args:
        pretrained: hub id or folder of a BlipForQuestionAnswering with its tokenizer; "tiny" for random weights.
        name: in logs.
    """

    differentiable, text_limit = True, 35
    artefact = "`Salesforce/blip-vqa-capfilt-large`"
    licence = "BSD-3-Clause (its card, from memory)"
    scale = "a probability, 0 to 1"
    blind_to = "detail beyond its resolution (384 or 480 pixels, stretched to a square)"

    def __init__(self, pretrained: str = "Salesforce/blip-vqa-capfilt-large", name: str = "blip_vqa"):
        from transformers import BertTokenizer, BlipForQuestionAnswering

        super().__init__()
        self.name = name
        if pretrained == "tiny":
            self.model, self.tokenizer = tiny()
        else:
            self.model = BlipForQuestionAnswering.from_pretrained(find(pretrained), dtype=torch.float32)
            self.tokenizer = BertTokenizer.from_pretrained(find(pretrained))
        self.model.eval()
        self.start, self.question = self.model.config.text_config.bos_token_id, self.tokenizer.vocab_size + 1  # [ENC]
        self.words = [self.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        side = self.model.config.vision_config.image_size
        pixels = normalise(resize(images, (side, side)).clamp(0, 1))
        seen = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return torch.cat([self.answer(one[None], prompt) for one, prompt in zip(seen, prompts, strict=True)])

    def answer(self, seen: Tensor, question: str) -> Tensor:
        """(1,) of the features (1, P, D) of one image: transformers' decoder does not leave out padding."""
        words = self.tokenizer(question, truncation=True, max_length=self.text_limit, return_tensors="pt")
        ids = words.input_ids.to(seen.device)
        ids[:, 0] = self.question
        asked = self.model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        start = torch.full((1, 1), self.start, device=ids.device)
        logits = self.model.text_decoder(input_ids=start, encoder_hidden_states=asked).logits
        return logits[:, 0, self.words].softmax(1)[:, 0]


def tiny():
    """A BLIP of one layer with random weights, the same every time, and a tokenizer of letters."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    tokenizer = letters()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {"vocab_size": len(tokenizer) + 2, "encoder_hidden_size": 16, "bos_token_id": len(tokenizer)}
    text |= {"pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3, "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BlipConfig(text_config=text, vision_config=shape | {"image_size": 16, "patch_size": 4})
        return BlipForQuestionAnswering(config), tokenizer


def letters():
    """A BERT tokenizer of letters, yes and no."""
    import tempfile
    from pathlib import Path

    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "?", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("\n".join(words))
        return BertTokenizer(str(Path(folder, "vocab.txt")))
