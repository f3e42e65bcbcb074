"""Free dimensions: other shapes than the model's, batches that run in pieces, and what is kept of it all."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import model_of, onnxruntime_outputs

from coresident import InputError, ModelError, Session, compiler
from coresident.programs import Programs, pieces
from coresident.runtime import artifact
from coresident.sizes import FreeSizes

Array = np.ndarray[Any, Any]
SEED = 31


def normal(*shape: int) -> Array:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; "-" stands for an input left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    for one in model.graph.input:
        one.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def network(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    *outputs: str,
    shape: Sequence[int] = (1, 3, 8, 9),
) -> onnx.ModelProto:
    x = np.zeros(shape, np.float32)
    return free_batch(model_of(list(nodes), {"x": x}, list(outputs), constants, opset=18))


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


WINDOWS = [
    node("Conv", "x w b", "c", pads=[1] * 4),
    node("BatchNormalization", "c s b m v", "n"),
    node("Relu", "n", "r"),
    node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
    node("Resize", "p - scales", "u", mode="linear"),
    node("Pad", "u pads", "q"),
    node("GlobalAveragePool", "q", "g"),
    node("Flatten", "g", "f"),
    node("Gemm", "f h hb", "y", transB=1),
    node("Softmax", "y", "z", axis=-1),
]
WINDOW_CONSTANTS = {
    "w": normal(4, 3, 3, 3), "b": normal(4), "s": normal(4), "m": normal(4), "v": np.abs(normal(4)) + 1,
    "scales": np.float32([1, 1, 2, 2]), "pads": integers(0, 0, 1, 0, 0, 0, 0, 2),
    "h": normal(5, 4), "hb": normal(5),
}  # fmt: skip

# A transformer as exporters write it: shapes computed from the input's, a class token for each picture.
ATTENTION = [
    node("Shape", "x", "shape"),
    node("Gather", "shape zero", "batch", axis=0),
    node("Concat", "batch minus last", "rows", axis=0),
    node("Reshape", "x rows", "t"),
    node("Concat", "batch one last", "tokens", axis=0),
    node("Expand", "class tokens", "cls"),
    node("Concat", "cls t", "all", axis=1),
    node("LayerNormalization", "all ls lb", "l", axis=-1),
    node("MatMul", "l wq", "q"),
    node("Transpose", "l", "k", perm=[0, 2, 1]),
    node("MatMul", "q k", "scores"),
    node("Softmax", "scores", "a", axis=-1),
    node("MatMul", "a l", "o"),
    node("Add", "o all", "sum"),
    node("Gather", "sum first", "head", axis=1),
    node("Transpose", "sum", "turned", perm=[1, 0, 2]),
]
ATTENTION_CONSTANTS = {
    "zero": integers(0), "minus": integers(-1), "one": integers(1), "last": integers(9),
    "class": normal(1, 1, 9), "ls": normal(9), "lb": normal(9), "wq": normal(9, 9),
    "first": np.array(0, np.int64),
}  # fmt: skip

INDEPENDENT = {
    "windows": network(WINDOWS, WINDOW_CONSTANTS, "z", "g"),
    "attention": network(ATTENTION, ATTENTION_CONSTANTS, "head", "turned"),
    "a constant": network([node("Relu", "x", "y"), node("Neg", "k", "n")], {"k": normal(2)}, "y", "n"),
    "views": network(
        [
            node("Transpose", "x", "t", perm=[2, 3, 0, 1]),
            node("Slice", "t from to axes", "s"),
            node("Unsqueeze", "s axes", "u"),
            node("Split", "u", "p q", axis=4, split=None, num_outputs=2),
            node("ReduceMean", "p axes", "y", keepdims=0),
            node("ArgMax", "q", "z", axis=0, keepdims=1),
        ],
        {"from": integers(1), "to": integers(7), "axes": integers(0)},
        "y",
        "z",
    ),
}

INDEPENDENT["attention's own operator"] = free_batch(
    model_of(
        [node("Attention", "x x x mask", "a"), node("CastLike", "k x", "l"), node("Add", "a l", "y")],
        {"x": np.zeros((1, 3, 8, 9), np.float32)},
        ["y"],
        {"mask": normal(8, 8), "k": np.array(2)},
        opset=23,
    )
)

DEPENDENT = {
    "a sum over the batch": [node("ReduceSum", "x zero", "y", keepdims=0)],
    "a sum over everything": [node("ReduceMean", "x", "m"), node("Sub", "x m", "y")],
    "division by the size": [
        node("Shape", "x", "s"),
        node("Cast", "s", "f", to=1),
        node("ReduceProd", "f", "p"),
        node("Div", "x p", "y"),
    ],
    "softmax over the batch": [node("Softmax", "x", "y", axis=0)],
    "a turned batch": [node("Slice", "x minus least zero minus", "y")],
    "the first picture for all": [node("Gather", "x first", "f", axis=0), node("Add", "x f", "y")],
    "the batch among the rows": [node("Reshape", "x flat", "r"), node("Softmax", "r", "y", axis=0)],
    "an identity that looks free": [node("Reshape", "x two", "y")],
    "a shifted batch": [node("Pad", "x shift", "y")],
    "indices of the whole": [node("MaxPool", "x", "v y", kernel_shape=[2, 2])],
    "positions in the batch": [node("CumSum", "x first", "y")],
}
DEPENDENT_CONSTANTS = {
    "zero": integers(0), "minus": integers(-1), "least": integers(-100), "first": np.array(0, np.int64),
    "flat": integers(-1, 9), "two": integers(1, -1), "shift": integers(1, 0, 0, 0, -1, 0, 0, 0),
}  # fmt: skip


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled in the background."""
    monkeypatch.setattr(FreeSizes, "_compile_later", lambda *of: None)


def check(session: Session, model: onnx.ModelProto, counts: Sequence[int]) -> None:
    shape = [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim][1:]
    for count in counts:
        feeds = {"x": normal(count, *shape)}
        for got, want in zip(session.run(None, feeds), onnxruntime_outputs(model, feeds)):
            assert (got.dtype, got.shape) == (want.dtype, want.shape), count
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=f"batch of {count}")


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_batch_runs_in_pieces(name: str, waiting: None) -> None:
    model = INDEPENDENT[name]
    for first in (1, 3):
        with Session(model.SerializeToString(), threads=2, cache=False) as session:
            check(session, model, [first, 1, 2, 3, 5, 7])
            assert len(session._free.programs.bindings()) == 1, [
                b.why for b in session._free.batches.values()
            ]


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_batch_whose_pictures_meet_does_not(name: str, waiting: None) -> None:
    read = {name for one in DEPENDENT[name] for name in one.input}
    constants = {name: value for name, value in DEPENDENT_CONSTANTS.items() if name in read}
    model = network(DEPENDENT[name], constants, "y")
    with Session(model.SerializeToString(), threads=1, cache=False) as session:
        check(session, model, [1, 2, 4])
        assert len(session._free.programs.bindings()) == 3
        assert all(batch.why for batch in session._free.batches.values())


def test_a_constant_for_each_picture(waiting: None) -> None:
    """Shapes that fit by accident at one size must not be taken for a batch."""
    model = network([node("Add", "x c", "y")], {"c": normal(3, 1, 1, 1)}, "y")
    with Session(model.SerializeToString(), threads=1, cache=False) as session:
        check(session, model, [3, 1])
        with pytest.raises(ModelError):
            session.run(None, {"x": normal(2, 3, 8, 9)})


def test_the_own_program_comes_in_the_background() -> None:
    model = INDEPENDENT["windows"]
    with Session(model.SerializeToString(), threads=1, cache=False, programs=2) as session:
        check(session, model, [1, 4])
        stop = time.monotonic() + 60
        while len(session._free.programs.bindings()) < 2:
            assert time.monotonic() < stop
            time.sleep(0.01)
        assert session.program({"x": normal(4, 3, 8, 9)}).inputs[0].shape[0] == 4
        check(session, model, [4, 6, 1, 9])
        # There is no room for more.
        sizes = {shapes[0][0] for shapes, _ in session._free.programs.bindings()}
        assert sizes == {1, 4}


def test_what_fails_in_the_background_is_told_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = INDEPENDENT["a constant"]
    with Session(model.SerializeToString(), threads=1, cache=False) as session:
        check(session, model, [1])

        def fails(*of: object) -> None:
            raise ModelError("no")

        monkeypatch.setattr(compiler, "compile", fails)
        check(session, model, [2])
        assert session._free.compiling is not None
        session._free.compiling.join(60)
        with pytest.raises(ModelError, match="no"):
            check(session, model, [2])


def test_pieces_cover_a_batch() -> None:
    for count, sizes in itertools.product(range(1, 20), [{1}, {2}, {8}, {1, 4}, {3, 7}, {16, 2}]):
        plan = pieces(count, sizes)
        covered = {i for piece in plan for i in range(piece.start, piece.start + piece.count)}
        assert covered == set(range(count)), (count, sizes)
        assert all(piece.size in sizes and 0 < piece.count <= piece.size for piece in plan)
        assert all(piece.count == piece.size or piece.start == 0 for piece in plan)


def test_programs_are_bounded_by_memory() -> None:
    class Weighing:
        resident_bytes = 40

    programs: Programs[int] = Programs(10, 100)
    for key in range(5):
        programs.put(key, Weighing())  # type: ignore[arg-type]
        assert programs.room() == (key < 1)
    assert programs.bindings() == [3, 4]
    assert programs.get(3) is not None
    programs.put(5, Weighing())  # type: ignore[arg-type]
    assert programs.bindings() == [3, 5]
    tight: Programs[int] = Programs(10, 1)
    tight.put(1, Weighing())  # type: ignore[arg-type]
    assert tight.bindings() == [1]


def fixed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> bytes:
    x = np.zeros((1, 3, 8, 9), np.float32)
    made = model_of(list(nodes), {"x": x}, list(outputs), {"w": normal(4, 3, 3, 3)}, opset=18)
    return bytes(made.SerializeToString())


CONVOLUTION = [node("Conv", "x w", "c", pads=[1] * 4), node("Relu", "c", "y")]


def test_shapes_free_dimensions() -> None:
    model = fixed(CONVOLUTION, ["y"])
    shapes = {"x": (1, 3, None, "width")}
    with Session(model, threads=1, cache=False, shapes=shapes) as session:
        assert session.get_inputs()[0].shape == (1, 3, None, "width")
        for height, width in ((8, 9), (5, 17), (8, 9)):
            feeds = {"x": normal(1, 3, height, width)}
            freed = onnx.load_from_string(model)
            for axis in (2, 3):
                freed.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
            (want,) = onnxruntime_outputs(freed, feeds)
            np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError):
            session.run(None, {"x": normal(2, 3, 8, 9)})


def test_shapes_fix_dimensions(tmp_path: Path) -> None:
    model = INDEPENDENT["windows"].SerializeToString()
    with Session(model, threads=1, shapes={"x": (2, 3, 8, 9)}) as session:
        assert session.get_inputs()[0].shape == (2, 3, 8, 9)
        assert session.get_outputs()[0].shape == (2, 5)
        artifact.write(artifact.Artifact((session.program({"x": normal(2, 3, 8, 9)}),)), tmp_path / "m.cres")
        with pytest.raises(InputError):
            session.run(None, {"x": normal(1, 3, 8, 9)})
    with Session(model, threads=1) as session:
        assert session.get_inputs()[0].shape == ("batch", 3, 8, 9)
    with pytest.raises(InputError, match="other shapes need the model"):
        Session(tmp_path / "m.cres", shapes={"x": (2, 3, 8, 9)})


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"z": (1,)}, "no input 'z'"),
        ({"x": (1, 3)}, "4 dimensions"),
        ({"x": (1, 3, -1, 9)}, "a size is"),
        ({"x": (1, 3, 2.5, 9)}, "a size is"),
        ({"x": (1, 3, True, 9)}, "a size is"),
    ],
)
def test_shapes_that_can_not_be(shapes: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Session(fixed(CONVOLUTION, ["y"]), cache=False, shapes=shapes)


def test_a_name_has_one_size() -> None:
    two = free_batch(
        model_of([node("Add", "a b", "y")], {"a": normal(1, 3), "b": normal(1, 3)}, ["y"], opset=18)
    )
    content = two.SerializeToString()
    with Session(content, cache=False, shapes={"a": (4, 3)}) as session:
        assert [one.shape for one in session.get_inputs()] == [(4, 3)] * 2
    with pytest.raises(InputError, match="elsewhere"):
        Session(content, cache=False, shapes={"a": (4, 3), "b": (5, 3)})


def test_zero_sized_batches_and_scalars(waiting: None) -> None:
    model = INDEPENDENT["windows"]
    with Session(model.SerializeToString(), threads=1, cache=False) as session:
        check(session, model, [2])
        z, g = session.run(None, {"x": normal(0, 3, 8, 9)})
        assert (z.shape, g.shape) == ((0, 5), (0, 4, 1, 1))
        check(session, model, [3, 1])
    scalar = model_of([node("Mul", "x x", "y")], {"x": np.float32(3)}, ["y"], opset=18)
    with Session(scalar.SerializeToString(), cache=False) as session:
        assert session.run(None, {"x": np.array(3, np.float32)})[0] == np.float32(9)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_sizes() -> None:
    from test_concurrency import resident

    model = onnx.load_from_string(fixed(CONVOLUTION, ["y"])).SerializeToString()
    with Session(model, threads=1, cache=False, shapes={"x": (1, 3, None, 64)}, programs=2) as session:
        for height in range(8, 14):
            session.run(None, {"x": normal(1, 3, height, 64)})
        before = resident()
        for height in range(14, 24):
            session.run(None, {"x": normal(1, 3, height, 64)})
        assert len(session._free.programs.bindings()) == 2
        assert resident() - before < 16 << 20
