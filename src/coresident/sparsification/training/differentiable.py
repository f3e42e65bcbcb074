"""A network of plain ONNX operators as PyTorch computes it, so that its weights can be trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph
from coresident.graph.operator import inputs_of
from coresident.passes import expand, fold_constants
from coresident.sparsification.preparation import bound
from coresident.sparsification.training.functions import FUNCTIONS, Call, elementwise, has_gradient


class Differentiable:
    """A network at one set of sizes.

    Args:
        graph: prepared (`preparation.prepare`), or a part of such a graph.
        shapes: of its inputs.

    Raises:
        UnsupportedModel: operators that have no gradient here, all of them named.
    """

    def __init__(self, graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        known = fold_constants.PASS.run(expand.PASS.run(bound(graph, shapes)))
        self.outputs = known.outputs
        self._constants = {
            name: torch.from_numpy(np.array(array)) for name, array in known.initializers.items()
        }
        self._calls = []
        for node in known.nodes:
            inputs = inputs_of(node, known.initializers, known.facts)
            results = [known.facts[name] for name in node.outputs if name]
            self._calls.append(Call(node, inputs, results))
        missing = sorted({call.node.op for call in self._calls if not has_gradient(call)})
        if missing:
            raise UnsupportedModel(f"operators without a gradient: {', '.join(missing)}")

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's outputs by name.

        Args:
            values: inputs, and what initializers are now, by name. Constants that were made of initializers
                stay as they were.
        """
        known: dict[str, Tensor] = {**self._constants, **values}
        for call in self._calls:
            inputs = [known[name] if name else None for name in call.node.inputs]
            made = FUNCTIONS.get(call.node.op, elementwise)(call, inputs)
            known.update(zip(call.node.outputs, (made,) if isinstance(made, Tensor) else made))
        return {name: known[name] for name in self.outputs}
