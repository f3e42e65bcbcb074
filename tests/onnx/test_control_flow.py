"""`If` and `Loop` that the model decides give way to what they hold; others are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from coresident import InvalidModel, Limits, Session, UnsupportedModel

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
X = np.array([-1.0, 2.0, 3.0], np.float32)


def session(text: str) -> Session:
    model = onnx.parser.parse_model(HEAD + text)
    return Session(model.SerializeToString(), threads=1, cache=False)


def chosen(condition: str, constant: bool) -> str:
    """Both branches name a value `t`, which the graph around them has too."""
    initializer, node = (
        (f"<bool c = {condition}>", "") if constant else ("", f"c = Constant <value = bool {condition}> ()")
    )
    return f"""
        m (float[3] x) => (float[3] y) {initializer} {{
            {node}
            t = Relu(x)
            r = If (c) <
                then_branch = then_graph () => (float[3] o) {{ t = Neg(x)  o = Exp(t) }},
                else_branch = else_graph () => (float[3] o) <float w = {{2.0}}> {{
                    t = Mul(x, w)
                    o = Abs(t)
                }}
            >
            y = Add(r, t)
        }}"""


@pytest.mark.parametrize("constant", [True, False], ids=["initializer", "node"])
def test_the_branch_stands_for_the_node(constant: bool) -> None:
    relu = np.maximum(X, 0)
    for condition, wanted in (("{1}", np.exp(-X)), ("{0}", np.abs(2 * X))):
        (y,) = session(chosen(condition, constant)).run(None, {"x": X})
        np.testing.assert_allclose(y, wanted + relu, rtol=1e-6)


def test_branches_in_branches_and_outer_values_as_results() -> None:
    (y,) = session("""
        m (float[3] x) => (float[3] y) <bool yes = {1}, bool no = {0}> {
            y = If (yes) <
                then_branch = a () => (float[3] o) {
                    n = Neg(x)
                    o = If (no) <
                        then_branch = b () => (float[3] p) { p = Exp(n) },
                        else_branch = c () => (float[3] n) { }
                    >
                },
                else_branch = d () => (float[3] x) { }
            >
        }""").run(None, {"x": X})
    np.testing.assert_array_equal(y, -X)


def test_computed_conditions_are_refused() -> None:
    text = chosen("{1}", True).replace("<bool c = {1}>", "").replace("float[3] x)", "float[3] x, bool c)", 1)
    with pytest.raises(UnsupportedModel, match="If"):
        session(text)


@pytest.mark.parametrize("condition", ["bool[2] c = {1, 0}", "float c = {1.0}"])
def test_conditions_that_are_none(condition: str) -> None:
    with pytest.raises(InvalidModel, match="not one bool"):
        session(chosen("{1}", True).replace("bool c = {1}", condition))


def looped(trips: str = "{3}", start: str = "{1}", goes_on: str = "g = Identity(c)") -> str:
    """A loop that doubles a sum, adds the trip's number, and stacks the sums."""
    return f"""
        m (float[3] x) => (float[3] y, float[T, 3] rows) <int64 n = {trips}, bool start = {start}> {{
            t = Neg(x)
            y, rows = Loop (n, start, t) <
                body = b (int64 i, bool c, float[3] sum) => (bool g, float[3] out, float[3] row)
                <float two = {{2.0}}> {{
                    {goes_on}
                    t = Mul(sum, two)
                    f = Cast <to = 1> (i)
                    out = Add(t, f)
                    row = Identity(out)
                }}
            >
        }}"""


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("goes_on", ["g = Identity(c)", "g = Constant <value = bool {1}> ()"])
def test_loops_are_unrolled(opset: int, goes_on: str) -> None:
    model = onnx.parser.parse_model(HEAD.replace("17", str(opset)) + looped(goes_on=goes_on))
    y, rows = Session(model.SerializeToString(), threads=1, cache=False).run(None, {"x": X})
    wanted, total = [], -X
    for trip in range(3):
        total = 2 * total + np.float32(trip)
        wanted.append(total)
    np.testing.assert_array_equal(y, total)
    np.testing.assert_array_equal(rows, wanted)


def test_loops_in_loops_with_branches() -> None:
    (y,) = session("""
        m (float[3] x) => (float[3] y) <int64 n = {2}> {
            y = Loop (n, "", x) <
                body = b (int64 i, bool c, float[3] a) => (bool c, float[3] p) {
                    p = Loop (n, c, a) <
                        body = d (int64 j, bool e, float[3] q) => (bool e, float[3] r) {
                            r = If (e) <
                                then_branch = f () => (float[3] o) { o = Add(q, x) },
                                else_branch = g () => (float[3] q) { }
                            >
                        }
                    >
                }
            >
        }""").run(None, {"x": X})
    np.testing.assert_array_equal(y, 5 * X)


def test_a_loop_without_trips() -> None:
    text = """
        m (float[3] x) => (float[3] y) <int64 n = {0}> {
            y = Loop (n, "", x) <
                body = b (int64 i, bool c, float[3] a) => (bool c, float[3] p) { p = Neg(a) }
            >
        }"""
    np.testing.assert_array_equal(session(text).run(None, {"x": X})[0], X)
    with pytest.raises(UnsupportedModel, match="without trips"):
        session(looped(start="{0}"))


def test_loops_that_the_data_decide_are_refused() -> None:
    computed = looped().replace("<int64 n = {3}, ", "<").replace("float[3] x)", "float[3] x, int64 n)", 1)
    with pytest.raises(UnsupportedModel, match="constant number of trips"):
        session(computed)
    with pytest.raises(UnsupportedModel, match="no condition of its own"):
        session(looped(goes_on="s = ReduceSum <keepdims = 0> (sum)  z = Cast <to = 1> (i)  g = Less(s, z)"))


def test_loops_stay_within_bounds() -> None:
    model = onnx.parser.parse_model(HEAD + looped(f"{{{1 << 62}}}")).SerializeToString()
    with pytest.raises(InvalidModel, match="nodes, loops unrolled"):
        Session(model, cache=False)
    with pytest.raises(InvalidModel, match="bytes, loops unrolled"):
        Session(model, cache=False, limits=Limits(model_bytes=len(model)))
    with pytest.raises(InvalidModel, match="not one int64"):
        session(looped("{3, 4}").replace("int64 n", "int64[2] n"))
    with pytest.raises(InvalidModel, match="inputs and 4 outputs"):
        session(looped().replace("float[3] row)", "float[3] row, float[3] t)"))
