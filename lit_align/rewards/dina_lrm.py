"""DiNa-LRM: a latent reward model on the first blocks of Stable Diffusion 3.5."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.paths import find
from lit_align.policies.policy import Policy
from lit_align.rewards.step_reward import StepReward
from lit_align.rewards.weights import fill


class TimeAdapter(nn.Module):
    """Tokens of one block (B, N, D), modulated by the time embedding (B, D), as (B, N, out)."""

    def __init__(self, d: int, out: int):
        super().__init__()
        self.layer_embed = nn.Parameter(0.02 * torch.randn(1, 1, d))
        self.cond_mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, 2 * d))
        self.proj = nn.Linear(d, out)
        nn.init.zeros_(self.cond_mlp[2].weight)
        nn.init.zeros_(self.cond_mlp[2].bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.cond_mlp(time)[:, None].chunk(2, 2)
        return self.proj(x * (1 + scale) + shift + self.layer_embed)


class QueryAttention(nn.Module):
    """Queries (B, Q, D) look at image tokens and, where `text`, at text tokens by keys and values of their own; each
    token's value is then gated by a number from the token."""

    def __init__(self, d: int, heads: int, text: bool):
        super().__init__()
        self.heads, self.text = heads, text
        self.norm_q, self.norm_v, self.to_q = nn.RMSNorm(d), nn.RMSNorm(d), nn.Linear(d, d)
        self.to_k_vis, self.to_v_vis, self.to_out = nn.Linear(d, d), nn.Linear(d, d), nn.Sequential(nn.Linear(d, d))
        if text:
            self.norm_t, self.to_k_text, self.to_v_text = nn.RMSNorm(d), nn.Linear(d, d), nn.Linear(d, d)
            self.gate_vis, self.gate_text = (nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 1)) for _ in "vt")

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, image: Tensor, text: Tensor) -> Tensor:
        q, image = self.to_q(self.norm_q(x)), self.norm_v(image)
        v = self.to_v_vis(image)
        h = self.attend(q, self.to_k_vis(image), v * self.gate_vis(image).sigmoid() if self.text else v)
        if self.text:
            text = self.norm_t(text)
            h = h + self.attend(q, self.to_k_text(text), self.to_v_text(text) * self.gate_text(text).sigmoid())
        return x + self.to_out(h)


class RewardHead(nn.Module):
    """The score (B,) of the tokens of several blocks. Names are those of the released rm_head.pt."""

    def __init__(self, d: int, blocks: int, num_queries: int = 4, num_attn_heads: int = 8):
        super().__init__()
        out = d // 4
        self.layer_adapters_visual = nn.ModuleList(TimeAdapter(d, out) for _ in range(blocks))
        self.layer_adapters_text = nn.ModuleList(TimeAdapter(d, out) for _ in range(blocks))
        self.agg_visual, self.agg_text = nn.Linear(blocks * out, d), nn.Linear(blocks * out, d)
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, num_queries, d))
        self.attn1, self.attn2 = QueryAttention(d, num_attn_heads, True), QueryAttention(d, num_attn_heads, False)
        self.norm_ff, self.head = nn.RMSNorm(d), nn.Linear(d, 1)
        self.ff = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, image: list[Tensor], text: list[Tensor], time: Tensor) -> Tensor:
        v = self.agg_visual(torch.cat([f(x, time) for f, x in zip(self.layer_adapters_visual, image, strict=True)], 2))
        t = self.agg_text(torch.cat([f(x, time) for f, x in zip(self.layer_adapters_text, text, strict=True)], 2))
        q = self.attn2(self.attn1(self.query_tokens.expand(len(v), -1, -1), v, t), v, t)
        return self.head(q + self.ff(self.norm_ff(q))).mean((1, 2))


class DiNaLRM(StepReward):
    """Liu et al. 2026, arXiv 2602.11146: learnt queries read the image's and the text's tokens after several blocks of
    the transformer at x_t, each modulated by the time. Its score is used as (score + 10) / 10 in the paper's runs.

    NoisedReward makes an image reward of it.

    Args:
        backbone: Stable Diffusion 3.5 medium, which the released weights belong to; blocks that are not read are
            removed. Give it adapter Frozen.
        checkpoint: hub id or folder of the released model: config.json, checkpoint/backbone_lora, checkpoint/rm_head.pt
            (None: a random head on a sixth, a third and half of the blocks).
    """

    needs_x0 = False
    artefact = "`liuhuohuo/DiNa-LRM-SD35M-12layers`"
    licence = "not known"
    scale = "the model's own; the paper uses (score + 10) / 10"
    blind_to = "what the encoder loses"

    def __init__(self, backbone: Policy, checkpoint: str | None = "liuhuohuo/DiNa-LRM-SD35M-12layers"):
        super().__init__()
        transformer = backbone.denoiser
        if type(transformer).__name__ != "SD3Transformer2DModel":
            raise ValueError(f"DiNaLRM reads Stable Diffusion 3's transformer; {type(backbone).__name__} has none.")
        depth, head = len(transformer.transformer_blocks), {}
        self.backbone, blocks = backbone, sorted({max(1, depth * k // 6) for k in (1, 2, 3)})
        if checkpoint:
            folder = released(checkpoint)
            config = json.loads((folder / "config.json").read_text())["model"]
            blocks, head = read(config, checkpoint)
        transformer.transformer_blocks = transformer.transformer_blocks[: max(blocks)]
        if checkpoint:
            add_lora(transformer, folder / "checkpoint/backbone_lora", checkpoint)
        self.tokens: list[tuple[Tensor, Tensor]] = []  # text, image after each block that is read
        for k in blocks:
            transformer.transformer_blocks[k - 1].register_forward_hook(lambda _, __, out: self.tokens.append(out))
        transformer.time_text_embed.register_forward_hook(lambda _, __, out: setattr(self, "time", out))
        self.head = RewardHead(transformer.inner_dim, len(blocks), **head)
        if checkpoint:
            state = torch.load(folder / "checkpoint/rm_head.pt", "cpu", weights_only=True)
            fill(self.head, state, f"{checkpoint}/checkpoint/rm_head.pt")

    def forward(self, policy, x_t, x_0, t, prompts):
        unique = list(dict.fromkeys(prompts))
        rows = [unique.index(p) for p in prompts]
        cond = self.backbone.condition(unique)
        self.backbone.denoise(x_t, t, {k: v[rows] for k, v in cond.items()})
        text, image = ([x.float() for x in block] for block in zip(*self.tokens, strict=True))
        self.tokens.clear()
        return self.head(image, text, self.time.float())


def released(checkpoint: str) -> Path:
    """The folder of a released model, downloaded where it is a hub id."""
    where = find(checkpoint)
    if not Path(where).is_dir():
        from huggingface_hub import snapshot_download

        where = snapshot_download(checkpoint)
    return Path(where)


def read(config: dict, checkpoint: str) -> tuple[list[int], dict]:
    """The blocks that are read, from 1, and the head's sizes. ValueError for a variant that is not built here."""
    head, blocks = config["reward_head"], config["visual_head_idx"]
    fixed = {"use_proj_in": False, "width": -1, "out_dim": 1}
    odd = {k: head[k] for k, v in fixed.items() if head.get(k, v) != v}
    odd |= {k: config[k] for k in ("use_logistic",) if config.get(k)}
    if config["text_head_idx"] != blocks or blocks[0] == 0:
        odd["text_head_idx"] = config["text_head_idx"]
    if odd:
        raise ValueError(f"{checkpoint} has {', '.join(f'{k} {v}' for k, v in odd.items())}, which is not built here.")
    return blocks, {k: head[k] for k in ("num_queries", "num_attn_heads") if k in head}


def add_lora(transformer: nn.Module, folder: Path, checkpoint: str) -> None:
    """Adds a LoRA of peft to the transformer's weights. ValueError names a tensor that the transformer has no place
    for."""
    from peft import PeftModel
    from safetensors.torch import load_file

    for name in load_file(folder / "adapter_model.safetensors"):
        layer = name.removeprefix("base_model.model.").split(".lora_")[0]
        try:
            transformer.get_submodule(layer)
        except AttributeError:
            raise ValueError(f"{checkpoint}: the transformer has no {layer}, to which a LoRA belongs.") from None
    PeftModel.from_pretrained(transformer, str(folder)).merge_and_unload()
