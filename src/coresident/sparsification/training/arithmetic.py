"""The arithmetic that recipes may hold, `eval(start + 2 * 3)`, computed without Python's eval."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from coresident.errors import InputError

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "round": round,
    "int": int,
    "float": float,
    "abs": abs,
}
_LONGEST = 500
"""Characters of an expression at most."""


def compute(text: str, variables: Mapping[str, float]) -> float:
    """The value of an expression of numbers, variables, + - * / // %, min, max, round, int, float and abs.

    Raises:
        InputError: anything else in it, or no number as its result.
    """
    if len(text) > _LONGEST:
        raise InputError(f"an expression of {len(text)} characters; {_LONGEST} are the most")
    try:
        value: float = _value(ast.parse(text.strip(), mode="eval").body, variables)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"{text!r} is not an expression of numbers and variables") from None
    except (ArithmeticError, TypeError) as error:
        raise InputError(f"{text!r} can't be computed: {error}") from None
    return value


def _value(node: ast.expr, variables: Mapping[str, float]) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in variables:
            known = ", ".join(sorted(variables)) or "none"
            raise InputError(f"no variable is called {node.id!r}; there are: {known}")
        return variables[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, variables), _value(node.right, variables))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand, variables))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None:
            return function(*(_value(argument, variables) for argument in node.args))
    raise InputError(
        f"{ast.unparse(node)!r} is not allowed in a recipe; numbers, variables, + - * / // % and "
        f"{', '.join(_FUNCTIONS)} are"
    )
