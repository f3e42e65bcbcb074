"""`If` whose condition the model holds gives way to its branch; others are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from coresident import InvalidModel, Session, UnsupportedModel

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
