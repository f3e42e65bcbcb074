"""The benchmark's networks as ONNX models of any input size, with random weights; made without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]

LEAST_OUTPUTS = 8
"""Layers of fewer outputs are not pruned, nor are the first and the depthwise ones."""
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels, blocks and first stride of each of its stages (table 2 of the paper)."""


class _Builder:
    """Writes a network layer by layer; every method takes and returns the names of values."""

    def __init__(self, sparsity: float, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._sparsity = sparsity
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, Array] = {}
        self._first = True

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, array: Array) -> str:
        name = f"w{len(self._weights)}"
        self._weights[name] = array
        return name

    def weights(self, *shape: int, fan_in: int, prunable: bool = True) -> str:
        array = self._random.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan_in))
        if prunable and not self._first and self._sparsity and shape[0] >= LEAST_OUTPUTS:
            kept = self._random.random(shape, np.float32) >= self._sparsity
            array *= kept * np.float32(1 / math.sqrt(1 - self._sparsity))
        self._first = False
        return self.constant(array)

    def channels(self, count: int, mean: float, deviation: float) -> str:
        return self.constant(self._random.normal(mean, deviation, count).astype(np.float32))

    def convolution(
        self,
        x: str,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> str:
        fan_in = inputs // groups * math.prod(kernel)
        w = self.weights(outputs, inputs // groups, *kernel, fan_in=fan_in, prunable=groups == 1)
        pads = [size // 2 for size in kernel]
        extra = [self.channels(outputs, 0, 0.1)] if bias else []
        strides = [stride] * len(kernel)
        return self.node(
            "Conv", x, w, *extra, kernel_shape=kernel, strides=strides, pads=pads * 2, group=groups
        )

    def normalised(self, x: str, channels: int) -> str:
        """Batch normalisation with statistics as after training."""
        scale, shift, mean = (self.channels(channels, m, 0.1) for m in (0.75, 0.0, 0.0))
        variance = self.constant(self._random.uniform(0.5, 1.5, channels).astype(np.float32))
        return self.node("BatchNormalization", x, scale, shift, mean, variance)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def classified(self, x: str, channels: int, classes: int) -> str:
        pooled = self.node("ReduceMean", x, axes=[2, 3], keepdims=0)
        w = self.weights(classes, channels, fan_in=channels)
        return self.node("Gemm", pooled, w, self.channels(classes, 0, 0.1), transB=1)

    def model(self, shape: Sequence[int], output: str) -> bytes:
        """The network from "x" to "y"."""
        self._nodes.append(helper.make_node("Identity", [output], ["y"], name="y"))
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [onnx.ValueInfoProto(name="y")],
            [numpy_helper.from_array(array, name) for name, array in self._weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())


def resnet50(
    size: int = 64, blocks: Sequence[int] = (3, 4, 6, 3), sparsity: float = 0.0, seed: int = 0
) -> bytes:
    """ResNet-50 (He et al., 2015) with the stride in the 3x3 convolutions.

    Args:
        size: of the picture [1, 3, size, size].
        blocks: of each of the four stages; (3, 4, 6, 3) makes the network of 50 layers.
        sparsity: share of the weights that are zero, anywhere.
        seed: of the weights.
    """
    b = _Builder(sparsity, seed)

    def block(x: str, inputs: int, middle: int, stride: int) -> str:
        outputs = 4 * middle
        y = b.relu(b.normalised(b.convolution(x, inputs, middle, (1, 1)), middle))
        y = b.relu(b.normalised(b.convolution(y, middle, middle, (3, 3), stride), middle))
        y = b.normalised(b.convolution(y, middle, outputs, (1, 1)), outputs)
        if stride != 1 or inputs != outputs:
            x = b.normalised(b.convolution(x, inputs, outputs, (1, 1), stride), outputs)
        return b.relu(b.node("Add", y, x))

    x = b.relu(b.normalised(b.convolution("x", 3, 64, (7, 7), 2), 64))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, count in enumerate(blocks):
        middle = 64 << stage
        for i in range(count):
            x = block(x, channels, middle, 2 if stage and not i else 1)
            channels = 4 * middle
    return b.model((1, 3, size, size), b.classified(x, channels, 1000))


def mobilenet_v2(size: int = 64, sparsity: float = 0.0, seed: int = 0) -> bytes:
    """MobileNetV2 (Sandler et al., 2018) over a picture [1, 3, size, size]; arguments as of `resnet50`."""
    b = _Builder(sparsity, seed)

    def block(x: str, inputs: int, outputs: int, stride: int, expansion: int) -> str:
        y, hidden = x, inputs * expansion
        if expansion != 1:
            y = b.relu6(b.normalised(b.convolution(y, inputs, hidden, (1, 1)), hidden))
        y = b.relu6(b.normalised(b.convolution(y, hidden, hidden, (3, 3), stride, groups=hidden), hidden))
        y = b.normalised(b.convolution(y, hidden, outputs, (1, 1)), outputs)
        return b.node("Add", x, y) if stride == 1 and inputs == outputs else y

    x = b.relu6(b.normalised(b.convolution("x", 3, 32, (3, 3), 2), 32))
    channels = 32
    for expansion, outputs, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320,
        1, 1),
    ):  # fmt: skip
        for i in range(count):
            x = block(x, channels, outputs, 1 if i else stride, expansion)
            channels = outputs
    x = b.relu6(b.normalised(b.convolution(x, channels, 1280, (1, 1)), 1280))
    return b.model((1, 3, size, size), b.classified(x, 1280, 1000))


def unet(
    spatial: Sequence[int], width: int = 32, depth: int = 4, sparsity: float = 0.0, seed: int = 0
) -> bytes:
    """A U-Net (Ronneberger et al., 2015) with padded convolutions.

    Args:
        spatial: sizes of the picture or volume [1, 1, *spatial], multiples of 2**depth.
        width: channels of the first stage.
        depth: how many times the sizes are halved.
        sparsity, seed: as of `resnet50`.
    """
    b, rank = _Builder(sparsity, seed), len(spatial)

    def twice(x: str, inputs: int, outputs: int) -> str:
        for channels in (inputs, outputs):
            y = b.convolution(x, channels, outputs, (3,) * rank, bias=True)
            x = b.relu(b.normalised(y, outputs))
        return x

    widths = [width << stage for stage in range(depth + 1)]
    x, skips = "x", []
    for inputs, outputs in zip([1, *widths], widths[:-1]):
        x = twice(x, inputs, outputs)
        skips.append(x)
        x = b.node("MaxPool", x, kernel_shape=[2] * rank, strides=[2] * rank)
    x = twice(x, widths[-2], widths[-1])
    for skip, outputs in zip(reversed(skips), reversed(widths[:-1])):
        w = b.weights(2 * outputs, outputs, *(2,) * rank, fan_in=2 * outputs, prunable=False)
        bias = b.channels(outputs, 0, 0.1)
        x = b.node("ConvTranspose", x, w, bias, kernel_shape=[2] * rank, strides=[2] * rank)
        x = twice(b.node("Concat", skip, x, axis=1), 2 * outputs, outputs)
    x = b.convolution(x, width, 1, (1,) * rank, bias=True)
    return b.model((1, 1, *spatial), b.node("Sigmoid", x))
