"""The benchmark's networks: published shapes, random weights. Needs PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation] if activation is not None else []))


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions, its stride on the 3x3 one."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            _conv_norm(inputs, width, 1, activation=nn.ReLU()),
            _conv_norm(width, width, 3, stride, activation=nn.ReLU()),
            _conv_norm(width, outputs, 1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, 4 width, H / stride, W / stride]."""
        return functional.relu(self.body(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """He et al., "Deep residual learning for image recognition", 2016, stride on the 3x3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(3, 64, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1))
        blocks, inputs = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(count):
                blocks.append(Bottleneck(inputs, width, stride if index == 0 else 1))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224] to [N, 1000]."""
        return self.classify(self.blocks(self.stem(x)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [_conv_norm(inputs, hidden, 1, activation=nn.ReLU6())] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand,
            _conv_norm(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6()),
            _conv_norm(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018, width 1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm(3, 32, 3, 2, activation=nn.ReLU6())]
        inputs = 32
        stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
        for expansion, outputs, count, stride in (*stages, (6, 320, 1, 1)):
            for index in range(count):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, _conv_norm(inputs, 1280, 1, activation=nn.ReLU6()))
        self.classify = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224] to [N, 1000]."""
        return self.classify(self.features(x).mean((2, 3)))


class UNet(nn.Module):
    """Ronneberger et al., "U-Net", 2015, padded, in two or three dimensions (Cicek et al., "3D U-Net", 2016).

    Args:
        width: channels of the first level; doubled at each further one.
        depth: how often sizes are halved.
        dimensions: 2 or 3.
    """

    def __init__(self, width: int, depth: int, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        widths = [width << level for level in range(depth + 1)]
        transposed = nn.ConvTranspose2d if dimensions == 2 else nn.ConvTranspose3d
        self.down = nn.ModuleList(self._pair(i, o) for i, o in zip([1, *widths], widths))
        self.up = nn.ModuleList(transposed(2 * outputs, outputs, 2, 2) for outputs in widths[:-1])
        self.merge = nn.ModuleList(self._pair(2 * outputs, outputs) for outputs in widths[:-1])
        self.head = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(width, 1, 1)

    def _pair(self, inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d if self.dimensions == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if self.dimensions == 2 else nn.BatchNorm3d
        layers: list[nn.Module] = []
        for size in (inputs, outputs):
            layers += [convolution(size, outputs, 3, padding=1), norm(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, ...] to [N, 1, ...], sizes multiples of 2^depth."""
        pool = functional.max_pool2d if self.dimensions == 2 else functional.max_pool3d
        skips = []
        for level, pair in enumerate(self.down):
            x = pair(pool(x, 2) if level else x)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat((skips[level], self.up[level](x)), dim=1))
        return torch.sigmoid(self.head(x))
