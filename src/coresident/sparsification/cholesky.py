"""Cholesky factorisations that let other Python threads run meanwhile.

LAPACK's own routines, by the addresses that scipy gives to compiled code (`scipy.linalg.cython_lapack`): what
scipy offers to Python holds the interpreter's lock while it computes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cython_lapack

from coresident.errors import InputError
from coresident.graph.operator import Array

_LETTERS = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}
_UPPER = ctypes.c_char(b"U")


@functools.cache
def _routine(name: str, arguments: int) -> Callable[..., None]:
    capsule = cython_lapack.__pyx_capi__[name]
    names, pointers = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    names.restype, names.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointers.restype, pointers.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointers(capsule, names(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def _called(name: str, array: Array, *arguments: Any) -> int:
    """Call a routine of the array's type; all arguments by reference, the last is the return code."""
    code = ctypes.c_int(0)
    values = [_UPPER, *arguments, code]
    addresses = [v.ctypes.data if isinstance(v, np.ndarray) else ctypes.addressof(v) for v in values]
    _routine(_LETTERS[array.dtype] + name, len(values))(*addresses)
    return code.value


def factorised(gram: Array, columns: Array) -> Array:
    """The Cholesky factor U of H restricted to some columns, U^T U = H; in float64 where float32 does not do.

    Args:
        gram: H, float32 [columns, columns], symmetric.
        columns: which.

    Returns:
        In the upper triangle of a Fortran-contiguous array; what is below is anything.

    Raises:
        InputError: it is not positive definite.
    """
    part = gram[columns[:, None], columns]
    size = ctypes.c_int(len(columns))
    work = part.copy()
    if _called("potrf", work, size, work, size):
        work = part.astype(np.float64)
        if _called("potrf", work, size, work, size):
            raise InputError(
                "second moments are not positive definite: activations are not finite, or too large"
            )
    return work.T


def solved(factor: Array, target: Array) -> Array:
    """The solution of H x = target, [columns], from the factor of `factorised`."""
    size, one = ctypes.c_int(len(factor)), ctypes.c_int(1)
    result: Array = np.array(target, factor.dtype)
    _called("potrs", factor, size, one, factor.T, size, result, size)
    return result
