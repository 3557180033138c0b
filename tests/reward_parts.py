"""What tests of published rewards share: images, small artefacts of the published formats, and the direction of a gradient."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lit_align.policies import tiny

PROMPTS = ["a red circle", "two blue squares left of a cross"]


def photo(height, width, n=1, seed=0):
    """Smooth random images."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, height // 6 + 2, width // 6 + 2, generator=g)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0.02, 0.98)


def noise(height, width, n=1, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def pil(image):
    """(3, H, W) in [0, 1] as a PIL image."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def randomise(module, scale=0.3, seed=0):
    """Random weights that matter: norms and biases, too."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = (p.data if p.ndim < 2 else 0) + scale * torch.randn(p.shape, generator=g)
    return module.eval()


def clip_folder(folder, hidden_act="gelu", side=32, projection=16):
    """A small CLIPModel with random weights and its tokenizer, as the hub has them."""
    from transformers import CLIPConfig, CLIPModel

    small, words = tiny.CLIPModel()
    text = small.config.text_config.to_dict() | {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "hidden_act": hidden_act}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": side, "patch_size": 8, "hidden_act": hidden_act}
    model = randomise(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)), 0.1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def by_hand(folder, images, prompts):
    """Cosine of the features that transformers' own processor, tokenizer and model give."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model, words = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    side = model.config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels = processor([pil(image) for image in images], return_tensors="pt").pixel_values
    tokens = words(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=pixels, **tokens)
    return F.cosine_similarity(out.image_embeds, out.text_embeds)


class Block(nn.Module):
    """A residual block of open_clip, under its names."""

    def __init__(self, width, heads, act):
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 2 * width), "c_proj": nn.Linear(2 * width, width)})
        self.act = act

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp.c_proj(self.act(self.mlp.c_fc(self.ln_2(x))))


class OpenCLIP(nn.Module):
    """The architecture of open_clip and OpenAI's CLIP under their names, of the size that `clip_folder` has."""

    def __init__(self, words, end, act=F.gelu, side=32, projection=16):
        super().__init__()
        self.end = end  # token id of the end of text
        self.visual, self.transformer = nn.Module(), nn.Module()
        self.visual.conv1 = nn.Conv2d(3, 64, 8, 8, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(64))
        self.visual.positional_embedding = nn.Parameter(torch.randn((side // 8) ** 2 + 1, 64))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
        self.visual.transformer = nn.Module()
        self.visual.transformer.resblocks = nn.ModuleList(Block(64, 2, act) for _ in range(2))
        self.visual.proj = nn.Parameter(torch.randn(64, projection))
        self.token_embedding = nn.Embedding(words, 32)
        self.positional_embedding = nn.Parameter(torch.randn(77, 32))
        self.transformer.resblocks = nn.ModuleList(Block(32, 2, act) for _ in range(2))
        self.ln_final = nn.LayerNorm(32)
        self.text_projection = nn.Parameter(torch.randn(32, projection))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, x):
        v, x = self.visual, self.visual.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
        x = v.ln_pre(x)
        for block in v.transformer.resblocks:
            x = block(x)
        return v.ln_post(x[:, 0]) @ v.proj

    def encode_text(self, ids):
        x, n = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]], ids.shape[1]
        for block in self.transformer.resblocks:
            x = block(x, torch.full((n, n), float("-inf")).triu(1))
        last = (ids == self.end).int().argmax(1)  # the first
        return self.ln_final(x)[torch.arange(len(ids)), last] @ self.text_projection

    def cosine(self, pixels, ids):
        return F.cosine_similarity(self.encode_image(pixels), self.encode_text(ids))


def open_clip(words, act=F.gelu, **kwargs):
    """An OpenCLIP with random weights for a tokenizer's vocabulary."""
    torch.manual_seed(0)
    return randomise(OpenCLIP(len(words), words.eos_token_id, act, **kwargs), 0.1)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def published_ids(words, prompts):
    """Token ids (B, 77) as open_clip makes them: zeros after the end of text."""
    rows = torch.zeros(len(prompts), 77, dtype=torch.long)
    for row, prompt in zip(rows, prompts):
        ids = words(prompt).input_ids
        row[: len(ids)] = torch.tensor(ids)
    return rows


def assert_points_up(reward, images, prompts, step=1e-3):
    """A small step of the images along the gradient raises every score and one against it lowers it, by what it says."""
    x = images.clone().requires_grad_()
    score = reward(x, prompts)
    (g,) = torch.autograd.grad(score.sum(), x)
    norm = g.flatten(1).norm(dim=1)
    assert (norm > 0).all()
    d = step * g / norm.view(-1, 1, 1, 1)
    with torch.no_grad():
        up, down = reward(images + d, prompts), reward(images - d, prompts)
    assert (up > score).all() and (down < score).all()
    torch.testing.assert_close((up - down) / 2, step * norm, rtol=0.1, atol=2e-6 if x.dtype == torch.float else 0.0)
