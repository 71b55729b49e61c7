"""Quantized operators: scales and zero points per channel are sliced with the channel."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.harness import Case, check, model, node, weights

MS = {"com.microsoft": 1}
Array = np.ndarray
STEP = 0.02  # a quantized result may round the other way


def scalars(**values: float) -> dict[str, Array]:
    """Scales are floats, names ending in `z` zero points of type uint8."""
    return {n: np.array(v, np.uint8 if n.endswith("z") else np.float32) for n, v in values.items()}


def kernel(seed: int, name: str, shape: tuple[int, ...], per_channel: int = 0, axis: int = 0) -> dict[str, Array]:
    """An int8 kernel with its scale `{name}s` and zero point `{name}z`, of one entry or of `per_channel`."""
    rng = np.random.default_rng(seed)
    side = (per_channel,) if per_channel else ()
    return {
        name: rng.integers(-127, 128, shape).astype(np.int8),
        f"{name}s": (rng.random(side) * 0.004 + 0.002).astype(np.float32),
        f"{name}z": np.zeros(side, np.int8),
    }


IO = scalars(xs=0.03, xz=128, hs=0.05, hz=110, ys=0.1, yz=128)
QUANTIZE = node("QuantizeLinear", "x xs xz", "xq")
RESULT = node("DequantizeLinear", "yq ys yz", "y")


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_qlinear_conv(per_channel: bool, bias: bool, groups: int) -> None:
    """Three convolutions: 8 channels, then 6 (in 2 groups: 4 and 3 steps, and the groups themselves), then the output."""
    c = IO | kernel(1, "A", (8, 3, 3, 3), 8 * per_channel) | kernel(2, "B", (6, 8 // groups, 3, 3), 6 * per_channel)
    c |= kernel(3, "C", (4, 6, 1, 1))
    c["b"] = np.random.default_rng(4).integers(-200, 200, 8).astype(np.int32)
    nodes = [
        QUANTIZE,
        node("QLinearConv", "xq xs xz A As Az hs hz" + (" b" if bias else ""), "h"),
        node("QLinearConv", "h hs hz B Bs Bz hs hz", "g", group=groups, pads=[1, 1, 1, 1]),
        node("QLinearConv", "g hs hz C Cs Cz ys yz", "yq"),
        RESULT,
    ]
    units = {"QLinearConv 'h'": 8, "QLinearConv 'g'": 6}
    if groups == 2:
        units = {"QLinearConv 'h'": 4, "QLinearConv 'g'": 3, "QLinearConv 'h' rows": 2}
    check(Case(model(nodes, {"x": ["B", 3, 6, 6]}, constants=c), units, tolerance=STEP))


def test_qlinear_conv_of_any_kind_between() -> None:
    """Sigmoid, leaky relu, addition, product, pooling, concatenation; sigmoid(0) is not 0, and still nothing is left of it."""
    c = (
        IO
        | kernel(1, "A", (8, 3, 3, 3))
        | kernel(2, "B", (8, 3, 3, 3))
        | kernel(3, "C", (4, 16, 1, 1))
        | scalars(ss=1 / 256, sz=0)
    )
    nodes = [
        QUANTIZE,
        node("QLinearConv", "xq xs xz A As Az hs hz", "h"),
        node("QLinearConv", "xq xs xz B Bs Bz hs hz", "g"),
        node("QLinearSigmoid", "h hs hz ss sz", "s", domain="com.microsoft"),
        node("QLinearLeakyRelu", "g hs hz hs hz", "l", domain="com.microsoft", alpha=0.1),
        node("QLinearMul", "s ss sz l hs hz hs hz", "p", domain="com.microsoft"),
        node("QLinearAdd", "p hs hz g hs hz hs hz", "a", domain="com.microsoft"),
        node("QLinearAveragePool", "a hs hz hs hz", "o", domain="com.microsoft", kernel_shape=[2, 2]),
        node("QLinearConcat", "hs hz o hs hz o hs hz", "c", domain="com.microsoft", axis=1),
        node("QLinearGlobalAveragePool", "c hs hz hs hz", "k", domain="com.microsoft", channels_last=0),
        node("QLinearConv", "k hs hz C Cs Cz ys yz", "yq"),
        RESULT,
    ]
    check(Case(model(nodes, {"x": [2, 3, 6, 6]}, constants=c, domains=MS), {"QLinearConv 'h'": 8}, tolerance=STEP))


def test_channels_last() -> None:
    """com.microsoft::QLinearConv of [N, H, W, C]."""
    c = IO | kernel(1, "A", (8, 3, 3, 3), 8) | kernel(2, "B", (8, 1, 3, 3)) | kernel(3, "C", (4, 8, 1, 1))
    ms = {"domain": "com.microsoft", "channels_last": 1}
    nodes = [
        QUANTIZE,
        node("QLinearConv", "xq xs xz A As Az hs hz", "h", **ms),
        node("QLinearConv", "h hs hz B Bs Bz hs hz", "g", group=8, **ms),
        node("QLinearConv", "g hs hz C Cs Cz ys yz", "yq", **ms),
        RESULT,
    ]
    check(Case(model(nodes, {"x": [2, 7, 7, 3]}, constants=c, domains=MS), {"QLinearConv 'h'": 8}, tolerance=STEP))


@pytest.mark.parametrize("zero", [False, True])
def test_conv_integer(zero: bool) -> None:
    """Dynamic quantization: the range of x always contains 0."""
    c = weights(7, V=(4, 8, 1, 1)) | kernel(1, "A", (8, 3, 3, 3)) | kernel(2, "B", (6, 8, 3, 3))
    c["Az"], c["Bz"] = np.array(0 if not zero else 3, np.int8), np.array(0, np.int8)
    c |= {"f": np.array(0.001, np.float32)} | weights(8, W=(4, 6, 1, 1))
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("ConvInteger", "q A z Az", "i"),
        node("Cast", "i", "if", to=1),
        node("Mul", "if s", "h0"),
        node("Mul", "h0 f", "h"),
        node("Relu", "h", "r"),
        node("DynamicQuantizeLinear", "r", "q2 s2 z2"),
        node("ConvInteger", "q2 B z2 Bz", "i2"),
        node("Cast", "i2", "if2", to=1),
        node("Mul", "if2 s2", "g"),
        node("Conv", "g W", "y"),
    ]
    nodes[1].name = "i"
    check(Case(model(nodes, {"x": [2, 3, 8, 8]}, constants=c), {"ConvInteger 'i'": 8, "ConvInteger 'i2'": 6}))


@pytest.mark.parametrize("per_column", [False, True])
def test_qlinear_matmul(per_column: bool) -> None:
    c = IO | kernel(1, "A", (5, 8), 8 * per_column) | kernel(2, "B", (8, 3))
    nodes = [
        QUANTIZE,
        node("QLinearMatMul", "xq xs xz A As Az hs hz", "h"),
        node("QLinearMatMul", "h hs hz B Bs Bz ys yz", "yq"),
        RESULT,
    ]
    check(Case(model(nodes, {"x": [2, 4, 5]}, constants=c), {"QLinearMatMul 'h'": 8}, tolerance=STEP))


@pytest.mark.parametrize("per_column", [False, True])
def test_matmul_integer(per_column: bool) -> None:
    c = kernel(1, "A", (5, 8), 8 * per_column) | kernel(2, "B", (8, 3)) | {"f": np.array(0.001, np.float32)}
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("MatMulInteger", "q A z Az", "i"),
        node("Cast", "i", "if", to=1),
        node("Mul", "if f", "h"),
        node("DynamicQuantizeLinear", "h", "q2 s2 z2"),
        node("MatMulInteger", "q2 B z2 Bz", "i2"),
        node("Cast", "i2", "y", to=1),
    ]
    check(Case(model(nodes, {"x": [4, 5]}, constants=c), {"MatMulInteger 'i'": 8}))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("per_column", [False, True])
def test_qgemm(transposed: int, per_column: bool) -> None:
    c = IO | kernel(1, "A", (8, 5) if transposed else (5, 8), 8 * per_column) | kernel(2, "B", (8, 3))
    c["b"] = np.random.default_rng(4).integers(-200, 200, 8).astype(np.int32)
    nodes = [
        QUANTIZE,
        node("QGemm", "xq xs xz A As Az b hs hz", "h", domain="com.microsoft", transB=transposed),
        node("QGemm", "h hs hz B Bs Bz _ ys yz", "yq", domain="com.microsoft"),
        RESULT,
    ]
    check(Case(model(nodes, {"x": [4, 5]}, constants=c, domains=MS), {"QGemm 'h'": 8}, tolerance=STEP))


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("op", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_matmul_to_float(op: str, per_column: bool) -> None:
    c = IO | kernel(1, "A", (5, 8), 8 * per_column) | kernel(2, "B", (8, 3)) | weights(3, b=(8,))
    if op == "DynamicQuantizeMatMul":
        first, second = (
            node(op, "x A As Az b", "h", domain="com.microsoft"),
            node(op, "h B Bs Bz", "y", domain="com.microsoft"),
        )
        nodes = [first, second]
    else:
        nodes = [
            node("DynamicQuantizeLinear", "x", "q s z"),
            node(op, "q A s As z Az b", "h", domain="com.microsoft"),
            node("DynamicQuantizeLinear", "h", "q2 s2 z2"),
            node(op, "q2 B s2 Bs z2 Bz", "y", domain="com.microsoft"),
        ]
    check(Case(model(nodes, {"x": [4, 5]}, constants=c, domains=MS), {f"{op} 'h'": 8}))


def test_qattention() -> None:
    heads = 2
    c = weights(1, E=(3, 12), b=(24,), Wo=(8, 5)) | kernel(2, "W", (12, 24))
    nodes = [
        node("MatMul", "x E", "e"),
        node("DynamicQuantizeLinear", "e", "q s z"),
        node("QAttention", "q W b s Ws _ z Wz", "a", domain="com.microsoft", num_heads=heads),
        node("MatMul", "a Wo", "y"),
    ]
    proto = model(nodes, {"x": [2, 7, 3]}, constants=c, domains=MS)
    units = {"MatMul 'e'": 12, "QAttention 'a'": 4, "QAttention 'a''": 4, "QAttention 'a' rows": 2}
    check(Case(proto, units))


@pytest.mark.parametrize("opset", [10, 13, 19, 21])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_dequantize(opset: int, per_channel: bool) -> None:
    """The QDQ form: weights and activations behind a pair of nodes; scales per output channel need opset 13."""
    if per_channel and opset < 13:
        pytest.skip("one scale per tensor before opset 13")
    c = IO | kernel(1, "A", (8, 3, 3, 3), 8 * per_channel) | kernel(2, "B", (4, 8, 1, 1))
    attributes = {"axis": 0} if per_channel else {}
    nodes = [
        node("DequantizeLinear", "A As Az", "Ad", **attributes),
        node("DequantizeLinear", "B Bs Bz", "Bd"),
        node("Conv", "x Ad", "h"),
        node("QuantizeLinear", "h hs hz", "hq"),
        node("DequantizeLinear", "hq hs hz", "hd"),
        node("Relu", "hd", "r"),
        node("Conv", "r Bd", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 3, 6, 6]}, constants=c, opset=opset), {"DequantizeLinear 'Ad'": 8}))
