"""Attention in one node: heads are rows, and Q·K and V·O lose different positions."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.ops.attention import attention_macs, packed_macs
from onnxprune.ops.base import CostContext
from tests.ops.harness import Case, check, model, node, weights, why

MS = {"com.microsoft": 1}
WIDTH = 12


def projections(heads: int, groups: int, d: int, e: int, **more: tuple[int, ...]) -> dict[str, np.ndarray]:
    return weights(1, Wq=(WIDTH, heads * d), Wk=(WIDTH, groups * d), Wv=(WIDTH, groups * e), Wo=(heads * e, 5), **more)


PROJECT = [node("MatMul", "x Wq", "q"), node("MatMul", "x Wk", "k"), node("MatMul", "x Wv", "v")]


def expected(heads: int, d: int, e: int) -> dict[str, int]:
    """Positions of Q·K per head, positions of V·O per head, and heads of which one has to stay."""
    return (
        {"MatMul 'q'": d, "MatMul 'v'": e, "MatMul 'q' rows": heads}
        if heads > 1
        else {"MatMul 'q'": d, "MatMul 'v'": e}
    )


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_in_three_dimensions(opset: int, heads: int, groups: int, causal: int) -> None:
    d, e = 6, 8
    nodes = [
        *PROJECT,
        node("Attention", "q k v", "a", q_num_heads=heads, kv_num_heads=groups, is_causal=causal),
        node("MatMul", "a Wo", "y"),
    ]
    proto = model(nodes, {"x": ["B", "S", WIDTH]}, constants=projections(heads, groups, d, e), opset=opset)
    check(Case(proto, expected(heads if groups == 1 else groups, d, e)))


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("mask", ["none", "tokens", "heads", "softcap"])
def test_attention_in_four_dimensions(heads: int, groups: int, mask: str) -> None:
    d, e = 6, 8
    c = projections(heads, groups, d, e)
    rng = np.random.default_rng(0)
    c |= {"sq": np.array([2, 7, heads, d]), "sk": np.array([2, 7, groups, d]), "sv": np.array([2, 7, groups, e])}
    c["flat"] = np.array([2, 7, -1])
    if mask in ("tokens", "heads"):
        c["M"] = rng.standard_normal((7, 7) if mask == "tokens" else (heads, 7, 7)).astype(np.float32)
    nodes = list(PROJECT)
    for name in "qkv":
        nodes += [
            node("Reshape", f"{name} s{name}", f"{name}4"),
            node("Transpose", f"{name}4", f"{name}t", perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Attention", "qt kt vt" + (" M" if "M" in c else ""), "a", softcap=20.0 if mask == "softcap" else 0.0),
        node("Transpose", "a", "at", perm=[0, 2, 1, 3]),
        node("Reshape", "at flat", "af"),
        node("MatMul", "af Wo", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 7, WIDTH]}, constants=c, opset=23), expected(groups, d, e)))


def test_attention_with_a_cache_keeps_its_heads() -> None:
    """Keys and values go to and from the outside: only what comes before the projections could be pruned."""
    heads, d, e = 2, 4, 4
    nodes = [
        *PROJECT,
        node("Attention", "q k v _ pk pv", "a nk nv", q_num_heads=heads, kv_num_heads=heads),
        node("MatMul", "a Wo", "y"),
    ]
    proto = model(
        nodes,
        {"x": [1, "S", WIDTH], "pk": [1, heads, "P", d], "pv": [1, heads, "P", e]},
        outputs="y nk nv",
        constants=projections(heads, heads, d, e),
        opset=23,
    )
    analysis = check(Case(proto, {}))
    assert "the cache" in why(analysis)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(("domain", "partial", "four"), [("", 0, 0), ("", 4, 0), ("", 0, 1), ("com.microsoft", 0, 0)])
def test_rotary(domain: str, interleaved: int, partial: int, four: int) -> None:
    """Of d = 8 positions, pairs leave at the same offset of every head, with as many single ones where those are not turned."""
    heads, d = 2, 8
    pairs = (partial or d) // 2
    c = projections(heads, heads, d, 6) | weights(4, cos=(16, pairs), sin=(16, pairs))
    c["at"] = np.arange(7).reshape(1, 7).repeat(2, 0)
    c |= {"s4": np.array([2, 7, heads, d]), "flat": np.array([2, 7, -1])}
    attributes = {"interleaved": interleaved}
    if partial or domain:
        attributes |= {"rotary_embedding_dim": partial}
    if not four:
        attributes["num_heads"] = heads
    order = "{} at cos sin" if domain else "{} cos sin at"
    nodes = list(PROJECT)
    for name in "qk":
        if four:
            nodes += [
                node("Reshape", f"{name} s4", f"{name}4"),
                node("Transpose", f"{name}4", f"{name}h", perm=[0, 2, 1, 3]),
                node("RotaryEmbedding", order.format(f"{name}h"), f"{name}r", domain=domain, **attributes),
                node("Transpose", f"{name}r", f"{name}b", perm=[0, 2, 1, 3]),
                node("Reshape", f"{name}b flat", f"{name}2"),
            ]
        else:
            nodes.append(node("RotaryEmbedding", order.format(name), f"{name}2", domain=domain, **attributes))
    nodes += [
        node("Attention", "q2 k2 v", "a", q_num_heads=heads, kv_num_heads=heads),
        node("MatMul", "a Wo", "y"),
    ]
    proto = model(nodes, {"x": [2, 7, WIDTH]}, constants=c, opset=23, domains=MS if domain else {})
    check(Case(proto, expected(heads, pairs, 6)))


# ---------------------------------------------------------------- com.microsoft


@pytest.mark.parametrize("sizes", [None, (8, 8, 12)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_attention(sizes: tuple[int, int, int] | None, bias: bool) -> None:
    heads = 2
    q, k, v = sizes or (8, 8, 8)
    c = weights(2, E=(3, WIDTH), W=(WIDTH, q + k + v), B=(q + k + v,), Wo=(v, 5))
    if bias:
        c |= weights(3, M=(1, heads, 7, 7))
    attributes = {"qkv_hidden_sizes": list(sizes)} if sizes else {}
    nodes = [
        node("MatMul", "x E", "e"),
        node(
            "Attention",
            "e W B" + (" _ _ M" if bias else ""),
            "a",
            domain="com.microsoft",
            num_heads=heads,
            **attributes,
        ),
        node("MatMul", "a Wo", "y"),
    ]
    proto = model(nodes, {"x": [2, 7, 3]}, constants=c, domains=MS)
    units = {
        "MatMul 'e'": WIDTH,
        "Attention 'a'": q // heads,
        "Attention 'a''": v // heads,
        "Attention 'a' rows": heads,
    }
    check(Case(proto, units))


@pytest.mark.parametrize("form", ["plain", "bias", "attention bias", "scale"])
def test_multi_head_attention(form: str) -> None:
    heads, d, e = 3, 4, 6
    c = projections(heads, heads, d, e)
    inputs = "q k v"
    if form == "bias":
        c |= weights(5, B=(heads * (2 * d + e),))
        inputs += " B"
    if form == "attention bias":
        c |= weights(5, M=(1, heads, 7, 7))
        inputs += " _ _ M"
    attributes = {"scale": 0.3} if form == "scale" else {}
    nodes = [
        *PROJECT,
        node("MultiHeadAttention", inputs, "a", domain="com.microsoft", num_heads=heads, **attributes),
        node("MatMul", "a Wo", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 7, WIDTH]}, constants=c, domains=MS), expected(heads, d, e)))


@pytest.mark.parametrize("rotary", [0, 1])
def test_grouped_query_attention(rotary: int) -> None:
    """Whole groups leave: a key/value head and its two query heads."""
    heads, groups, d = 8, 4, 16
    c = projections(heads, groups, d, d) | weights(6, cos=(32, d // 2), sin=(32, d // 2))
    c |= {"len": np.array([6, 6], np.int32), "total": np.array(7, np.int32)}
    c |= {"pk": np.zeros((2, groups, 0, d), np.float32), "pv": np.zeros((2, groups, 0, d), np.float32)}
    inputs = "q k v pk pv len total" + (" cos sin" if rotary else "")
    nodes = [
        *PROJECT,
        node(
            "GroupQueryAttention",
            inputs,
            "a pk2 pv2",
            domain="com.microsoft",
            num_heads=heads,
            kv_num_heads=groups,
            do_rotary=rotary,
        ),
        node("MatMul", "a Wo", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 7, WIDTH]}, constants=c, domains=MS), {"MatMul 'q'": groups}))


def test_macs() -> None:
    shapes = ((2, 7, 4 * 6), (2, 9, 4 * 6), (2, 9, 4 * 8))
    assert attention_macs(CostContext({}, shapes, ((2, 7, 4 * 8),))) == 2 * 7 * 9 * 4 * (6 + 8)
    packed = CostContext({}, ((2, 7, 12), (12, 8 + 8 + 10)), ((2, 7, 10),))
    assert packed_macs(packed) == 2 * 7 * 12 * 26 + 2 * 7 * 7 * (8 + 10)
