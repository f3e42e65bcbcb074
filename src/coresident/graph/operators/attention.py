"""Attention, written as matrix products and a Softmax. Source: ONNX Attention-25."""

from __future__ import annotations

from math import sqrt

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.composite import Body, composite

AFTER_SOFTCAP, AFTER_BIAS, AFTER_SOFTMAX = 1, 2, 3
"""What the fourth output shows (attribute qk_matmul_output_mode); 0 is the plain product."""


@composite("Attention")
def _attention(body: Body) -> list[str]:
    node = body.node
    if len(node.inputs) < 3 or not all(node.inputs[:3]):
        raise InvalidModel("Q, K and V are needed")
    joined = len(body.shape(node.inputs[0])) == 3
    heads = [int(node.get(name, 0)) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    q, k, v = (_split(body, x, h) if joined else x for x, h in zip(node.inputs, heads))
    if any(len(body.shape(x)) != 4 for x in (q, k, v)):
        raise InvalidModel("Q, K and V must all have 3 or all have 4 dimensions")
    past = body.shape(body.input(4))[2] if body.input(4) else 0
    if bool(body.input(4)) != bool(body.input(5)):
        raise InvalidModel("past_key and past_value must be given together")
    if body.input(4):
        k, v = body.add("Concat", body.input(4), k, axis=2), body.add("Concat", body.input(5), v, axis=2)
    batch, query_heads, queries, size = body.shape(q)
    kv_heads, keys = body.shape(k)[1:3]
    if query_heads % kv_heads:
        raise InvalidModel(f"{kv_heads} heads of keys do not divide {query_heads} heads of queries")
    # Several heads of queries share one of keys: the product broadcasts over them.
    group = query_heads // kv_heads
    products = (batch, kv_heads, group, queries, keys)
    q = body.reshape(q, batch, kv_heads, group, queries, size)
    turned = body.transpose(body.reshape(k, batch, kv_heads, 1, keys, size), 0, 1, 2, 4, 3)
    scale = node.get("scale", 1 / sqrt(size))
    scores = body.add("Mul", body.add("MatMul", q, turned), body.like(scale, q))
    scores = body.reshape(scores, batch, query_heads, queries, keys)
    shown = scores
    softcap = float(node.get("softcap", 0))
    if softcap:
        cap = body.like(softcap, q)
        scores = body.add("Mul", body.add("Tanh", body.add("Div", scores, cap)), cap)
    mode = int(node.get("qk_matmul_output_mode", 0))
    shown = scores if mode == AFTER_SOFTCAP else shown
    bias, may_mask_rows = _bias(body, q, queries, keys, past)
    if bias:
        scores = body.add("Add", scores, bias)
    shown = scores if mode == AFTER_BIAS else shown
    weights = body.add("Softmax", scores, axis=-1)
    if may_mask_rows:
        # A query that attends to no key gets zeros, not the NaN that its row of -inf makes.
        most = body.add("ReduceMax", bias, body.constant([-1], np.int64), keepdims=1)
        none = body.add("Equal", most, body.like(-np.inf, q))
        weights = body.add("Where", none, body.like(0, q), weights)
    shown = weights if mode == AFTER_SOFTMAX else shown
    values = body.reshape(v, batch, kv_heads, 1, keys, body.shape(v)[3])
    y = body.add("MatMul", body.reshape(weights, *products), values)
    y = body.reshape(y, batch, query_heads, queries, body.shape(v)[3])
    if joined:
        y = body.reshape(body.transpose(y, 0, 2, 1, 3), batch, queries, query_heads * body.shape(v)[3])
    return [y, k, v, shown][: len(node.outputs)]


def _split(body: Body, name: str, heads: int) -> str:
    """[batch, sequence, heads * size] as [batch, heads, sequence, size]."""
    shape = body.shape(name)
    if len(shape) != 3 or heads < 1 or shape[2] % heads:
        raise InvalidModel(f"{heads} heads do not divide the last dimension", shape=shape)
    return body.transpose(body.reshape(name, *shape[:2], heads, shape[2] // heads), 0, 2, 1, 3)


def _bias(body: Body, q: str, queries: int, keys: int, past: int) -> tuple[str, bool]:
    """What is added to the scores, "" for nothing, and whether it may mask all keys of a query."""
    node, lengths = body.node, body.input(6)
    if lengths and body.input(4):
        raise InvalidModel("nonpad_kv_seqlen can't be combined with a past")
    # Where query i stands among the keys, but for the lengths that are known at run time only.
    stands = np.arange(queries)[:, None] + (-queries if lengths else past)
    left, right = int(node.get("left_window_size", -1)), int(node.get("right_window_size", -1))
    most = min([0] * bool(node.get("is_causal", 0)) + [right] * (right >= 0), default=None)
    allowed: list[str] = []
    places = body.constant(np.arange(keys), np.int64)
    query = body.constant(stands, np.int64)
    if lengths:
        length = body.add("Cast", body.reshape(lengths, body.shape(lengths)[0], 1, 1, 1), to="int64")
        query = body.add("Add", query, length)
        allowed.append(body.add("Less", places, length))
    if most is not None:
        allowed.append(body.add("LessOrEqual", places, body.add("Add", query, body.constant(most, np.int64))))
    if left >= 0:
        first = body.add("Sub", query, body.constant(left, np.int64))
        allowed.append(body.add("GreaterOrEqual", places, first))
    lowest = 0 if left < 0 else np.maximum(stands - left, 0)
    highest = keys - 1 if most is None else np.minimum(stands + most, keys - 1)
    all_see = not lengths and not body.input(3) and bool(np.all(lowest <= highest))
    mask = _mask(body, keys)
    if mask and body.dtype(mask) == np.bool_:
        allowed.append(mask)
        mask = ""
    if not allowed:
        return mask, bool(mask)
    both = allowed[0]
    for other in allowed[1:]:
        both = body.add("And", both, other)
    bias = body.add("Where", both, body.like(0, q), body.like(-np.inf, q))
    if mask:
        bias = body.add("Add", bias, mask)
    return bias, not all_see


def _mask(body: Body, keys: int) -> str:
    """The input attn_mask, filled up to all keys; "" where there is none."""
    mask = body.input(3)
    if not mask:
        return ""
    shape = body.shape(mask)
    if not shape or shape[-1] > keys or len(shape) > 4:
        raise UnsupportedModel(f"attn_mask must broadcast onto [batch, heads, queries, {keys}]", shape=shape)
    missing = keys - shape[-1]
    if not missing or shape[-1] == 1:
        return mask
    nothing = body.constant(False) if body.dtype(mask) == np.bool_ else body.like(-np.inf, mask)
    pads = body.constant([*[0] * (2 * len(shape) - 1), missing], np.int64)
    return body.add("Pad", mask, pads, nothing)
