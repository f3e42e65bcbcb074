"""Detectors in PyTorch whose heads are those that real-time detectors are exported with.

The structures are of the papers and of the graphs that are found in exported files; the code is written anew.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_networks import chain, convolution


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    return nn.Sequential(convolution(inputs, outputs, kernel, stride), nn.SiLU())


class Bottleneck(nn.Module):
    """Two convolutions and what went in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(width, width, 3), unit(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PartialStages(nn.Module):
    """Half of the channels pass bottlenecks; every intermediate result is kept and merged at the end."""

    def __init__(self, inputs: int, outputs: int, count: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.enter, self.leave = unit(inputs, outputs), unit((2 + count) * half, outputs)
        self.stages = nn.ModuleList(Bottleneck(half) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for stage in self.stages:
            parts.append(stage(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class PooledPyramid(nn.Module):
    """The same pooling three times over, all results side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = unit(width, width // 2), unit(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.leave(torch.cat(parts, 1))


class Neck(nn.Module):
    """A backbone to stride 16 and a path back up: features at strides 8 and 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = chain(3, width // 2, width)
        self.eight = nn.Sequential(unit(width, width, 3, 2), PartialStages(width, width))
        self.sixteen = nn.Sequential(unit(width, 2 * width, 3, 2), PooledPyramid(2 * width))
        self.merge = PartialStages(3 * width, width)
        self.down, self.deep = unit(width, width, 3, 2), PartialStages(3 * width, 2 * width)
        self.widths = (width, 2 * width)

    def forward(self, x: Tensor) -> list[Tensor]:
        eight = self.eight(self.stem(x))
        sixteen = self.sixteen(eight)
        eight = self.merge(torch.cat([F.interpolate(sixteen, scale_factor=2.0, mode="nearest"), eight], 1))
        return [eight, self.deep(torch.cat([self.down(eight), sixteen], 1))]


STRIDES = (8, 16)
BINS = 16
CLASSES = 4


def centres(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The centre of each cell [1, 2, cells], in cells, and the stride of each [1, cells]."""
    points, strides = [], []
    for feature, stride in zip(features, STRIDES):
        height, width = feature.shape[2:]
        x = torch.arange(width, dtype=feature.dtype) + 0.5
        y = torch.arange(height, dtype=feature.dtype) + 0.5
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((columns, rows), -1).view(-1, 2))
        strides.append(torch.full((height * width, 1), float(stride), dtype=feature.dtype))
    return torch.cat(points).transpose(0, 1).unsqueeze(0), torch.cat(strides).transpose(0, 1)


class Distances(nn.Module):
    """Sides of a box as expectations over bins: Li et al., Generalized Focal Loss, arXiv:2006.04388."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.project.weight.data = torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, cells = x.shape
        return self.project(x.view(n, 4, BINS, cells).transpose(2, 1).softmax(1)).view(n, 4, cells)


class AnchorFree(nn.Module):
    """Boxes (centre, size) and scores [n, 4 + classes, cells], cells counted from the features' sizes."""

    corners = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.neck, self.distances = Neck(width), Distances()
        self.boxes = nn.ModuleList(
            nn.Sequential(unit(w, 2 * width, 3), nn.Conv2d(2 * width, 4 * BINS, 1)) for w in self.neck.widths
        )
        self.classes = nn.ModuleList(
            nn.Sequential(unit(w, width, 3), nn.Conv2d(width, CLASSES, 1)) for w in self.neck.widths
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.neck(x)
        levels = [torch.cat([b(f), c(f)], 1) for b, c, f in zip(self.boxes, self.classes, features)]
        joined = torch.cat([level.view(x.shape[0], 4 * BINS + CLASSES, -1) for level in levels], 2)
        sides, scores = joined.split((4 * BINS, CLASSES), 1)
        points, strides = centres(features)
        before, after = self.distances(sides).chunk(2, 1)
        low, high = points - before, points + after
        box = (low, high) if self.corners else ((low + high) / 2, high - low)
        return torch.cat((torch.cat(box, 1) * strides, scores.sigmoid()), 1)


class EndToEnd(AnchorFree):
    """The best detections without suppression, as Wang et al., arXiv:2405.14458, choose them: [n, 20, 6]."""

    corners = True
    most = 20

    def forward(self, x: Tensor) -> Tensor:
        boxes, scores = super().forward(x).transpose(1, 2).split((4, CLASSES), -1)
        chosen = torch.topk(scores.amax(-1), self.most, 1).indices.unsqueeze(-1)
        boxes = boxes.gather(1, chosen.expand(-1, -1, 4))
        scores = scores.gather(1, chosen.expand(-1, -1, CLASSES))
        best, place = torch.topk(scores.flatten(1), self.most, 1)
        label, row = place % CLASSES, place // CLASSES
        boxes = boxes.gather(1, row.unsqueeze(-1).expand(-1, -1, 4))
        return torch.cat([boxes, best.unsqueeze(-1), label.unsqueeze(-1).to(boxes.dtype)], -1)


class AnchorBased(nn.Module):
    """Boxes relative to anchors, all values through one sigmoid: [n, cells * anchors, 5 + classes]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.neck = Neck(width)
        self.outputs = nn.ModuleList(nn.Conv2d(w, 3 * (5 + CLASSES), 1) for w in self.neck.widths)
        anchors = torch.tensor([[10.0, 13, 16, 30, 33, 23], [30.0, 61, 62, 45, 59, 119]])
        self.register_buffer("anchors", anchors.view(2, 1, 3, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for level, (output, feature) in enumerate(zip(self.outputs, self.neck(x))):
            raw = output(feature)
            n, _, height, width = raw.shape
            raw = raw.view(n, 3, 5 + CLASSES, height, width).permute(0, 1, 3, 4, 2).contiguous()
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            grid = torch.stack((x, y), 2).expand((1, 3, height, width, 2)).to(raw.dtype) - 0.5
            place, size, scores = raw.sigmoid().split((2, 2, 1 + CLASSES), 4)
            place = (place * 2 + grid) * STRIDES[level]
            size = (size * 2) ** 2 * self.anchors[level]
            found.append(torch.cat((place, size, scores), 4).view(n, -1, 5 + CLASSES))
        return torch.cat(found, 1)


class Suppression(torch.autograd.Function):
    """Non-maximum suppression: the rows of boxes that are left, best first; exported as one node."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
        low, high = boxes.split(2, 1)
        areas = (high - low).prod(1)
        kept: list[int] = []
        for i in scores.argsort(descending=True, stable=True).tolist():
            sides = (torch.minimum(high[i], high[kept]) - torch.maximum(low[i], low[kept])).clamp(min=0)
            common = sides.prod(1)
            if not (common > threshold * (areas[i] + areas[kept] - common)).any():
                kept.append(i)
        return torch.tensor(kept, dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, threshold: float) -> Any:
        def axes(*of: int) -> Any:
            return g.op("Constant", value_t=torch.tensor(of))

        boxes = g.op("Unsqueeze", boxes, axes(0))
        scores = g.op("Unsqueeze", scores, axes(0, 1))
        most = g.op("Constant", value_t=torch.tensor([1000]))
        least = g.op("Constant", value_t=torch.tensor([threshold]))
        found = g.op("NonMaxSuppression", boxes, scores, most, least)
        return g.op("Squeeze", g.op("Gather", found, axes(2), axis_i=1), axes(1))


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The same for both exporters."""
    if not torch.compiler.is_exporting():
        return Suppression.apply(boxes, scores, threshold)
    inputs = boxes[None], scores[None, None], torch.tensor([1000]), torch.tensor([threshold])
    shape = boxes.shape[0], 3
    return torch.onnx.ops.symbolic("NonMaxSuppression", inputs, dtype=torch.int64, shape=shape)[:, 2]


class Suppressed(AnchorFree):
    """One picture's boxes after non-maximum suppression, as many as are left: [count, 6]."""

    corners = True

    def forward(self, x: Tensor) -> Tensor:
        boxes, scores = super().forward(x)[0].transpose(0, 1).split((4, CLASSES), -1)
        best, label = scores.max(1)
        sure = best > 0.5
        boxes, best, label = boxes[sure], best[sure], label[sure]
        kept = suppressed(boxes + label.to(boxes.dtype).unsqueeze(1) * 1000, best, 0.5)
        return torch.cat([boxes[kept], best[kept].unsqueeze(1), label[kept].unsqueeze(1).to(boxes.dtype)], 1)
