"""Pointwise operators tie their operands; what varies along a pruned axis is sliced with it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.harness import Array, Case, check, dense, image, model, node, weights, why

FREE = [
    *"Abs Atan Ceil Celu Cos Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Round Selu Shrink "
    "Sigmoid Sign Sin Softplus Softsign Tan Tanh ThresholdedRelu".split()
]


@pytest.mark.parametrize("op", FREE)
def test_unary(op: str) -> None:
    """All 8 hidden positions can go, also where f(0) is not 0."""
    check(Case(dense([node(op, "h", "g")], opset=18), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("op", ["Acosh", "Log", "Reciprocal", "Sqrt"])
def test_unary_of_positive_numbers(op: str) -> None:
    """f(0) is not finite: what is forced to zero is zero all the same."""
    nodes = [node("Exp", "h", "e"), node("Add", "e two", "p"), node(op, "p", "g")]
    check(Case(dense(nodes, {"two": np.float32(2)}), {"MatMul 'h'": 8}))


def test_quotient() -> None:
    """0 / 0 in the masked original."""
    nodes = [node("MatMul", "x U", "u"), node("Exp", "u", "e"), node("Div", "h e", "g")]
    check(Case(dense(nodes, weights(2, U=(4, 8))), {"MatMul 'h'": 8}))


@pytest.mark.parametrize(("op", "opset"), [("Gelu", 20), ("Swish", 24)])
def test_newer_unary(op: str, opset: int) -> None:
    check(Case(dense([node(op, "h", "g")], opset=opset), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("shape", [(), (1,), (8,), (5, 8), (1, 5, 8), (5, 1)])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Pow", "PRelu"])
def test_constant_operand(op: str, shape: tuple[int, ...]) -> None:
    """A constant of any broadcastable shape."""
    c = {"c": np.abs(np.random.default_rng(1).standard_normal(shape)).astype(np.float32) + 1}
    nodes = [node(op, "h c", "g")] if op != "Pow" else [node("Abs", "h", "a"), node("Pow", "a c", "g")]
    check(Case(dense(nodes, c, opset=16), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("opset", [6, 7, 13, 14])
def test_two_activations(opset: int) -> None:
    """x W + x U: one group, whose units are ties of both."""
    nodes = [node("MatMul", "x U", "u"), node("Add", "h u", "g")]
    check(Case(dense(nodes, weights(2, U=(4, 8)), opset=max(opset, 7)), {"MatMul 'h'": 8}))


def test_a_graph_input_pins_its_partner() -> None:
    c = weights(1, W=(4, 8), V=(8, 3))
    nodes = [node("MatMul", "x W", "h"), node("Add", "h z", "g"), node("MatMul", "g V", "y")]
    proto = model(nodes, {"x": [2, 5, 4], "z": [2, 5, 8]}, constants=c)
    analysis = check(Case(proto, {}))
    assert "no removable index" in why(analysis)


@pytest.mark.parametrize("opset", [6, 11, 13])
def test_clip(opset: int) -> None:
    """Bounds became inputs in opset 11."""
    if opset < 11:
        between, c = [node("Clip", "h", "g", min=-0.5, max=1.0)], {}
    else:
        between, c = [node("Clip", "h lo hi", "g")], {"lo": np.float32(-0.5), "hi": np.float32(1)}
    check(Case(dense(between, c, opset=max(opset, 7)), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_dropout(opset: int) -> None:
    """Does nothing at inference; the ratio became an input in opset 12."""
    c: dict[str, Array] = {"r": np.float32(0.5)} if opset >= 12 else {}
    between = [node("Dropout", "h r", "g")] if opset >= 12 else [node("Dropout", "h", "g", ratio=0.5)]
    check(Case(dense(between, c, opset=opset), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("op", ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"])
def test_comparison_selects(op: str) -> None:
    """Where(h < c, h, 0.5 h): booleans carry units too."""
    nodes = [node(op, "h c", "b"), node("Mul", "h half", "m"), node("Where", "b h m", "g")]
    c = weights(3, c=(8,)) | {"half": np.float32(0.5)}
    check(Case(dense(nodes, c), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op: str) -> None:
    nodes = [
        node("Greater", "h z", "a"),
        node("Less", "h c", "b"),
        node(op, "a b", "l"),
        node("Not", "l", "n"),
        node("Cast", "n", "f", to=1),
        node("CastLike", "f h", "f2"),
        node("Mul", "f2 h", "g"),
    ]
    check(Case(dense(nodes, weights(3, c=(8,)) | {"z": np.float32(0)}), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor", "Mod"])
def test_integers(op: str) -> None:
    nodes = [
        node("Mul", "h ten", "t"),
        node("Cast", "t", "i", to=7),
        node(op, "i c", "j"),
        node("Cast", "j", "f", to=1),
        node("Mul", "f h", "g"),
    ]
    c = {"c": np.arange(2, 10), "ten": np.float32(10)}
    check(Case(dense(nodes, c, opset=18), {"MatMul 'h'": 8}))


def test_nan_and_infinity() -> None:
    nodes = [
        node("IsNaN", "h", "a"),
        node("IsInf", "h", "b"),
        node("Or", "a b", "c"),
        node("Where", "c z h", "g"),
    ]
    check(Case(dense(nodes, {"z": np.float32(0)}, opset=20), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("shape", [(8, 1, 1), (1,), (8, 1, 8)])
def test_prelu_slopes_of_images(shape: tuple[int, ...]) -> None:
    check(Case(image([node("PRelu", "h s", "g")], weights(4, s=shape), opset=16), {"Conv 'h'": 8}))


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_normalization(opset: int) -> None:
    c = weights(5, s=(8,), b=(8,), m=(8,)) | {"v": np.linspace(1, 2, 8, dtype=np.float32)}
    check(Case(image([node("BatchNormalization", "h s b m v", "g")], c, opset=opset), {"Conv 'h'": 8}))


def test_swiglu() -> None:
    """SwiGLU(a, b) of ai.onnx has no kernel in every runtime: the same written out."""
    nodes = [
        node("MatMul", "x U", "u"),
        node("Sigmoid", "h", "s"),
        node("Mul", "h s", "w"),
        node("Mul", "w u", "g"),
    ]
    check(Case(dense(nodes, weights(6, U=(4, 8))), {"MatMul 'h'": 8}))


def test_bit_shift() -> None:
    nodes = [
        node("Abs", "h", "a"),
        node("Mul", "a ten", "t"),
        node("Cast", "t", "i", to=12),
        node("BitShift", "i one", "j", direction="LEFT"),
        node("Cast", "j", "f", to=1),
        node("Mul", "f h", "g"),
    ]
    c = {"one": np.array(1, np.uint32), "ten": np.float32(10)}
    check(Case(dense(nodes, c), {"MatMul 'h'": 8}))
