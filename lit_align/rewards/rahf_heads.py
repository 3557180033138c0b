"""The convolutional heads of RAHF: scores and maps out of an image's features. Tensors have the published names."""

import torch
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """x over the root mean square of its channels, times a scale: T5's norm on a map (B, C, h, w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt() * self.scale


def conv(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1)


class HeatmapPredictor(nn.Module):
    """Features (B, C, h, w) -> a map (B, 16 h, 16 w) in [0, 1]."""

    def __init__(self, c: int):
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(conv(c, c), nn.ReLU(), ChannelNorm(c)), *(conv(c, c // 2), nn.ReLU(), ChannelNorm(c // 2))
        )
        widths = (c // 2, c, c // 2, c // 2, c // 4)
        self.deconv_layers = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(a, b, 3, 2, 1, 1), ChannelNorm(b), nn.ReLU())
            for a, b in zip(widths, widths[1:])
        )
        self.conv_layers2 = nn.ModuleList(
            nn.Sequential(conv(b, b), ChannelNorm(b), nn.ReLU(), conv(b, b), ChannelNorm(b)) for b in widths[1:]
        )
        self.last_conv1, self.last_conv2 = conv(c // 4, c // 4), conv(c // 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_layers(x)
        for enlarge, refine in zip(self.deconv_layers, self.conv_layers2):
            x = enlarge(x)
            x = (x + refine(x)).relu()
        return self.last_conv2(self.last_conv1(x).relu()).sigmoid().squeeze(1)


class ScorePredictor(nn.Module):
    """Features (B, C, h, w) -> a score (B,) in [0, 1]."""

    def __init__(self, c: int, cells: int):
        super().__init__()
        widths = (c, c, c // 2, c // 4, c // 8, c // 16, c // 64)
        layers = [(conv(a, b), ChannelNorm(b), nn.ReLU()) for a, b in zip(widths, widths[1:])]
        self.conv_layers = nn.Sequential(*(layer for group in layers for layer in group))
        self.linear_layers = nn.Sequential(
            *(nn.Linear(widths[-1] * cells, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 1)),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_layers(self.conv_layers(x).flatten(1)).squeeze(1)
