"""MatMul, Gemm, Einsum."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.ops.base import CostContext
from onnxprune.ops.matmul import einsum_macs, gemm_macs, matmul_macs
from tests.ops.harness import Case, check, dense, model, node, weights, why


@pytest.mark.parametrize("opset", [1, 9, 13])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_matmul(opset: int, rank: int) -> None:
    nodes = [node("MatMul", "x W", "h"), node("MatMul", "h V", "y")]
    shape = [2, 3, 5, 4][4 - rank :]
    proto = model(nodes, {"x": shape}, constants=weights(1, W=(4, 8), V=(8, 3)), opset=max(opset, 7))
    check(Case(proto, {"MatMul 'h'": 8}))


def test_constant_on_the_left() -> None:
    """W x: rows of W are the units."""
    nodes = [node("MatMul", "W x", "h"), node("MatMul", "V h", "y")]
    proto = model(nodes, {"x": [2, 4, 5]}, constants=weights(1, W=(8, 4), V=(3, 8)))
    check(Case(proto, {"MatMul 'h'": 8}))


def test_vector_weight() -> None:
    """[.., 8] x [8] -> [..]"""
    nodes = [node("MatMul", "x W", "h"), node("MatMul", "h v", "y")]
    check(Case(model(nodes, {"x": [2, 5, 4]}, constants=weights(1, W=(4, 8), v=(8,))), {"MatMul 'h'": 8}))


def test_batched_weight() -> None:
    """Experts [3, 4, 8] and [3, 8, 2]: each expert loses equally many, or goes as a whole out of the sum over experts."""
    nodes = [node("MatMul", "x W", "h"), node("MatMul", "h V", "e"), node("ReduceSum", "e a", "y", keepdims=0)]
    c = weights(1, W=(3, 4, 8), V=(3, 8, 2)) | {"a": np.array([0])}
    check(Case(model(nodes, {"x": [5, 4]}, constants=c), {"MatMul 'h'": 8, "MatMul 'h' rows": 3}))


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bias", [None, (), (8,), (1, 8), (5, 8), (5, 1)])
def test_gemm(opset: int, trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    c = weights(1, W=(8, 4) if trans_b else (4, 8), V=(8, 3))
    if bias is not None:
        c["b"] = np.random.default_rng(2).standard_normal(bias).astype(np.float32)
    elif opset < 11:
        pytest.skip("the bias is optional from opset 11")
    inputs = "x W" if bias is None else "x W b"
    nodes = [
        node("Gemm", inputs, "h", transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0),
        node("MatMul", "h V", "y"),
    ]
    check(Case(model(nodes, {"x": [4, 5] if trans_a else [5, 4]}, constants=c, opset=opset), {"Gemm 'h'": 8}))


HEADS = {"q": "btd,dhk->bhtk", "k": "bsd,dhk->bhsk", "v": "bsd,dhe->bhse"}


@pytest.mark.parametrize("ellipsis", [False, True])
def test_einsum_attention(ellipsis: bool) -> None:
    """Projections to heads, scores, values, and the sum over heads: 2 heads of 4 (Q·K) and 6 (V·O)."""
    c = weights(1, Q=(4, 2, 4), K=(4, 2, 4), V=(4, 2, 6), O=(2, 6, 3))
    scores, mix = ("...tk,...sk->...ts", "...ts,...se->...te") if ellipsis else ("bhtk,bhsk->bhts", "bhts,bhse->bhte")
    nodes = [
        *[node("Einsum", f"x {n.upper()}", n, equation=e) for n, e in HEADS.items()],
        node("Einsum", "q k", "z", equation=scores),
        node("Softmax", "z", "p", axis=-1),
        node("Einsum", "p v", "a", equation=mix),
        node("Einsum", "a O", "y", equation="bhte,hed->btd"),
    ]
    units = {"Einsum 'q'": 4, "Einsum 'v'": 6, "Einsum 'q' rows": 2}
    check(Case(model(nodes, {"x": [2, 5, 4]}, constants=c), units))


@pytest.mark.parametrize(
    ("equation", "outer"), [("btd->bdt", "bdt,de->bte"), ("btd", "bdt,de->bte"), ("...d->...d", "btd,de->bte")]
)
def test_einsum_of_one(equation: str, outer: str) -> None:
    nodes = [
        node("MatMul", "x W", "h"),
        node("Einsum", "h", "g", equation=equation),
        node("Einsum", "g V", "y", equation=outer),
    ]
    check(Case(model(nodes, {"x": [2, 5, 4]}, constants=weights(1, W=(4, 8), V=(8, 3))), {"MatMul 'h'": 8}))


def test_einsum_of_three() -> None:
    nodes = [
        node("MatMul", "x W", "h"),
        node("Einsum", "h s V", "y", equation="btd,d,de->bte"),
    ]
    proto = model(nodes, {"x": [2, 5, 4]}, constants=weights(1, W=(4, 8), s=(8,), V=(8, 3)))
    check(Case(proto, {"MatMul 'h'": 8}))


def test_einsum_sums_an_axis() -> None:
    """Summed without the other operand: zeros add nothing."""
    nodes = [node("MatMul", "x W", "h"), node("Einsum", "h u", "y", equation="btd,be->be")]
    proto = model(nodes, {"x": [2, 5, 4]}, constants=weights(1, W=(4, 8), u=(2, 3)))
    check(Case(proto, {"MatMul 'h'": 8}))


def test_einsum_with_a_repeated_label_stays() -> None:
    nodes = [
        node("MatMul", "x W", "h"),
        node("Einsum", "h", "g", equation="bdd->bd"),
        node("MatMul", "g V", "y"),
    ]
    proto = model(nodes, {"x": [2, 8, 4]}, constants=weights(1, W=(4, 8), V=(8, 3)))
    assert "repeats a label" in why(check(Case(proto, {})))


def test_gated_linear_unit() -> None:
    proto = dense(
        [node("MatMul", "x U", "u"), node("Sigmoid", "u", "s"), node("Mul", "h s", "g")], weights(2, U=(4, 8))
    )
    check(Case(proto, {"MatMul 'h'": 8}))


def test_macs() -> None:
    assert matmul_macs(CostContext({}, ((2, 5, 4), (4, 8)), ((2, 5, 8),))) == 2 * 5 * 8 * 4
    assert gemm_macs(CostContext({"transA": 1}, ((4, 5), (4, 8)), ((5, 8),))) == 5 * 8 * 4
    assert (
        einsum_macs(CostContext({"equation": "btd,dhk->bhtk"}, ((2, 5, 4), (4, 3, 6)), ((2, 3, 5, 6),)))
        == 2 * 5 * 4 * 18
    )
