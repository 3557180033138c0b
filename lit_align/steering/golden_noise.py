"""Golden noise: a network moves the initial noise to where re-denoising would take it."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.paths import fetch
from lit_align.steering.swin import Swin

PARTS = {"svd": "unet_svd", "swin": "unet_embedding", "text": "embeeding"}  # ours -> the release's, as it spells them


class SVDBranch(nn.Module):
    """New singular values of each mosaic of four channels: 2 x 2 channels of h x w make one matrix (2h, 2w)."""

    def __init__(self, side: int):
        super().__init__()
        mlp = lambda inner: nn.Sequential(nn.Linear(side, inner), nn.ReLU(), nn.Linear(inner, side))
        self.mlp1, self.mlp2, self.mlp3, self.mlp4 = mlp(64), mlp(64), nn.Sequential(nn.Linear(side, side)), mlp(1024)
        self.attention = nn.Module()
        self.attention.qkv, self.attention.proj = nn.Linear(side, 3 * side, bias=False), nn.Linear(side, side)
        self.bn = nn.BatchNorm2d(side)  # unused, as in the release: its files have it
        self.bn.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = x.shape[-1]
        mosaics = x.reshape(-1, 2, 2, h, h).transpose(2, 3).reshape(-1, 2 * h, 2 * h)
        u, s, v = torch.linalg.svd(mosaics)
        rows = self.mlp1(u.mT) + self.mlp2(v) + self.mlp3(s)[:, None]
        q, k, w = self.attention.qkv(rows).unflatten(-1, (3, 8, -1)).permute(2, 0, 3, 1, 4)
        rows = self.attention.proj(F.scaled_dot_product_attention(q, k, w).transpose(1, 2).flatten(2))
        made = u @ torch.diag_embed(self.mlp4(rows.mean(1)) + s) @ v
        return made.view(-1, 2, h, 2, h).transpose(2, 3).reshape(x.shape)


class SwinBranch(nn.Module):
    """Swin features of the noise as a picture of 224 x 224. The first axis of the 7 x 7 features is read as channels
    and their width as a row of pixels, as in the release."""

    def __init__(self, channels: int, **sizes):
        super().__init__()
        self.downconv, self.upconv = nn.Conv2d(channels, 3, 1), nn.Conv2d(7, channels, 1)
        self.swin = Swin(**sizes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.swin(self.downconv(F.interpolate(x, (224, 224))))  # (B, 7, 7, D)
        return self.upconv(F.interpolate(features, x.shape[-2:]))


class NPNet(nn.Module):
    """z_gold = SVD(z) + (2 sigmoid(alpha) - 1) e + beta Swin(z + e), e the noise normalised by the caption
    (AdaGroupNorm); alpha and beta start at 0. In float32.

    Latents of more than four channels are taken four at a time by the SVD branch.

    Args:
        latent_shape: (C, h, h), C a multiple of 4 and h of 4.
        text: numbers in a caption's embedding, all tokens together.
        sizes: of the Swin, see there.
    """

    def __init__(self, latent_shape: tuple[int, ...], text: int, **sizes):
        from diffusers.models.normalization import AdaGroupNorm

        super().__init__()
        channels, h, w = latent_shape
        if channels % 4 or h != w or h % 4:
            raise ValueError(f"NPNet takes square latents of 4 k channels and 4 m to a side; these are {latent_shape}.")
        self.svd, self.swin = SVDBranch(2 * h), SwinBranch(channels, **sizes)
        self.text = AdaGroupNorm(text, channels, 1, eps=1e-6)
        self.alpha, self.beta = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        """Latents (B, C, h, h) from noise and caption embeddings (B, L, D)."""
        z = z.float()
        e = self.text(z, text.float().flatten(1))
        return self.svd(z) + (2 * torch.sigmoid(self.alpha) - 1) * e + self.beta * self.swin(z + e)

    def save(self, folder: str) -> None:
        """Writes `<folder>/npnet.safetensors`."""
        from safetensors.torch import save_file

        os.makedirs(folder, exist_ok=True)
        named = {rename(name, PARTS): v.contiguous() for name, v in self.state_dict().items()}
        save_file(named, os.path.join(folder, "npnet.safetensors"))

    @staticmethod
    def load(file: str) -> "NPNet":
        """From `save`, or from the release's .pth, in the sizes of the file."""
        path = fetch(file)
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = flat(torch.load(path, "cpu", weights_only=True))
        state = {rename(name, {v: k for k, v in PARTS.items()}): v.detach().float() for name, v in state.items()}
        state = {name: v for name, v in state.items() if not name.startswith("swin.swin.head.")}
        blocks = [name.split(".")[3:6] for name in state if name.endswith("relative_position_bias_table")]
        stages = sorted({int(stage) for stage, _, _ in blocks})
        table = lambda i: state[f"swin.swin.layers.{i}.blocks.0.attn.relative_position_bias_table"]
        try:
            channels, h = state["swin.upconv.weight"].shape[0], state["svd.mlp3.0.weight"].shape[0] // 2
            net = NPNet(
                (channels, h, h),
                state["text.linear.weight"].shape[1],
                width=state["swin.swin.patch_embed.proj.weight"].shape[0],
                depths=tuple(len([1 for stage, *_ in blocks if int(stage) == i]) for i in stages),
                heads=tuple(table(i).shape[1] for i in stages),
            )
            net.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{file} is no NPNet: {' '.join(str(error).split())[:200]}.") from error
        return net.eval().requires_grad_(False)


def rename(name: str, names: dict[str, str]) -> str:
    """A tensor's name with its first part renamed."""
    first, *rest = name.split(".", 1)
    return ".".join([names.get(first, first), *rest])


def flat(state: dict) -> dict[str, Tensor]:
    """{"unet_svd": {...}, "alpha": ...} with one level of names."""
    found = {}
    for name, value in state.items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


class GoldenNoise(Hook):
    """Zhou et al., ICCV 2025 (arXiv 2411.09502): NPNet takes the initial noise and the caption and gives the noise that
    sampling starts from. No evaluation of the denoiser is added. `NoisePromptLearning` trains it; the released weights
    are for SDXL, DreamShaper XL turbo (2048 x 77 numbers in a caption) and Hunyuan-DiT.

    Args:
        checkpoint: `npnet.safetensors`, or a released .pth; local, or `<owner>/<name>/<file>` on the hub. None: random
            weights, as smoke runs have them.
        strength: fraction of the way from the noise to NPNet's; 0 changes nothing.
    """

    def __init__(self, checkpoint: str | None = None, strength: float = 1.0):
        self.net, self.strength = checkpoint and NPNet.load(checkpoint), strength

    def check(self, policy, sampler):
        if sampler.forgets_noise(policy):
            raise ValueError("GoldenNoise moves the initial noise, which this sampler's first step replaces wholly.")
        if self.net is None:
            small = {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1)}
            self.net = NPNet(policy.latent_shape, policy.null(1)["text"].numel(), **small).to(policy.device)
            self.net.eval().requires_grad_(False)
        side = self.net.svd.mlp3[0].in_features // 2
        ours = (self.net.swin.upconv.out_channels, side, side)
        if ours != tuple(policy.latent_shape):
            shape = tuple(policy.latent_shape)
            raise ValueError(f"GoldenNoise: its network takes latents {ours} and this policy's are {shape}.")
        if (text := policy.null(1)["text"].numel()) != self.net.text.linear.in_features:
            read = self.net.text.linear.in_features
            raise ValueError(f"GoldenNoise: its network reads {read} numbers of a caption and this policy has {text}.")

    def on_init(self, policy, state):
        if self.strength:
            with torch.no_grad():
                golden = self.net(state.x, state.cond["text"])
            state.x = state.x + append_dims(torch.tensor(self.strength), state.x) * (golden - state.x)
        super().on_init(policy, state)
