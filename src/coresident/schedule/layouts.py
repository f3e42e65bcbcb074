"""Decides how each activation lies in memory, before any kernel is chosen.

1. Values that convolutions and pools read or write, and what lies between them, are planar.
2. All planar values of the same spatial sizes leave the same gaps between rows, the widest border that any
   of them needs, so that runs of pixels can cross row ends from one layer to the next. Long rows begin at
   whole vectors. Copies of model inputs are alike.
3. A value carries a border of zeros (of its zero point, if it is quantised) exactly as wide as its consumers
   read.
4. The inputs of a channel concatenation lie inside its output: concatenating costs nothing.
5. Between sparse convolutions of single pixels that gain by it, pixels lie in blocks instead
   (`Layout.blocked`).
6. Where sparse convolutions of larger kernels gain by it, and all that is between them can, rows are cut into
   stripes instead (`Layout.striped`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coresident.codegen.target import Target
from coresident.codegen.types import F32
from coresident.graph.expression import ELEMENTWISE
from coresident.graph.graph import Fact, Graph, Node
from coresident.kernels.families import FAMILIES
from coresident.kernels.frame import STREAMED_BYTES
from coresident.kernels.geometry import can_run_flat
from coresident.kernels.layout import Layout

Halo = tuple[tuple[int, int], ...]

PLANAR = (np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.int8))
"""Element types of values that may be planar."""

BYTE_SLACK = 32
"""Elements of a quantised plane that may be overrun."""

LONG_ROWS = 256
"""Pixels of a row from which on rows begin at whole vectors, for which gaps are wider: fewer loads and stores
lie in two cache lines (layers of a sparse U-Net at 512 x 512 became 1.02 to 1.16 times as fast), and runs of
pixels that cross row ends become a twentieth longer at most."""

MOST_COPIED = 0.25
"""Of the elements that convolutions which gain by striped rows read and write: what may be copied to and from
such. A copy takes as long as a few of them gain."""

STRIPED_LOADS = 512
"""Bits that a core loads at once where rows are striped. Of vectors that are loaded in halves fewer cross a
line; whether they gain has not been measured."""

FEWEST_BLOCKS, FEWEST_PAGES = 8, 144
"""Of a plane, below which pixels do not lie in blocks: code is faster so, but it is fetched for too few of
them, and loops over streams of nonzeros, which are faster then, read planes. And pages of 4 KB that the
planes of a picture reach: twice what the first TLB knows. (What is stored past the caches keeps planes.)"""

_FOLLOW = frozenset(ELEMENTWISE) | {
    "Elementwise",
    "Concat",
    "MaxPool",
    "AveragePool",
    "Resize",
    "BatchNormalization",
}
_FOLLOW_VIEWS = frozenset(("Slice", "Split", "Pad"))
_VIEWS = frozenset(
    (
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Split",
        "Identity",
        "Dropout",
        "Expand",
    )
)


@dataclass(frozen=True)
class Place:
    """Where a value lies: in a buffer of its own, or inside a concatenation's.

    Args:
        layout: of the value.
        root: the value whose buffer it is (itself, or a concatenation's output).
        root_layout: of the whole buffer.
    """

    layout: Layout
    root: str
    root_layout: Layout


@dataclass(frozen=True)
class Assigned:
    """Args:
    places: of every value that a node makes.
    gaps: of each spatial sizes, the elements that planes leave between rows, for what is copied to such.
    """

    places: dict[str, Place]
    gaps: dict[tuple[int, ...], tuple[int, ...]]


def _wider(a: Halo, b: Halo) -> Halo:
    return tuple((max(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a, b))


def _is_spatial(graph: Graph, name: str) -> bool:
    fact = graph.fact(name)
    return fact is not None and fact.dtype in PLANAR and 3 <= len(fact.shape) <= 5 and 0 not in fact.sizes


def planar_values(graph: Graph) -> dict[str, Halo]:
    """The values that are to be planar, with the border of zeros that each needs."""
    needs: dict[str, Halo] = {}

    def want(name: str, halo: Sequence[tuple[int, int]] = ()) -> None:
        if not name or not _is_spatial(graph, name) or graph.constant(name) is not None:
            return
        spatial = len(graph.facts[name].shape) - 2
        padded = tuple(halo) or ((0, 0),) * spatial
        needs[name] = _wider(needs[name], padded) if name in needs else padded

    for node in graph.nodes:
        family = FAMILIES.get(node.op)
        if family is not None and family.halo is not None:
            want(node.inputs[0], family.halo(node, graph))
            want(node.outputs[0])
        elif node.op in _FOLLOW | _FOLLOW_VIEWS and any(name in needs for name in node.inputs):
            rank = max(len(graph.facts[n].shape) for n in node.inputs if n in needs)
            for name in node.outputs:
                if name and len(graph.facts[name].shape) == rank:
                    want(name)
    return needs


def halo_values(graph: Graph) -> dict[str, int]:
    """What the borders hold that are not zero: where readers differ, as the first of them wants it."""
    values: dict[str, int] = {}
    for node in graph.nodes:
        family = FAMILIES.get(node.op)
        if family is None or family.halo is None or family.fill is None:
            continue
        if any(map(any, family.halo(node, graph))):
            values.setdefault(node.inputs[0], family.fill(node, graph))
    return values


def planar_layout(
    target: Target, fact: Fact, gaps: Sequence[int], halo: Sequence[tuple[int, int]], fill: int
) -> Layout:
    """The planes of a value of one of the types in `PLANAR`."""
    itemsize = fact.dtype.itemsize
    slack = target.lanes(F32) if itemsize == 4 else BYTE_SLACK
    return Layout.planar(fact.sizes, gaps, halo, slack, itemsize, fill)


def assign(graph: Graph, target: Target, sparse: bool = True) -> Assigned:
    """Where the values lie that nodes make.

    Args:
        sparse: whether zeros among the weights are skipped.

    Model inputs and outputs are not placed: they lie in the user's arrays; but an output whose rows are not
    whole vectors is made in planes, where runs of pixels cross row ends, and copied.
    """
    needs, fills = planar_values(graph), halo_values(graph)
    lanes = target.lanes(F32)
    striped = striped_values(graph, target) if sparse else frozenset()
    direct = {n for n in graph.outputs if n not in needs or graph.facts[n].sizes[-1] % lanes == 0}
    fixed = {*graph.inputs, *direct, *graph.initializers}
    owner = _concatenations(graph, needs, fixed)
    for name, (root, _) in owner.items():
        top = _root(owner, root)
        if name in fills:
            fills.setdefault(top, fills[name])
        if name in needs and top in needs:
            needs[top] = _wider(needs[top], needs[name])
    gaps = _gaps(graph, {name: halo for name, halo in needs.items() if name not in striped}, lanes)
    places: dict[str, Place] = {}

    def place(name: str) -> Place:
        if name in places:
            return places[name]
        if name in owner:
            root, channel = owner[name]
            outer = place(root)
            layout = outer.layout.narrow(1, channel, graph.facts[name].sizes[1])
            result = Place(layout, outer.root, outer.root_layout)
        else:
            shape = graph.facts[name].sizes
            if name in striped:
                layout = Layout.striped(shape, needs[name], lanes)
            elif name in needs:
                layout = planar_layout(
                    target, graph.facts[name], gaps[shape[2:]], needs[name], fills.get(name, 0)
                )
            else:
                layout = Layout.contiguous(shape)
            result = Place(layout, name, layout)
        places[name] = result
        return result

    for node in graph.nodes:
        for name in node.outputs:
            if name and name not in fixed:
                place(name)
    return Assigned(_in_blocks(graph, target, places) if sparse else places, gaps)


def _gaps(graph: Graph, needs: Mapping[str, Halo], lanes: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """As `Assigned` has them: the widest borders of values of the same sizes, and of long rows so many that
    they begin at whole vectors."""
    gaps: dict[tuple[int, ...], tuple[int, ...]] = {}
    for name, halo in needs.items():
        spatial = graph.facts[name].sizes[2:]
        widest = tuple(max(pair) for pair in halo)
        gaps[spatial] = tuple(map(max, gaps.get(spatial, (0,) * len(spatial)), widest))
    for spatial, widths in gaps.items():
        if spatial[-1] >= LONG_ROWS and widths[-1]:
            gaps[spatial] = (*widths[:-1], widths[-1] + -(spatial[-1] + widths[-1]) % lanes)
    return gaps


def striped_values(graph: Graph, target: Target) -> frozenset[str]:
    """The values whose rows are cut into stripes, where zeros are skipped.

    A node reads and writes striped rows alone, but what has to be copied at the ends of such a part of the
    network (`Family.copies`), if that is little beside what gains.
    """
    lanes = target.lanes(F32)
    if target.load_bits < STRIPED_LOADS:
        return frozenset()
    # Striped volumes were measured where shuffles take turns of multiply-adds alone.
    ranks = (4,) if target.shuffles_apart else (4, 5)
    fixed = {*graph.inputs, *graph.outputs, *graph.initializers}
    needs = planar_values(graph)
    owner = _concatenations(graph, needs, fixed)

    def divides(name: str) -> bool:
        fact = graph.fact(name)
        if fact is None or fact.dtype != np.float32 or len(fact.shape) not in ranks or 0 in fact.sizes:
            return False
        return fact.sizes[-1] % lanes == 0

    values = {
        node.outputs[0]: [n for n in (*node.inputs, *node.outputs) if n and graph.constant(n) is None]
        for node in graph.nodes
    }
    gains: dict[str, bool | None] = {}
    for node in graph.nodes:
        name, family = node.outputs[0], FAMILIES.get(node.op)
        parts = node.op != "Concat" or all(owner.get(n, ("",))[0] == name for n in node.inputs)
        able = family is not None and parts and all(map(divides, values[name]))
        gains[name] = family.stripes(node, graph) if able and family and family.stripes else None
    if not any(gains.values()):
        return frozenset()
    planar = {name for name in needs if divides(name)} - fixed
    striped = {name for name in planar if graph.facts[name].sizes[-1] >= 2 * lanes}
    before, nodes_in_turn = -1, list(graph.nodes)
    while len(striped) != before:
        before = len(striped)
        # What one node can't reaches others before it and behind it.
        nodes_in_turn.reverse()
        for node in nodes_in_turn:
            names, family = values[node.outputs[0]], FAMILIES.get(node.op)
            copied = {name for name in names if name not in striped}
            may = family.copies(node) if family is not None else ()
            if gains[node.outputs[0]] is None or not copied <= set(may):
                striped.difference_update(names)
    touched = {key: striped.intersection(some) for key, some in values.items()}
    return frozenset(
        name
        for nodes, names in _connected({key: names for key, names in touched.items() if names})
        if _pays(graph, nodes, names, values, gains)
        for name in names
    )


def _pays(
    graph: Graph,
    nodes: Sequence[str],
    striped: set[str],
    values: Mapping[str, Sequence[str]],
    gains: Mapping[str, bool | None],
) -> bool:
    """Whether what nodes gain by striped values is more than the copies of the others take."""

    def size(names: Iterable[str]) -> int:
        return sum(math.prod(graph.facts[name].sizes) for name in names)

    copied = {name for node in nodes for name in values[node] if name not in striped}
    return MOST_COPIED * size(name for node in nodes if gains[node] for name in values[node]) >= size(copied)


def _connected(values: Mapping[str, Iterable[str]]) -> list[tuple[list[str], set[str]]]:
    """Groups of keys that share values, directly or by others, and their values."""
    groups: list[tuple[list[str], set[str]]] = []
    for key, names in values.items():
        touching = [group for group in groups if group[1] & set(names)]
        groups = [group for group in groups if group not in touching]
        keys = [one for group in touching for one in group[0]]
        groups.append(([*keys, key], set(names).union(*(group[1] for group in touching))))
    return groups


def _in_blocks(graph: Graph, target: Target, places: dict[str, Place]) -> dict[str, Place]:
    """The places, with pixels in blocks where who makes a value and all who read it gain by that."""
    lanes = target.lanes(F32)

    def planes(name: str) -> Layout | None:
        return places[name].layout if name in places else None

    def gains(node: Node) -> bool:
        blocks = FAMILIES[node.op].blocks if node.op in FAMILIES else None
        if blocks is None or not blocks(node, graph, target):
            return False
        extras = [name for name in node.inputs[3:] if graph.constant(name) is None]
        x, out, *more = map(planes, (node.inputs[0], node.outputs[0], *extras))
        if x is None or out is None or None in more:
            return False
        # What has strides is split by phase, with the output's gaps.
        strides = x.strides[2:] if x.shape[2:] == out.shape[2:] else out.strides[2:]
        return can_run_flat(strides, out, [layout for layout in more if layout is not None], lanes)

    gaining = {node.outputs[0] for node in graph.nodes if gains(node)}
    readers = graph.consumers()
    roots = Counter(place.root for place in places.values())
    result = dict(places)
    for name, place in places.items():
        alone = place.root == name and roots[name] == 1 and name not in graph.outputs
        if not alone or any(map(any, place.layout.halo)) or name not in gaining or not readers.get(name):
            continue
        _, channels, *spatial = place.layout.shape
        pages = channels * min(4 * place.layout.strides[1] / 4096, 1.0)
        layout = place.layout.blocked(lanes)
        if math.prod(spatial) < FEWEST_BLOCKS * lanes or pages < FEWEST_PAGES:
            continue
        if 4 * layout.extent < STREAMED_BYTES and all(r.outputs[0] in gaining for r in readers[name]):
            result[name] = Place(layout, name, layout)
    return result


def _root(owner: dict[str, tuple[str, int]], name: str) -> str:
    while name in owner:
        name = owner[name][0]
    return name


def _concatenations(graph: Graph, needs: dict[str, Halo], fixed: set[str]) -> dict[str, tuple[str, int]]:
    """For each value inside a channel concatenation: (the concatenation's output, first channel)."""
    producers = graph.producers()
    owner: dict[str, tuple[str, int]] = {}
    for node in reversed(graph.nodes):
        if node.op != "Concat" or node.outputs[0] not in needs or node.outputs[0] in fixed:
            continue
        rank = len(graph.facts[node.outputs[0]].shape)
        if node.get("axis", 0) % rank != 1:
            continue
        channel = 0
        for name in node.inputs:
            fact = graph.fact(name)
            assert fact is not None
            if name in needs and name not in fixed and name not in owner and _writes_itself(producers[name]):
                owner[name] = (node.outputs[0], channel)
            channel += fact.sizes[1]
    return owner


def _writes_itself(node: Node) -> bool:
    """Whether the node writes its output, so that it can be told where."""
    return node.op not in _VIEWS
