"""What tells a kernel that writes outside its buffers does so."""

from __future__ import annotations

from dataclasses import replace

import banded
import numpy as np
import pytest
from support import HOST, graph_of

from coresident.compiler import Options, compile_graph
from coresident.graph.graph import Node


@pytest.mark.parametrize("small", ["buffer", "scratch", "inputs"])
def test_a_byte_outside_is_seen(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.ones((1, 20, 9, 11), np.uint8)
    weights = {"w": np.ones((7, 20, 3, 3), np.int8), "v": np.ones((5, 7, 1, 1), np.float32)}
    nodes = [
        Node("ConvInteger", ("x", "w"), ("s",), {}, "c"),
        Node("Cast", ("s",), ("f",), {"to": "float32"}, "f"),
        Node("Conv", ("f", "v"), ("y",), {}, "d"),
    ]
    with banded.planners() as planners:
        program = compile_graph(graph_of(nodes, {"x": x}, ["y"], weights), Options(target=HOST, threads=1))
    (planner,) = planners
    np.testing.assert_array_equal(banded.run(planner, program, [x]), np.full((1, 1, 5, 7, 9), 7 * 180))
    if small == "inputs":
        planner.written[-1].clear()
    elif small == "scratch":
        program = replace(program, scratch_bytes=max(program.scratch_bytes - 2048, 0))
    else:
        for buffer in planner._buffers:
            monkeypatch.setattr(buffer, "size", max(buffer.size - 2048, 0))
    with pytest.raises(AssertionError, match="outside its buffers"):
        banded.run(planner, program, [x])
