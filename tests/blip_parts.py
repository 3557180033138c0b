"""BLIP's reward models under their published names: a small artefact, and its forward written out on the tensors."""

import json

import torch
import torch.nn.functional as F

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), "red", "circle", "two", "blue", "square"]
LINEAR = {"0": (1024, None), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "7": (1, 16)}
GELU = {"0": (1024, None), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "8": (1, 16)}
D, W, E, P, N = 128, 48, 3, 16, 2  # widths of image and text, heads of the text, patch, layers; the image has two heads


def artefact(folder, file, mlp=LINEAR, side=32):
    """Writes the weights and med_config.json under their published names, and a BERT tokenizer; returns the tensors."""
    from transformers import BertTokenizer

    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=g) * (0.2 if len(shape) < 2 else 1 / shape[-1] ** 0.5)
    state = {}

    def layer(name, n, m):
        state[f"{name}.weight"], state[f"{name}.bias"] = normal(n, m), normal(n)

    def norm(name, n):
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + normal(n), normal(n)

    eye = "blip.visual_encoder."
    state |= {f"{eye}cls_token": normal(1, 1, D), f"{eye}pos_embed": normal(1, (side // P) ** 2 + 1, D)}
    state |= {f"{eye}patch_embed.proj.weight": normal(D, 3, P, P), f"{eye}patch_embed.proj.bias": normal(D)}
    for i in range(N):
        block = f"{eye}blocks.{i}."
        norm(f"{block}norm1", D), norm(f"{block}norm2", D)
        layer(f"{block}attn.qkv", 3 * D, D), layer(f"{block}attn.proj", D, D)
        layer(f"{block}mlp.fc1", 2 * D, D), layer(f"{block}mlp.fc2", D, 2 * D)
    norm(f"{eye}norm", D)
    text = "blip.text_encoder."
    state[f"{text}embeddings.position_ids"] = torch.arange(128)[None]
    state |= {f"{text}embeddings.word_embeddings.weight": normal(len(WORDS), W), f"{text}embeddings.position_embeddings.weight": normal(128, W)}
    norm(f"{text}embeddings.LayerNorm", W)
    for i in range(N):
        block = f"{text}encoder.layer.{i}."
        for kind, width in (("attention", W), ("crossattention", D)):
            layer(f"{block}{kind}.self.query", W, W)
            layer(f"{block}{kind}.self.key", W, width), layer(f"{block}{kind}.self.value", W, width)
            layer(f"{block}{kind}.output.dense", W, W), norm(f"{block}{kind}.output.LayerNorm", W)
        layer(f"{block}intermediate.dense", 2 * W, W), layer(f"{block}output.dense", W, 2 * W), norm(f"{block}output.LayerNorm", W)
    layer("blip.vision_proj", 16, D), layer("blip.text_proj", 16, W)  # of BLIP's pre-training; unused
    for name, (n, m) in mlp.items():
        layer(f"mlp.layers.{name}", n, m or W)
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / file)
    sizes = {"hidden_size": W, "intermediate_size": 2 * W, "num_attention_heads": E, "num_hidden_layers": N, "vocab_size": len(WORDS)}
    config = {"architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "max_position_embeddings": 128, "model_type": "bert", "pad_token_id": 0, "type_vocab_size": 2, "encoder_width": W, "add_cross_attention": True}
    (folder / "med_config.json").write_text(json.dumps(config | sizes))
    BertTokenizer(vocab={w: i for i, w in enumerate(WORDS)}).save_pretrained(folder)
    return state


def attention(q, k, v, heads, mask=None):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def forward(state, pixels, ids, mask, activation=None):
    """The number of the MLP for each image, (N,): vision transformer, BERT with cross-attention, MLP of the first token."""
    s = state

    def layer(name, x):
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def norm(name, x, eps):
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)

    eye, text = "blip.visual_encoder.", "blip.text_encoder."
    x = F.conv2d(pixels, s[f"{eye}patch_embed.proj.weight"], s[f"{eye}patch_embed.proj.bias"], P).flatten(2).transpose(1, 2)
    x = torch.cat([s[f"{eye}cls_token"].expand(len(x), 1, -1), x], 1) + s[f"{eye}pos_embed"]
    for i in range(N):
        block = f"{eye}blocks.{i}."
        x = x + layer(f"{block}attn.proj", attention(*layer(f"{block}attn.qkv", norm(f"{block}norm1", x, 1e-6)).chunk(3, -1), D // 64))
        x = x + layer(f"{block}mlp.fc2", F.gelu(layer(f"{block}mlp.fc1", norm(f"{block}norm2", x, 1e-6))))
    seen = norm(f"{eye}norm", x, 1e-6)
    x = s[f"{text}embeddings.word_embeddings.weight"][ids] + s[f"{text}embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(f"{text}embeddings.LayerNorm", x, 1e-12)
    for i in range(N):
        block = f"{text}encoder.layer.{i}."
        for kind, source, seen_by in (("attention", None, mask[:, None, None].bool()), ("crossattention", seen, None)):
            source = x if source is None else source
            q, k, v = (layer(f"{block}{kind}.self.{name}", of) for name, of in (("query", x), ("key", source), ("value", source)))
            x = norm(f"{block}{kind}.output.LayerNorm", x + layer(f"{block}{kind}.output.dense", attention(q, k, v, E, seen_by)), 1e-12)
        y = layer(f"{block}output.dense", F.gelu(layer(f"{block}intermediate.dense", x)))
        x = norm(f"{block}output.LayerNorm", x + y, 1e-12)
    x = x[:, 0]
    names = sorted({k.split(".")[2] for k in s if k.startswith("mlp.")}, key=int)
    for name in names:
        x = layer(f"mlp.layers.{name}", x)
        x = activation(x) if activation and name != names[-1] else x
    return x.squeeze(1)


def inputs(folder, images, prompts, length):
    """Pixels by transformers' own processor, ids and mask by the tokenizer."""
    from reward_parts import pil
    from transformers import BertTokenizer, CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    words = BertTokenizer.from_pretrained(folder)(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return processor([pil(image) for image in images], return_tensors="pt").pixel_values, words.input_ids, words.attention_mask
