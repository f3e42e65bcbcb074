"""Cholesky factorisations, of one matrix or many, that let other Python threads run meanwhile.

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
            raise _not_definite()
    return work.T


def inverses(grams: Array) -> Array:
    """The inverses of matrices.

    Args:
        grams: float32 [matrices, columns, columns], symmetric; destroyed.

    Returns:
        Of the same shape: their upper triangles; what is below is anything.

    Raises:
        InputError: one is not positive definite, not even in float64.
    """
    diagonals = np.diagonal(grams, axis1=1, axis2=2).copy()
    factorise, invert = (_routine("s" + name, 5) for name in ("potrf", "potri"))
    size, code = ctypes.c_int(grams.shape[1]), ctypes.c_int(0)
    letter, n, status = (ctypes.addressof(value) for value in (_UPPER, size, code))
    for number, (gram, diagonal) in enumerate(zip(grams, diagonals)):
        address = grams.ctypes.data + number * grams.strides[0]
        factorise(letter, n, address, n, status)
        if not code.value:
            invert(letter, n, address, n, status)
            continue
        # What LAPACK takes for the lower triangle is as it was.
        exact = np.triu(gram, 1).astype(np.float64)
        exact += exact.T + np.diag(diagonal)
        gram[:] = _inverted(exact).T
    return grams.transpose(0, 2, 1)


def _inverted(gram: Array) -> Array:
    """The inverse of one matrix of float64, in its upper triangle."""
    size = ctypes.c_int(len(gram))
    if _called("potrf", gram, size, gram, size):
        raise _not_definite()
    _called("potri", gram, size, gram, size)
    return gram.T


def _not_definite() -> InputError:
    return InputError("second moments are not positive definite: activations are not finite, or too large")


def solved(factor: Array, target: Array) -> Array:
    """The solution of H x = target, [columns], from the factor of `factorised`."""
    size, one = ctypes.c_int(len(factor)), ctypes.c_int(1)
    result: Array = np.array(target, factor.dtype)
    _called("potrs", factor, size, one, factor.T, size, result, size)
    return result
