"""The geometry of sliding windows, as convolutions and pools share it.

Source: ONNX Conv-22, ConvTranspose-22, MaxPool-22 and AveragePool-22.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.graph import Node

Array = np.ndarray[Any, Any]

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """A window that slides over a padded input; every tuple has one entry a spatial dimension.

    Args:
        kernel: elements of the window.
        strides: input elements from one window to the next.
        pads_begin, pads_end: elements around the input.
        dilations: input elements from one element of the window to the next.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]
    dilations: tuple[int, ...]

    @staticmethod
    def of(node: Node, input_spatial: Sequence[int], kernel: Sequence[int]) -> Window:
        """The window of a convolution or pool, with auto_pad resolved for this input.

        Args:
            node: its attributes strides, dilations, pads and auto_pad are read.
            input_spatial: sizes of the spatial dimensions of the input.
            kernel: sizes of the window.

        Raises:
            InvalidModel: the attributes do not fit the number of dimensions, or are out of range.
        """
        rank = len(input_spatial)
        _check("kernel_shape", kernel, rank, 1)
        strides = _attribute(node, "strides", (1,) * rank, rank, 1)
        dilations = _attribute(node, "dilations", (1,) * rank, rank, 1)
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
        auto = auto_pad(node)
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            outputs = [-(-size // stride) for size, stride in zip(input_spatial, strides)]
            totals = [
                max((o - 1) * s + e - i, 0) for o, s, e, i in zip(outputs, strides, extent, input_spatial)
            ]
            small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
            begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif auto == "VALID":
            begin = end = (0,) * rank
        else:
            begin, end = explicit_pads(node, rank)
        return Window(tuple(kernel), strides, begin, end, dilations)

    @property
    def extent(self) -> tuple[int, ...]:
        """Input elements from the window's first to its last, both counted."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations))

    def output(self, spatial: Sequence[int], ceil_mode: bool = False) -> tuple[int, ...]:
        """How many windows there are in each dimension.

        Args:
            spatial: sizes of the input.
            ceil_mode: whether a last window that reaches beyond the padding counts, if it starts before
                the padding's begin.

        Raises:
            InvalidModel: the window is larger than the padded input.
        """
        sizes: list[int] = []
        for size, extent, stride, begin, end in zip(
            spatial, self.extent, self.strides, self.pads_begin, self.pads_end
        ):
            room = size + begin + end - extent
            steps = -(-room // stride) if ceil_mode else room // stride
            if ceil_mode and steps * stride >= size + begin:
                steps -= 1
            if room < 0 or steps < 0:
                raise InvalidModel(
                    f"a window of {self.extent} (dilation included) is larger than the input of "
                    f"{tuple(spatial)} with padding {self.pads_begin} before and {self.pads_end} after",
                    shape=tuple(spatial),
                )
            sizes.append(steps + 1)
        return tuple(sizes)

    def padded(self, x: Array, output: Sequence[int], fill: Any) -> Array:
        """The input with its padding, enlarged or cut to exactly what `output` windows reach.

        Args:
            x: [N, C, spatial...].
            output: windows in each dimension.
            fill: value of the padding.
        """
        widths = [(0, 0), (0, 0)]
        for size, begin, extent, stride, count in zip(
            x.shape[2:], self.pads_begin, self.extent, self.strides, output
        ):
            widths.append((begin, max((count - 1) * stride + extent - begin - size, 0)))
        return np.pad(x, widths, constant_values=fill)

    def tap(self, padded: Array, position: Sequence[int], output: Sequence[int]) -> Array:
        """What one element of the window sees in every window.

        Args:
            padded: of `padded`.
            position: index of the element in the window.
            output: windows in each dimension.

        Returns:
            A view, [N, C, output...].
        """
        cut = [slice(None), slice(None)]
        for at, dilation, stride, count in zip(position, self.dilations, self.strides, output):
            cut.append(slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride))
        return padded[tuple(cut)]


@dataclass(frozen=True)
class TransposedWindow:
    """The geometry of a transposed convolution.

    Input element i adds to the outputs i * stride + k * dilation - pads_begin.

    Args:
        kernel, strides, dilations: as in `Window`, of the convolution that is transposed.
        pads_begin: outputs cut off at the beginning.
        output: sizes of the result.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...]
    output: tuple[int, ...]

    @staticmethod
    def of(node: Node, input_spatial: Sequence[int], kernel: Sequence[int]) -> TransposedWindow:
        """The geometry, with auto_pad, output_padding and output_shape resolved for this input.

        Raises:
            InvalidModel: the attributes do not fit the number of dimensions, or leave no output.
        """
        rank = len(input_spatial)
        _check("kernel_shape", kernel, rank, 1)
        strides = _attribute(node, "strides", (1,) * rank, rank, 1)
        dilations = _attribute(node, "dilations", (1,) * rank, rank, 1)
        extra = _attribute(node, "output_padding", (0,) * rank, rank, 0)
        full = [
            (i - 1) * s + p + (k - 1) * d + 1
            for i, s, p, k, d in zip(input_spatial, strides, extra, kernel, dilations)
        ]
        auto = auto_pad(node)
        wanted = node.get("output_shape")
        if wanted is not None:
            _check("output_shape", wanted, rank, 1)
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            wanted = tuple(i * s for i, s in zip(input_spatial, strides))
        if wanted is not None:
            totals = [max(f - w, 0) for f, w in zip(full, wanted)]
            begin = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals)
            output = tuple(wanted)
        else:
            begin, end = ((0,) * rank, (0,) * rank) if auto == "VALID" else explicit_pads(node, rank)
            output = tuple(f - b - e for f, b, e in zip(full, begin, end))
        if any(size < 1 for size in output):
            raise InvalidModel(f"the padding leaves an output of {output}", shape=tuple(input_spatial))
        return TransposedWindow(tuple(kernel), strides, dilations, begin, output)


def auto_pad(node: Node) -> str:
    """The attribute auto_pad, one of `AUTO_PADS`.

    Raises:
        InvalidModel: it is none of them.
    """
    found: str = node.get("auto_pad", "NOTSET") or "NOTSET"
    if found not in AUTO_PADS:
        raise InvalidModel(f"auto_pad {found!r} is none of {', '.join(AUTO_PADS)}")
    return found


def explicit_pads(node: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The attribute pads as (before, after).

    Raises:
        InvalidModel: not two numbers a dimension.
        UnsupportedModel: a negative one.
    """
    pads = tuple(node.get("pads") or (0,) * (2 * rank))
    if len(pads) != 2 * rank:
        raise InvalidModel(f"pads has {len(pads)} numbers; {rank} spatial dimensions need {2 * rank}")
    if min(pads, default=0) < 0:
        raise UnsupportedModel(f"negative pads {pads}; a Slice in front of the operator cuts the input")
    return pads[:rank], pads[rank:]


def _attribute(node: Node, name: str, default: tuple[int, ...], rank: int, least: int) -> tuple[int, ...]:
    found = tuple(node.get(name) or default)
    _check(name, found, rank, least)
    return found


def _check(name: str, numbers: Sequence[int], rank: int, least: int) -> None:
    if len(numbers) != rank:
        raise InvalidModel(f"{name} {tuple(numbers)} must have {rank} numbers, one a spatial dimension")
    if min(numbers, default=least) < least:
        raise InvalidModel(f"{name} {tuple(numbers)} must be at least {least}")
