"""mPLUG-Owl2 (Ye et al. 2023, arXiv 2311.04257): a LLaMA whose norms, keys and values have weights of their own for
image tokens. Modules are named as in its checkpoints; transformers has no such model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def heads(x: Tensor, n: int) -> Tensor:
    """(B, L, D) -> (B, n, L, D / n)."""
    return x.unflatten(2, (n, -1)).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, d: int, n: int):
        super().__init__()
        self.n, self.query_key_value, self.dense = n, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(2, (self.n, 3, -1)).permute(3, 0, 2, 1, 4)  # (B, n, L, d / n) each
        return self.dense(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Of the image encoder, a CLIP ViT."""

    def __init__(self, d: int, n: int, inner: int, eps: float):
        super().__init__()
        self.self_attn, self.mlp = Attention(d, n), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(d, inner), nn.Linear(inner, d)
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(d, eps), nn.LayerNorm(d, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        h = self.mlp.fc1(self.post_attention_layernorm(x))
        return x + self.mlp.fc2(h * torch.sigmoid(1.702 * h))


class VisionModel(nn.Module):
    """Image tokens (B, 1 + P, d) of pixels (B, 3, S, S)."""

    def __init__(self, c: dict):
        super().__init__()
        d, patch, eps = c["hidden_size"], c["patch_size"], c["layer_norm_eps"]
        self.embeddings, self.encoder = nn.Module(), nn.Module()
        self.embeddings.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.embeddings.patch_embed = nn.Conv2d(3, d, patch, patch, bias=False)
        self.embeddings.position_embedding = nn.Parameter(torch.zeros(1, 1 + (c["image_size"] // patch) ** 2, d))
        self.embeddings.pre_layernorm = nn.LayerNorm(d, eps)
        layer = (d, c["num_attention_heads"], c["intermediate_size"], eps)
        self.encoder.layers = nn.ModuleList(Layer(*layer) for _ in range(c["num_hidden_layers"]))
        self.post_layernorm = nn.LayerNorm(d, eps)

    def forward(self, pixels: Tensor) -> Tensor:
        e = self.embeddings
        x = torch.cat([e.cls_token.expand(len(pixels), -1, -1), e.patch_embed(pixels).flatten(2).transpose(1, 2)], 1)
        x = e.pre_layernorm(x + e.position_embedding)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class CrossAttention(nn.Module):
    """Queries look at themselves and at the image. The residual starts from the normalised queries, as released."""

    def __init__(self, c: dict):
        super().__init__()
        d, seen, inner = c["hidden_size"], c["encoder_hidden_size"], c["intermediate_size"]
        self.n, self.attention, self.output = c["num_attention_heads"], nn.Module(), nn.Module()
        self.attention.query, self.attention.key, self.attention.value = (nn.Linear(i, d) for i in (d, seen, seen))
        self.attention.register_buffer("q_pos_embed", torch.zeros(c["num_learnable_queries"], d))
        self.attention.register_buffer("k_pos_embed", torch.zeros(1 + (c.get("grid_size") or 32) ** 2, d))
        self.norm1, self.normk = nn.LayerNorm(d), nn.LayerNorm(d)
        self.output.out_proj, self.output.norm2, self.output.mlp = nn.Linear(d, d), nn.LayerNorm(d), nn.Module()
        mlp = self.output.mlp
        mlp.w1, mlp.w2, mlp.w3 = nn.Linear(d, inner), nn.Linear(inner, d), nn.Linear(d, inner)
        mlp.ffn_ln = nn.LayerNorm(inner, c["layer_norm_eps"])

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        a, out, queries = self.attention, self.output, self.norm1(queries)
        both = torch.cat([queries, self.normk(image)], 1)
        q = a.query(queries + a.q_pos_embed)
        k, v = a.key(both + torch.cat([a.q_pos_embed, a.k_pos_embed])), a.value(both)
        h = F.scaled_dot_product_attention(*(heads(x, self.n) for x in (q, k, v))).transpose(1, 2).flatten(2)
        x = queries + out.out_proj(h)
        h = out.norm2(x)
        return x + out.mlp.w2(out.mlp.ffn_ln(F.silu(out.mlp.w1(h)) * out.mlp.w3(h)))


class VisualAbstractor(nn.Module):
    """Image tokens (B, 1 + P, d) -> the language model's (B, queries + 1, D); the last one ends the image."""

    def __init__(self, c: dict, width: int):
        super().__init__()
        self.query_embeds = nn.Parameter(torch.zeros(1, c["num_learnable_queries"], c["hidden_size"]))
        self.vit_eos, self.visual_fc = nn.Parameter(torch.zeros(1, 1, width)), nn.Linear(c["hidden_size"], width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(nn.Module() for _ in range(c["num_hidden_layers"]))
        for layer in self.encoder.layers:
            layer.crossattention = CrossAttention(c)

    def forward(self, image: Tensor) -> Tensor:
        x = self.query_embeds.expand(len(image), -1, -1)
        for layer in self.encoder.layers:
            x = layer.crossattention(x, image)
        return torch.cat([self.visual_fc(x), self.vit_eos.expand(len(x), -1, -1)], 1)


class Multiway(nn.Module):
    """multiway[0] for words, multiway[1] where `image` (L, 1) is True."""

    def __init__(self, make):
        super().__init__()
        self.multiway, self.image = nn.ModuleList([make(), make()]), None

    def forward(self, x: Tensor) -> Tensor:
        words, image = (way(x) for way in self.multiway)
        return torch.where(self.image, image, words)


def mplug_owl2():
    """The class, built from a LlamaConfig with `visual_config`."""
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class MPLUGOwl2(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            visual, d = config.visual_config, config.hidden_size
            self.model.vision_model = VisionModel(visual["visual_model"])
            self.model.visual_abstractor = VisualAbstractor(visual["visual_abstractor"], d)
            size = d // config.num_attention_heads * config.num_key_value_heads
            for layer in self.model.layers:
                layer.input_layernorm = Multiway(lambda: LlamaRMSNorm(d, config.rms_norm_eps))
                layer.post_attention_layernorm = Multiway(lambda: LlamaRMSNorm(d, config.rms_norm_eps))
                layer.self_attn.k_proj = Multiway(lambda: nn.Linear(d, size, bias=config.attention_bias))
                layer.self_attn.v_proj = Multiway(lambda: nn.Linear(d, size, bias=config.attention_bias))

        def next_token(self, pixels: Tensor, before: list[int], after: list[int]) -> Tensor:
            """Logits (B, V) of the token that follows words, an image (B, 3, S, S), and words."""
            image = self.model.visual_abstractor(self.model.vision_model(pixels))
            words = (self.model.embed_tokens(torch.tensor(ids, device=image.device)) for ids in (before, after))
            first, last = (w.expand(len(image), -1, -1) for w in words)
            mask = torch.tensor([0] * len(before) + [1] * image.shape[1] + [0] * len(after), device=image.device)
            for module in self.modules():
                if isinstance(module, Multiway):
                    module.image = mask.bool()[:, None]
            inputs = torch.cat([first, image, last], 1)
            return self(inputs_embeds=inputs, logits_to_keep=1, use_cache=False).logits[:, -1]

    return MPLUGOwl2
