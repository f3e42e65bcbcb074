"""Tensors as argument words of a kernel.

Users' arrays are passed by their start, so where an element lies in them is written into the code; of the
arena and the constants, the address of element 0 is passed.
"""

from __future__ import annotations

from coresident.codegen.builder import Function, Value, word
from coresident.kernels.lowering import Address, Tensor


def operand(tensor: Tensor) -> Address:
    """The argument word for a tensor."""
    return tensor.storage if tensor.storage.kind in ("input", "output") else tensor.address


def element_0(f: Function, index: int, tensor: Tensor) -> Value:
    """The address of a tensor's element 0, from argument word `index`, which its `operand` fills."""
    pointer = word(f, index)
    shift = tensor.layout.origin if tensor.storage.kind in ("input", "output") else 0
    return f.offset(pointer, shift * tensor.dtype.itemsize) if shift else pointer
