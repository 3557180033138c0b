"""The Inception network of FID, KID and IS."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_align.metrics.features import Features
from lit_align.rewards.weights import fill, read

SIDE = 299


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; `kernel` is (height, width) or a side. Padding keeps the size unless told."""

    def __init__(self, inside: int, out: int, kernel=1, stride: int = 1, padding=None):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padding is None else padding
        self.conv = nn.Conv2d(inside, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side. `branches` names the modules of each in their order; a tuple within a branch stands for
    modules that all see the same input, whose outputs are joined. `pool` is what the last branch begins with."""

    def __init__(self, pool, branches: list[list], **convs: Conv):
        super().__init__()
        for name, conv in convs.items():
            self.add_module(name, conv)
        self.pool, self.branches = pool, branches

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.run(branch, x) for branch in self.branches]
        return torch.cat([*outputs, self.run(["branch_pool"] if hasattr(self, "branch_pool") else [], self.pool(x))], 1)

    def run(self, branch: list, x: Tensor) -> Tensor:
        for step in branch:
            split = isinstance(step, tuple)
            x = torch.cat([getattr(self, name)(x) for name in step], 1) if split else getattr(self, step)(x)
        return x


def mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)  # as TensorFlow: edges do not count zeros


def max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def strided(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


def chain(name: str, n: int) -> list[str]:
    return [f"{name}_{i}" for i in range(1, n + 1)]


def block_a(c: int, pooled: int) -> Block:
    convs = {"branch1x1": Conv(c, 64), "branch5x5_1": Conv(c, 48), "branch5x5_2": Conv(48, 64, 5)}
    convs |= {"branch3x3dbl_1": Conv(c, 64), "branch3x3dbl_2": Conv(64, 96, 3), "branch3x3dbl_3": Conv(96, 96, 3)}
    branches = [["branch1x1"], chain("branch5x5", 2), chain("branch3x3dbl", 3)]
    return Block(mean_pool, branches, **convs, branch_pool=Conv(c, pooled))


def block_b(c: int) -> Block:
    convs = {"branch3x3": Conv(c, 384, 3, 2, 0), "branch3x3dbl_1": Conv(c, 64), "branch3x3dbl_2": Conv(64, 96, 3)}
    return Block(strided, [["branch3x3"], chain("branch3x3dbl", 3)], **convs, branch3x3dbl_3=Conv(96, 96, 3, 2, 0))


def block_c(c: int, m: int) -> Block:
    wide, high = (1, 7), (7, 1)
    convs = {"branch1x1": Conv(c, 192), "branch7x7_1": Conv(c, m), "branch7x7_2": Conv(m, m, wide)}
    convs |= {"branch7x7_3": Conv(m, 192, high), "branch7x7dbl_1": Conv(c, m), "branch7x7dbl_2": Conv(m, m, high)}
    convs |= {"branch7x7dbl_3": Conv(m, m, wide), "branch7x7dbl_4": Conv(m, m, high)}
    convs |= {"branch7x7dbl_5": Conv(m, 192, wide), "branch_pool": Conv(c, 192)}
    return Block(mean_pool, [["branch1x1"], chain("branch7x7", 3), chain("branch7x7dbl", 5)], **convs)


def block_d(c: int) -> Block:
    convs = {"branch3x3_1": Conv(c, 192), "branch3x3_2": Conv(192, 320, 3, 2, 0), "branch7x7x3_1": Conv(c, 192)}
    convs |= {"branch7x7x3_2": Conv(192, 192, (1, 7)), "branch7x7x3_3": Conv(192, 192, (7, 1))}
    return Block(
        strided, [chain("branch3x3", 2), chain("branch7x7x3", 4)], **convs, branch7x7x3_4=Conv(192, 192, 3, 2, 0)
    )


def block_e(c: int, pool) -> Block:
    pair = lambda name, inside: {f"{name}a": Conv(inside, 384, (1, 3)), f"{name}b": Conv(inside, 384, (3, 1))}
    convs = {"branch1x1": Conv(c, 320), "branch3x3_1": Conv(c, 384)} | pair("branch3x3_2", 384)
    convs |= {"branch3x3dbl_1": Conv(c, 448), "branch3x3dbl_2": Conv(448, 384, 3)} | pair("branch3x3dbl_3", 384)
    double = [*chain("branch3x3dbl", 2), ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    branches = [["branch1x1"], ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")], double]
    return Block(pool, branches, **convs, branch_pool=Conv(c, 192))


class Inception(Features):
    """The Inception V3 of FID (Heusel et al. 2017, arXiv 1706.08500; torch-fidelity's port of TensorFlow's graph): 2048
    features of the last pooling, and 1008 logits without their bias, as torch-fidelity's Inception Score takes them.

    Images are rounded to 8 bits and resized as TensorFlow 1 does (bilinear, not antialiased, aligned at the corner
    pixel). torchvision's and timm's Inception are other networks, and give other numbers.

    Args:
        checkpoint: a file with the published names (Conv2d_1a_3x3.conv.weight, ..., fc.bias), .safetensors or .pth: a
            path or an https address; None for random weights.
    """

    name, num_features = "inception", 2048
    artefact = "torch-fidelity's `weights-inception-2015-12-05-6726825d.pth` (pytorch-fid's is the same)"

    def __init__(
        self,
        checkpoint: str | None = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2, 0), Conv(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Conv(32, 64, 3), Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, 1, 0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = block_b(288), block_c(768, 128), block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e, self.Mixed_7a = block_c(768, 160), block_c(768, 192), block_d(768)
        self.Mixed_7b, self.Mixed_7c = block_e(1280, mean_pool), block_e(2048, max_pool)
        self.fc = nn.Linear(2048, 1008)
        if checkpoint:
            state = read(checkpoint)
            counters = {k: v for k, v in self.state_dict().items() if k.endswith("num_batches_tracked")}
            fill(self, counters | state, checkpoint)
        self.requires_grad_(False).eval()

    def width(self) -> int:
        return self.num_features

    def extract(self, images: Tensor) -> Tensor:
        x = (tensorflow_resize((images * 255).round().clamp(0, 255), SIDE) - 128) / 128
        x = strided(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = strided(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))

    def classes(self, images: Tensor) -> Tensor:
        return self(images) @ self.fc.weight.T


def tensorflow_resize(x: Tensor, side: int) -> Tensor:
    """Bilinear as TensorFlow 1: output pixel i looks at input position i * (input side / output side)."""

    def along(x: Tensor, dim: int) -> Tensor:
        n = x.shape[dim]
        at = torch.arange(side, device=x.device, dtype=x.dtype) * (n / side)
        low = at.floor().long()
        high = (low + 1).clamp(max=n - 1)
        share = (at - low).view(-1, *[1] * (x.ndim - dim - 1))
        return x.index_select(dim, low) * (1 - share) + x.index_select(dim, high) * share

    return along(along(x, 2), 3)
