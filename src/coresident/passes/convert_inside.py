"""Pools and Resizes that compute in floats read and write bytes themselves.

1. AveragePool, GlobalAveragePool and linear or cubic Resize of DequantizeLinear of bytes, per tensor and with
   constant parameters, read the bytes: attribute "from_bytes" (`graph.operators.conversion`).
2. QuantizeLinear to bytes of what only it reads and such an operator made of bytes becomes its attribute
   "to_bytes".
"""

from __future__ import annotations

from coresident.graph.graph import Node
from coresident.passes.patch import Patch, View, pattern_pass
from coresident.passes.quantization import BYTES, byte_tensor, parameters


def _takes_bytes(node: Node) -> bool:
    if node.op == "Resize":
        crop = node.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        return node.get("mode", "nearest") != "nearest" and not crop
    return node.op in ("AveragePool", "GlobalAveragePool")


def _read(view: View, node: Node) -> Patch | None:
    if not _takes_bytes(node) or "from_bytes" in node.attributes:
        return None
    found = byte_tensor(view, node.inputs[0])
    if found is None:
        return None
    conversion = (float(found.scale), int(found.zero_point))
    attributes = {**node.attributes, "from_bytes": conversion}
    return Patch((node,), (node.with_(inputs=(found.source, *node.inputs[1:]), attributes=attributes),))


def _write(view: View, node: Node) -> Patch | None:
    found = parameters(view, node, "QuantizeLinear")
    if found is None or not found.per_tensor or found.dtype not in BYTES:
        return None
    maker = view.maker(node.inputs[0])
    if maker is None or "from_bytes" not in maker.attributes or "to_bytes" in maker.attributes:
        return None
    if view.sole_reader(node.inputs[0]) is not node:
        return None
    conversion = (float(found.scale), int(found.zero_point), found.dtype.name)
    attributes = {**maker.attributes, "to_bytes": conversion}
    return Patch((maker, node), (maker.with_(outputs=node.outputs, attributes=attributes),))


PASS = pattern_pass("convert_inside", _read, _write)
