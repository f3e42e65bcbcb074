"""Small PyTorch networks of the kinds that people export; `make_exports.py` writes them as ONNX."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution of padding that keeps the size, and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """He et al., arXiv:1512.03385: two blocks, the second with a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.first = nn.Sequential(convolution(width, width), nn.ReLU(), convolution(width, width))
        self.second = nn.Sequential(
            convolution(width, 2 * width, 3, 2), nn.ReLU(), convolution(2 * width, 2 * width)
        )
        self.projection = convolution(width, 2 * width, 1, 2)
        self.classes = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.first(x) + x)
        x = F.relu(self.second(x) + self.projection(x))
        return self.classes(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class SqueezeExcite(nn.Module):
    """Hu et al., arXiv:1709.01507, with the gates of MobileNetV3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.up(F.relu(self.down(pooled))))


class Inverted(nn.Module):
    """The inverted residual of MobileNetV3, arXiv:1905.02244."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int, gated: bool) -> None:
        super().__init__()
        wide = 3 * inputs
        parts: list[nn.Module] = [convolution(inputs, wide, 1), nn.Hardswish()]
        parts += [convolution(wide, wide, kernel, stride, wide), nn.Hardswish()]
        parts += [SqueezeExcite(wide)] if gated else []
        self.body = nn.Sequential(*parts, convolution(wide, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class Mobile(nn.Module):
    """A short MobileNetV3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(3, width, 3, 2),
            nn.Hardswish(),
            Inverted(width, width, 1, 3, gated=False),
            Inverted(width, 2 * width, 2, 5, gated=True),
            Inverted(2 * width, 2 * width, 1, 5, gated=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(2 * width, 3 * width), nn.Hardswish(), nn.Dropout(), nn.Linear(3 * width, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.head(self.body(x)), 1)


class UNet(nn.Module):
    """Ronneberger et al., arXiv:1505.04597: one step up is a transposed convolution, one is interpolated.

    The sizes that it interpolates to are those of the skip connections: any height and width will do.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Sequential(convolution(3, width), nn.LeakyReLU(0.1))
        self.two = nn.Sequential(convolution(width, 2 * width), nn.LeakyReLU(0.1))
        self.three = nn.Sequential(convolution(2 * width, 2 * width), nn.PReLU(2 * width))
        self.up = nn.ConvTranspose2d(2 * width, 2 * width, 2, 2)
        self.merged_two = nn.Sequential(convolution(4 * width, width), nn.ELU())
        self.merged_one = nn.Sequential(convolution(2 * width, width), nn.ReLU())
        self.mask = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        three = self.three(F.avg_pool2d(two, 2))
        up = F.interpolate(self.up(three), two.shape[2:], mode="nearest")
        two = self.merged_two(torch.cat([up, two], 1))
        up = F.interpolate(two, one.shape[2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.mask(self.merged_one(torch.cat([up, one], 1))))


class Block(nn.Module):
    """A transformer's block, its attention written out as vision libraries do."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.three, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.three(self.before(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.projection(attended.transpose(1, 2).reshape(n, tokens, width))
        return x + self.narrow(F.gelu(self.wide(self.after(x))))


class Transformer(nn.Module):
    """Dosovitskiy et al., arXiv:2010.11929: a block of its own, and one with PyTorch's attention."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + patches, width) * 0.1)
        self.block = Block(width, 2)
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.classes = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        x = self.block(x)
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.classes(x[:, 0])


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a picture, as ConvNeXt's authors write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class NextBlock(nn.Module):
    """Liu et al., arXiv:2201.03545: a depthwise convolution, then linear layers on the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        inside = self.scale * self.narrow(F.gelu(self.wide(inside)))
        return x + inside.permute(0, 3, 1, 2)


class Next(nn.Module):
    """A short ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), ChannelNorm(width))
        self.blocks = nn.Sequential(NextBlock(width), NextBlock(width))
        self.down = nn.Sequential(ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, 2), NextBlock(2 * width))
        self.norm, self.classes = nn.LayerNorm(2 * width, eps=1e-6), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.blocks(self.stem(x)))
        return self.classes(self.norm(x.mean((2, 3))))


class Shuffle(nn.Module):
    """The channel shuffle of ShuffleNetV2, arXiv:1807.11164, group norm and pixel shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.GroupNorm(2, width), nn.SiLU())
        self.branches = nn.ModuleList(
            nn.Sequential(
                convolution(half, half, 1), nn.ReLU6(), convolution(half, half, 3, 1, half), nn.Mish()
            )
            for _ in range(2)
        )
        self.norm, self.up = nn.InstanceNorm2d(width, affine=True), nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, branch(right)], 1)
            n, channels, height, width = x.shape
            x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        return torch.tanh(F.pixel_shuffle(self.up(F.pad(self.norm(x), (1, 1, 1, 1), mode="reflect")), 2))


def settle(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with statistics and shares of batch norms as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return network.eval()


def chain(*widths: int) -> nn.Sequential:
    """Convolutions of stride 2 with batch norm and SiLU, a width to the next."""
    return nn.Sequential(*(nn.Sequential(convolution(a, b, 3, 2), nn.SiLU()) for a, b in pairwise(widths)))
