"""Element-wise nodes as expressions over named values, and one expression put into another."""

from __future__ import annotations

from dataclasses import dataclass

from coresident.graph.expression import ELEMENTWISE, Apply, Expression
from coresident.graph.graph import Node
from coresident.graph.operators.elementwise import attributes_of


@dataclass(frozen=True)
class Fused:
    """An expression and the values that it reads, each once."""

    inputs: tuple[str, ...]
    expression: Expression

    @staticmethod
    def of(node: Node | None) -> Fused | None:
        """What an element-wise node computes; None for other nodes."""
        if node is None or not all(node.inputs):
            return None
        if node.op == "Elementwise":
            return Fused(node.inputs, node.attributes["expression"])
        if node.op not in ELEMENTWISE or node.op == "Identity":
            return None
        inputs = tuple(dict.fromkeys(node.inputs))
        arguments = tuple(inputs.index(name) for name in node.inputs)
        step = Apply(node.op, arguments, tuple(sorted(attributes_of(node).items())))
        return Fused(inputs, Expression(len(inputs), (step,)))

    def after(self, value: str, inner: Fused) -> Fused:
        """This expression with its input `value` computed by `inner`, whose inputs come first."""
        inputs = tuple(dict.fromkeys((*inner.inputs, *(name for name in self.inputs if name != value))))
        count, done = len(inputs), len(inner.expression.steps)
        made = count + done - 1 if done else inputs.index(inner.inputs[0])

        def of_inner(i: int) -> int:
            own = inner.expression.inputs
            return inputs.index(inner.inputs[i]) if i < own else count + i - own

        def of_outer(i: int) -> int:
            own = self.expression.inputs
            if i >= own:
                return count + done + i - own
            return made if self.inputs[i] == value else inputs.index(self.inputs[i])

        steps = [Apply(s.op, tuple(map(of_inner, s.arguments)), s.attributes) for s in inner.expression.steps]
        steps += [Apply(s.op, tuple(map(of_outer, s.arguments)), s.attributes) for s in self.expression.steps]
        return Fused(inputs, Expression(count, tuple(steps)))
