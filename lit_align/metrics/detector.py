"""An open-vocabulary detector: where the objects of given names are."""

import torch
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.rewards.geneval import Detection
from lit_align.rewards.preprocess import normalise, resize


class OpenDetector(nn.Module):
    """OWLv2 (Minderer et al. 2023, arXiv 2306.09683): boxes of named objects, with scores.

    Args:
        pretrained: hub id or folder of an Owlv2ForObjectDetection with its tokenizer; "tiny" for random weights.
        threshold: the least score of an object.
        template: what is asked for; {name} becomes the object's name.
    """

    artefact = "`google/owlv2-base-patch16-ensemble`"

    def __init__(
        self,
        pretrained: str = "google/owlv2-base-patch16-ensemble",
        threshold: float = 0.2,
        template: str = "a photo of a {name}",
    ):
        super().__init__()
        self.threshold, self.template = threshold, template
        if pretrained == "tiny":
            self.model, self.tokenizer = tiny()
        else:
            from transformers import CLIPTokenizer, Owlv2ForObjectDetection

            self.model = Owlv2ForObjectDetection.from_pretrained(find(pretrained), dtype=torch.float32)
            self.tokenizer = CLIPTokenizer.from_pretrained(find(pretrained))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor, names: list[str]) -> dict[str, list[Detection]]:
        """The detections of each name in an image (3, H, W) in [0, 1], the surest first; boxes in its pixels. A box is
        of the name that suits it best."""
        side, longest = self.model.config.vision_config.image_size, max(image.shape[1:])
        height, width = image.shape[1:]
        padded = image.new_full((3, longest, longest), 0.5)  # OWLv2 pads below and on the right, in grey
        padded[:, :height, :width] = image
        pixels = normalise(resize(padded[None], (side, side), "bilinear").clamp(0, 1))
        texts = [self.template.replace("{name}", name) for name in names]
        length = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        out = self.model(pixel_values=pixels, **words.to(image.device))
        scores, best = out.logits[0].sigmoid().max(1)
        x, y, w, h = (out.pred_boxes[0] * longest).unbind(1)
        boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1).clamp(min=0)
        found: dict[str, list[Detection]] = {name: [] for name in names}
        for i in scores.argsort(descending=True).tolist():
            if scores[i] > self.threshold:
                left, top, right, bottom = boxes[i].tolist()
                box = (left, top, min(right, width), min(bottom, height))
                found[names[best[i]]].append(Detection(box, scores[i].item()))
        return found


def tiny():
    """An OWLv2 of one layer with random weights, the same every time, and its tokenizer."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    from lit_align.rewards.blip_vqa import letters

    words = letters()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {"vocab_size": len(words), "max_position_embeddings": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Owlv2Config(
            text_config=text, vision_config=shape | {"image_size": 32, "patch_size": 8}, projection_dim=16
        )
        return Owlv2ForObjectDetection(config), words
