"""The element-wise program that a fusing pass attaches to a convolution or matrix product.

Attribute "epilogue": an `Expression` whose input 0 is the operator's result and whose further inputs are the
node's inputs after the operator's own; these broadcast onto the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph import numpy_math
from coresident.graph.expression import Expression
from coresident.graph.graph import Fact, Node
from coresident.graph.operators.elementwise import result_type
from coresident.graph.operators.operands import broadcast, required

Array = np.ndarray[Any, Any]


def epilogue_fact(node: Node, result: Fact, facts: Sequence[Fact | None], own: int) -> Fact:
    """The fact of the result after the epilogue, if the node has one.

    Args:
        node: of the operator.
        result: of the operator alone.
        facts: of all inputs of the node.
        own: how many inputs the operator itself has at most.

    Raises:
        InvalidModel: an input of the epilogue is missing or does not broadcast onto the result.
    """
    expression: Expression | None = node.get("epilogue")
    if expression is None:
        if len(facts) > own:
            raise InvalidModel(f"{len(facts)} inputs where at most {own} are read")
        return result
    extras = [required(facts, own + i, "an operand of the epilogue") for i in range(expression.inputs - 1)]
    if broadcast([result.sizes, *(f.sizes for f in extras)]) != result.shape:
        raise InvalidModel(
            "an operand of the epilogue must broadcast onto the result, one way",
            shape=(result.shape, *(f.shape for f in extras)),
        )
    return Fact(result_type(expression, [result.dtype, *(f.dtype for f in extras)]), result.shape)


def with_epilogue(node: Node, result: Array, arrays: Sequence[Array | None], own: int) -> Array:
    """The result of the operator after the epilogue, if the node has one."""
    expression: Expression | None = node.get("epilogue")
    if expression is None:
        return result
    extras = [required(arrays, own + i, "an operand of the epilogue") for i in range(expression.inputs - 1)]
    return np.broadcast_to(numpy_math.evaluate(expression, [result, *extras]), result.shape)
