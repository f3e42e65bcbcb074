"""Let the operator that reads a Pad do the padding, and the one whose result is cropped the cropping.

1. Pad of Pad, both constant with the same value and neither cutting, becomes one.
2. A spatial Pad with 0 joins the pads of the Conv that reads it; with the zero point, those of a ConvInteger.
3. A spatial Pad with 0 joins the pads of an AveragePool that counts its padding, or has none.
4. A spatial Pad with -infinity joins the pads of a MaxPool, and so does one with 0 where what is padded is
   never negative; every window must still see some of it.
5. A Slice that crops the planes that a ConvTranspose makes joins its pads, which crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operators.movement import pad_widths, slice_ranges
from coresident.graph.operators.windows import TransposedWindow, Window
from coresident.passes.patch import Patch, View, pattern_pass


@dataclass(frozen=True)
class Padding:
    """What a constant Pad adds: elements before and after each dimension of `source`, all `value`."""

    source: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float

    @property
    def is_spatial(self) -> bool:
        """Whether batch and channels are left alone."""
        return not any((*self.before[:2], *self.after[:2]))


def padding(view: View, node: Node | None) -> Padding | None:
    """The padding of a Pad in constant mode that cuts nothing; None for anything else."""
    if node is None or node.op != "Pad" or node.get("mode", "constant") != "constant":
        return None
    pads, axes = view.constant(node.inputs[1]), view.constant(node.input(3))
    value = view.scalar(node.input(2)) if node.input(2) else 0.0
    if pads is None or (node.input(3) and axes is None) or value is None or np.any(pads < 0):
        return None
    widths = pad_widths(node, len(view.shape(node.inputs[0])), pads, axes)
    return Padding(node.inputs[0], tuple(w[0] for w in widths), tuple(w[1] for w in widths), value)


def _pad_of_pad(view: View, node: Node) -> Patch | None:
    outer = padding(view, node)
    inner = padding(view, view.maker(node.inputs[0])) if outer is not None else None
    if outer is None or inner is None or inner.value != outer.value:
        return None
    target = node.outputs[0]
    name = view.fresh(f"{target}.pads")
    before = [a + b for a, b in zip(outer.before, inner.before)]
    after = [a + b for a, b in zip(outer.after, inner.after)]
    inputs = (inner.source, name, *((node.inputs[2],) if node.input(2) else ()))
    merged = Node("Pad", inputs, (target,), {"mode": "constant"}, node.name)
    return Patch((node,), (merged,), {name: np.array([*before, *after], np.int64)})


def _pad_of_conv(view: View, node: Node) -> Patch | None:
    if node.op not in ("Conv", "ConvInteger"):
        return None
    pad = padding(view, view.maker(node.inputs[0]))
    zero = view.scalar(node.input(2)) if node.op == "ConvInteger" and node.input(2) else 0
    if pad is None or not pad.is_spatial or pad.value != zero:
        return None
    return _merged(view, node, pad, view.shape(node.inputs[1])[2:], {})


def _pad_of_average(view: View, node: Node) -> Patch | None:
    if node.op != "AveragePool" or node.get("ceil_mode", 0):
        return None
    pad = padding(view, view.maker(node.inputs[0]))
    if pad is None or not pad.is_spatial or pad.value != 0:
        return None
    kernel = tuple(node.get("kernel_shape"))
    window = Window.of(node, view.shape(node.inputs[0])[2:], kernel)
    if any((*window.pads_begin, *window.pads_end)) and not node.get("count_include_pad", 0):
        return None
    return _merged(view, node, pad, kernel, {"count_include_pad": 1})


NEVER_NEGATIVE = frozenset(("Relu", "Sigmoid", "HardSigmoid", "Abs", "Exp", "Softmax", "Softplus"))


def _pad_of_maximum(view: View, node: Node) -> Patch | None:
    if node.op != "MaxPool" or node.get("ceil_mode", 0) or not view.gives_one(node):
        return None
    pad = padding(view, view.maker(node.inputs[0]))
    if pad is None or not pad.is_spatial:
        return None
    kernel = tuple(node.get("kernel_shape"))
    window = Window.of(node, view.shape(node.inputs[0])[2:], kernel)
    widths = zip(pad.before[2:], pad.after[2:], window.pads_begin, window.pads_end, window.extent)
    # In a window that sees padding alone the pool's own padding and the Pad's would differ.
    if any(max(b + pb, a + pa) >= extent for b, a, pb, pa, extent in widths):
        return None
    maker = view.maker(pad.source)
    low = view.scalar(maker.input(1)) if maker is not None and maker.op == "Clip" else None
    never_negative = maker is not None and (maker.op in NEVER_NEGATIVE or (low is not None and low >= 0))
    if pad.value != -np.inf and not (pad.value == 0 and never_negative):
        return None
    return _merged(view, node, pad, kernel, {})


def _crop_of_transposed(view: View, node: Node) -> Patch | None:
    maker = view.maker(node.inputs[0]) if node.op == "Slice" else None
    if maker is None or maker.op != "ConvTranspose" or view.sole_reader(node.inputs[0]) is not node:
        return None
    operands = [view.constant(name) for name in (*node.inputs[1:], "", "")[:4]]
    if any(name and value is None for value, name in zip(operands, node.inputs[1:])):
        return None
    shape = view.shape(node.inputs[0])
    taken = slice_ranges(shape, operands)
    whole = all(len(indices) == size for indices, size in zip(taken[:2], shape))
    if not whole or any(indices.step != 1 or not indices for indices in taken):
        return None
    spatial, kernel = view.shape(maker.inputs[0])[2:], view.shape(maker.inputs[1])[2:]
    window, extra = TransposedWindow.of(maker, spatial, kernel), maker.get("output_padding")
    begin = [pad + indices.start for pad, indices in zip(window.pads_begin, taken[2:])]
    reach = [
        (i - 1) * s + (k - 1) * d + 1 for i, s, k, d in zip(spatial, window.strides, kernel, window.dilations)
    ]
    sizes = zip(reach, extra or (0,) * len(reach), begin, taken[2:])
    end = [r + e - b - len(indices) for r, e, b, indices in sizes]
    if min(end) < 0:
        return None
    kept = {
        name: value for name, value in maker.attributes.items() if name not in ("auto_pad", "output_shape")
    }
    cropped = maker.with_(outputs=node.outputs, attributes={**kept, "pads": (*begin, *end)})
    return Patch((maker, node), (cropped,))


def _merged(view: View, node: Node, pad: Padding, kernel: tuple[int, ...], changes: dict[str, int]) -> Patch:
    window = Window.of(node, view.shape(node.inputs[0])[2:], kernel)
    begin = [a + b for a, b in zip(pad.before[2:], window.pads_begin)]
    end = [a + b for a, b in zip(pad.after[2:], window.pads_end)]
    attributes = {name: value for name, value in node.attributes.items() if name != "auto_pad"}
    merged = node.with_(
        inputs=(pad.source, *node.inputs[1:]), attributes={**attributes, "pads": (*begin, *end), **changes}
    )
    return Patch((node,), (merged,))


PASS = pattern_pass(
    "merge_padding", _pad_of_pad, _pad_of_conv, _pad_of_average, _pad_of_maximum, _crop_of_transposed
)
