"""Where the extreme along an axis lies. Source: ONNX ArgMax-13, ArgMin-13."""

from __future__ import annotations

from coresident.codegen.builder import Function, Value, kernel
from coresident.codegen.math import Typed
from coresident.codegen.types import I64, Type
from coresident.graph.graph import Node
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.lines import Line, Lines, Place
from coresident.kernels.lowering import Plan, lowers
from coresident.kernels.reduction import DType, check, spread
from coresident.kernels.vectors import pieces, store_first


@lowers("ArgMax", "ArgMin")
def extreme(node: Node, plan: Plan) -> None:
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    scalar, dtype = check(x, False), x.dtype
    axis = int(node.get("axis", 0)) % len(x.shape)
    last, largest = bool(node.get("select_last_index", 0)), node.op == "ArgMax"
    lines = Lines.of(plan.target, scalar, (x.layout, spread(y, x, (axis,))), (axis,))
    f = kernel(plan.target, node.op.lower())

    def one(line: Line) -> None:
        where = _search(f, line, dtype, largest, last)
        if lines.across:
            store_first(f, f.convert(where, I64), line.starts[1], 0, line.count, lines.kept[-1].strides[1])
        else:
            f.store(f.convert(where, I64), line.starts[1])

    tasks = pieces(plan.threads, lines.items, lines.steps * 3) if y.layout.elements else 0
    if tasks:
        lines.emit(f, tasks, [element_0(f, 0, x), element_0(f, 1, y)], one, [scalar, I64])
    info = {"op": node.op, "kernel": f"extreme, {'across' if lines.across else 'along'} lines"}
    plan.step(f, [operand(x), operand(y)], tasks, reads=[x], writes=[y], info=info)


def _search(f: Function, line: Line, dtype: DType, largest: bool, last: bool) -> Value:
    """The index of the extreme of a line: a scalar, or one a lane where vectors run across lines."""
    kind = line.lines.kind
    wide = Type("i", max(kind.bits, 32), kind.lanes)
    best, where = f.var(0, kind), f.var(-1, wide)
    position = f.var(0, wide)
    if not line.lines.across:
        position.set(f.indices(wide))
    step = 1 if line.lines.across else kind.lanes

    def visit(place: Place) -> None:
        value, at = place.load(), position.get()
        none = where.get() < 0
        better = none | _better(f, value, best.get(), dtype, largest, last)
        if place.count < kind.lanes and not line.lines.across:
            better = better & f.first(place.count, kind.lanes)
        best.set(f.select(better, value, best.get()))
        where.set(f.select(better, at, where.get()))
        position.set(at + step)

    line.each(visit)
    if line.lines.across or kind.lanes == 1:
        return where.get()
    values, places = best.get(), where.get()
    value, found = f.extract(values, 0), f.extract(places, 0)
    for lane in range(1, kind.lanes):
        other, at = f.extract(values, lane), f.extract(places, lane)
        earlier = (at > found) if last else (at < found)
        wins = _better(f, other, value, dtype, largest, False)
        ties = _better(f, value, other, dtype, largest, False) ^ 1
        better = (wins | (ties & earlier)) & (at >= 0)
        value, found = f.select(better, other, value), f.select(better, at, found)
    return found


def _better(f: Function, new: Value, old: Value, dtype: DType, largest: bool, equal: bool) -> Value:
    """Whether `new` takes the place of `old`; NaN takes every other's, as numpy has it.

    Args:
        equal: whether it does so if it is as good.
    """
    a, b = Typed(new, dtype.name), Typed(old, dtype.name)
    if equal:
        found = (a >= b) if largest else (a <= b)
    else:
        found = (a > b) if largest else (a < b)
    if dtype.kind != "f":
        return found.value
    nan = new.differs(new)
    if equal:
        return found.value | nan
    return found.value | (nan & old.equals(old))
