"""com.microsoft operators of ONNX Runtime's optimizer: products, embeddings, biases."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.ops.base import CostContext
from onnxprune.ops.fused import fused_matmul_macs
from tests.ops.harness import Case, check, model, node, weights, why

MS = {"com.microsoft": 1}


@pytest.mark.parametrize("op", ["FusedMatMul", "TransposeMatMul"])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_fused_matmul_with_a_weight(op: str, trans_a: int, trans_b: int) -> None:
    """x W1 W2: the hidden width is 6."""
    c = weights(1, W1=(6, 4) if trans_b else (4, 6), W2=(6, 3))
    nodes = [
        node(op, "x W1", "h", domain="com.microsoft", transA=trans_a, transB=trans_b, alpha=0.5),
        node("MatMul", "h W2", "y"),
    ]
    proto = model(nodes, {"x": [2, 4, 5] if trans_a else [2, 5, 4]}, constants=c, domains=MS)
    check(Case(proto, {f"{op} 'h'": 6}))


@pytest.mark.parametrize("batch_first", [0, 1])
def test_fused_scores(batch_first: int) -> None:
    """Q K' of heads [B, H, S, D]; with transBatchA, of [S, B, H, D]: 2 heads of 4, and 6 values per head."""
    c = weights(2, Wq=(5, 8), Wk=(5, 8), Wv=(5, 12), Wo=(12, 3))
    c |= {"s": np.array([2, 7, 2, -1]), "flat": np.array([2, 7, -1])}
    nodes = [
        *[node("MatMul", f"x W{n}", n) for n in "qkv"],
        *[node("Reshape", f"{n} s", f"{n}4") for n in "qkv"],
        node("Transpose", "q4", "qt", perm=[1, 0, 2, 3] if batch_first else [0, 2, 1, 3]),
        node("Transpose", "k4", "kt", perm=[0, 2, 1, 3]),
        node("Transpose", "v4", "vt", perm=[0, 2, 1, 3]),
        node("FusedMatMul", "qt kt", "z", domain="com.microsoft", transB=1, transBatchA=batch_first, alpha=0.5),
        node("Softmax", "z", "p", axis=-1),
        node("MatMul", "p vt", "a"),
        node("Transpose", "a", "at", perm=[0, 2, 1, 3]),
        node("Reshape", "at flat", "af"),
        node("MatMul", "af Wo", "y"),
    ]
    proto = model(nodes, {"x": [2, 7, 5]}, constants=c, domains=MS)
    check(Case(proto, {"MatMul 'q'": 4, "MatMul 'v'": 6, "MatMul 'q' rows": 2}))


def test_fused_gemm() -> None:
    c = weights(3, W=(6, 4), B=(6,), W2=(6, 3))
    nodes = [
        node("FusedGemm", "x W B", "h", domain="com.microsoft", transB=1, activation="Sigmoid"),
        node("MatMul", "h W2", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 4]}, constants=c, domains=MS), {"FusedGemm 'h'": 6}))


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_gelu_with_bias(op: str) -> None:
    c = weights(4, W=(4, 6), B=(6,), W2=(6, 3))
    nodes = [
        node("MatMul", "x W", "h"),
        node(op, "h B", "g", domain="com.microsoft"),
        node("MatMul", "g W2", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 3, 4]}, constants=c, domains=MS), {"MatMul 'h'": 6}))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_matmul_n_bits(zero_points: bool, flat: bool) -> None:
    """K goes by blocks of 16, by two where they share a byte of zero points (then all of K is one); N = 6 row by row."""
    n, k, block = 6, 32, 16
    rng = np.random.default_rng(5)
    c = weights(5, E=(4, k), W2=(n, 3))
    c["B"] = rng.integers(0, 256, (n, k // block, block // 2)).astype(np.uint8)
    c["S"] = (rng.random((n * k // block,) if flat else (n, k // block)) / 9).astype(np.float32)
    inputs = "e B S"
    if zero_points:
        c["Z"] = rng.integers(0, 256, (n,) if flat else (n, 1)).astype(np.uint8)
        inputs += " Z"
    nodes = [
        node("MatMul", "x E", "e"),
        node("MatMulNBits", inputs, "h", domain="com.microsoft", K=k, N=n, bits=4, block_size=block),
        node("MatMul", "h W2", "y"),
    ]
    wanted = {"MatMulNBits 'h'": n} | ({} if zero_points else {"MatMul 'e'": 2})
    analysis = check(Case(model(nodes, {"x": [2, 4]}, constants=c, domains=MS), wanted))
    assert ("hang together" in why(analysis)) == zero_points


def test_gather_block_quantized() -> None:
    rng = np.random.default_rng(6)
    c = weights(6, W=(64, 3)) | {
        "T": rng.integers(0, 256, (10, 64)).astype(np.uint8),
        "S": rng.random((10, 4)).astype(np.float32),
    }
    nodes = [
        node("GatherBlockQuantized", "T i S", "e", domain="com.microsoft", block_size=16, bits=8, quantize_axis=1),
        node("MatMul", "e W", "y"),
    ]
    proto = model(nodes, {"i": [2, 3]}, constants=c, types={"i": "int64"}, domains=MS)
    check(Case(proto, {"GatherBlockQuantized 'e'": 4}))


def test_embed_layer_norm() -> None:
    """The width of the embedding, approximately: layer normalization sees how many there are."""
    c = weights(7, Tw=(20, 8), Tp=(16, 8), Ts=(2, 8), G=(8,), Z=(8,), W=(8, 3))
    nodes = [
        node("EmbedLayerNormalization", "i s Tw Tp Ts G Z", "e m", domain="com.microsoft"),
        node("MatMul", "e W", "y"),
    ]
    proto = model(nodes, {"i": [2, 3], "s": [2, 3]}, constants=c, types={"i": "int32", "s": "int32"}, domains=MS)
    analysis = check(Case(proto, {}))
    assert "mean and variance" in why(analysis)


def test_macs() -> None:
    """[2, 5, 4] x [2, 4, 6], and the same transposed."""
    assert fused_matmul_macs(CostContext({}, ((2, 5, 4), (2, 4, 6)), ((2, 5, 6),))) == 2 * 5 * 6 * 4
    assert fused_matmul_macs(CostContext({"transA": 1}, ((2, 4, 5), (2, 4, 6)), ((2, 5, 6),))) == 2 * 5 * 6 * 4
    assert fused_matmul_macs(CostContext({"transA": 1, "transBatchA": 1}, ((4, 2, 5), (2, 4, 6)), ((2, 5, 6),))) == 240
