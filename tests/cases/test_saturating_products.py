"""Signed 8-bit weights, on processors whose sums of two products saturate: compared with unsigned weights of the same meaning.

The processor of a test may not saturate, so it is said that it does: what is compared then has no signed weights, and computes the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Budget, runtime
from onnxprune.groups.observation import Array
from onnxprune.model.loaded import Model
from onnxprune.proof import unsigned as proof
from onnxprune.runtime import Session
from tests.ops.harness import model, node
from tests.oracle import net

MS = {"domain": "com.microsoft"}
RNG = np.random.default_rng(0)


def signed(*shape: int) -> Array:
    """7 bits, of which no processor's sums saturate, so that there is something to compare with."""
    return RNG.integers(-64, 65, shape).astype(np.int8)


SCALES: dict[str, Array] = {
    "xs": np.float32(0.02),
    "xz": np.array(130, np.uint8),
    "ws": np.float32(0.01),
    "wz": np.array(-3, np.int8),
    "ys": np.float32(0.05),
}
QUANTIZE = node("DynamicQuantizeLinear", "x", "q s z")
DECODE = node("DequantizeLinear", "c ys xz", "y")
KERNELS = {
    "MatMulInteger": ([QUANTIZE, node("MatMulInteger", "q w z wz", "c"), node("Cast", "c", "y", to=1)], (8, 6)),
    "no zero points": ([QUANTIZE, node("MatMulInteger", "q w", "c"), node("Cast", "c", "y", to=1)], (8, 6)),
    "QLinearMatMul": (
        [node("QuantizeLinear", "x xs xz", "q"), node("QLinearMatMul", "q xs xz w ws wz ys xz", "c"), DECODE],
        (8, 6),
    ),
    "QGemm": (
        [node("QuantizeLinear", "x xs xz", "q"), node("QGemm", "q xs xz w ws wz _ ys xz", "c", **MS), DECODE],
        (8, 6),
    ),
    "DynamicQuantizeMatMul": ([node("DynamicQuantizeMatMul", "x w ws wz", "y", **MS)], (8, 6)),
    "MatMulIntegerToFloat": ([QUANTIZE, node("MatMulIntegerToFloat", "q w s ws z wz", "y", **MS)], (8, 6)),
}
CONVS = {
    "ConvInteger": [QUANTIZE, node("ConvInteger", "q w z wz", "c"), node("Cast", "c", "y", to=1)],
    "QLinearConv": [node("QuantizeLinear", "x xs xz", "q"), node("QLinearConv", "q xs xz w ws wz ys xz", "c"), DECODE],
}


def small(name: str) -> onnx.ModelProto:
    if name in CONVS:
        return model(CONVS[name], {"x": [2, 4, 5, 5]}, constants=SCALES | {"w": signed(6, 4, 3, 3)})
    if name == "QAttention":
        nodes = [QUANTIZE, node("QAttention", "q w b s ws _ z wz", "y", num_heads=2, **MS)]
        constants = SCALES | {"w": signed(8, 24), "b": np.zeros(24, np.float32)}
        return model(nodes, {"x": [2, 5, 8]}, constants=constants, domains={"com.microsoft": 1})
    nodes, shape = KERNELS[name]
    return model(nodes, {"x": [3, 8]}, constants=SCALES | {"w": signed(*shape)}, domains={"com.microsoft": 1})


@pytest.mark.parametrize("name", [*KERNELS, *CONVS, "QAttention"])
def test_the_same_without_signed_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = small(name)
    assert (proof.exact_products(proto) is proto) != runtime.saturates()
    monkeypatch.setattr(runtime, "saturates", lambda: True)
    other = proof.exact_products(proto)
    assert not proof.has_signed(other)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
    wanted, found = (Session(Model(p)).run(feeds)[0] for p in (proto, other))
    assert np.array_equal(wanted, found)


def test_signed_activations_stay() -> None:
    """Kernels that take both operands signed are exact, and there are none for signed activations and unsigned weights."""
    zeros = {"xz": np.array(3, np.int8)}
    nodes = KERNELS["QLinearMatMul"][0]
    proto = model(nodes, {"x": [3, 8]}, constants=SCALES | zeros | {"w": signed(8, 6)})
    assert not proof.has_signed(proto)


def test_weights_of_a_branch() -> None:
    """Weights that a branch reads from outside, and weights of its own."""
    text = """g (uint8[3,8] x, bool c) => (int32[3,6] y) <int8[8,6] w> {
        z = MatMulInteger(x, w)
        f = If(c) <
            then_branch = t () => (int32[3,6] o) { o = MatMulInteger(x, w) },
            else_branch = e () => (int32[3,6] p) <int8[8,6] v = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,
                1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24}> { p = MatMulInteger(x, v) }
        >
        y = Add(z, f)
    }"""
    proto = net(text, constants={"w": signed(8, 6)})
    other = proof.unsigned(proto)
    for taken in (True, False):
        feeds = {"x": RNG.integers(0, 256, (3, 8)).astype(np.uint8), "c": np.array(taken)}
        assert np.array_equal(*(Session(Model(p)).run(feeds)[0] for p in (proto, other)))


def test_prune_says_what_the_processor_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes = [
        QUANTIZE,
        node("MatMulInteger", "q a z", "i"),
        node("Cast", "i", "f", to=1),
        node("Mul", "f ws", "h"),
        node("DynamicQuantizeLinear", "h", "q2 s2 z2"),
        node("MatMulInteger", "q2 b z2", "j"),
        node("Cast", "j", "y", to=1),
    ]
    weights = {"a": signed(8, 32), "b": signed(32, 4)}
    proto = model(nodes, {"x": ["N", 8]}, constants={"ws": SCALES["ws"]} | weights)
    monkeypatch.setattr(runtime, "saturates", lambda: True)
    result = onnxprune.prune(proto, Budget("ratio", 0.5), output=tmp_path / "pruned.onnx")
    assert result.report.check.error < 1e-6
    assert any("no VNNI" in text for text in result.report.warnings)
    written = onnx.load(tmp_path / "pruned.onnx")
    assert {t.data_type for t in written.graph.initializer if t.dims} == {onnx.TensorProto.INT8}, (
        "the file stays as it is"
    )
