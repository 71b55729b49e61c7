"""The remaining operators, and the list of all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune import Budget, ops, prune
from tests.ops.harness import Case, check, dense, image, model, node, weights, why


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_every_operator_of_the_standard_has_a_rule() -> None:
    """Of all domains and all versions, so that `onnxprune ops` can say how each is treated."""
    schemas = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    missing = sorted((d, n) for d, n in schemas if ops.rule_for(n, d) is ops.UNKNOWN)
    assert not missing


def test_no_operator_has_two_rules() -> None:
    names = [name for rule in ops.RULES for name in rule.ops]
    assert sorted(names) == sorted(set(names))
    assert all("::" in name or name.isidentifier() for name in names)


def test_an_unknown_operator_pins() -> None:
    """One that ONNX Runtime can run and nobody here has described."""
    assert ops.rule_for("NGramHashMapping", "com.microsoft") is ops.UNKNOWN
    assert ops.rule_for("Anything", "my.own") is ops.UNKNOWN


def test_center_crop_pad() -> None:
    """Space is cropped and padded; the width 8 of the channels stands in the target and follows."""
    between = [node("CenterCropPad", "h s", "g")]
    check(Case(image(between, {"s": ints(2, 8, 6, 10)}, opset=18), {"Conv 'h'": 8}))


def test_center_crop_pad_of_channels_stays() -> None:
    proto = image([node("CenterCropPad", "h s", "g", axes=[1])], {"s": ints(6)}, opset=18, out=6)
    assert "crops or pads" in why(check(Case(proto, {})))


def test_col2im() -> None:
    """18 rows are 2 channels of a 3x3 block; from 8 channels of 1x2 blocks, 8 units."""
    c = weights(2, P=(16, 3), V=(4, 8, 1, 1)) | {"is": ints(4, 6), "bs": ints(1, 2)}
    nodes = [
        node("MatMul", "P x", "h"),
        node("Col2Im", "h is bs", "g", strides=[1, 2]),
        node("Conv", "g V", "y"),
    ]
    check(Case(model(nodes, {"x": [2, 3, 12]}, constants=c, opset=18), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("axis", [1, 2, None])
def test_compress(axis: int | None) -> None:
    """Selects time steps (channels pass) or channels (they stay)."""
    attributes = {} if axis is None else {"axis": axis}
    n = {1: 5, 2: 8, None: 80}[axis]
    c = {"k": np.arange(n) % 2 == 0}
    between = [node("Compress", "h k", "g0", **attributes), node("Identity", "g0", "g")]
    if axis is None:
        between[-1] = node("Reshape", "g0 s", "g")
        c["s"] = ints(5, 8)
    proto = dense(between, c, out=4 if axis == 2 else 8)
    check(Case(proto, {"MatMul 'h'": 8} if axis == 1 else {}))


@pytest.mark.parametrize("opset", [17, 20])
def test_dft(opset: int) -> None:
    """Along time, for each channel: [B, T, C, 1] -> [B, T, C, 2]. Its axis became an input in opset 20."""
    c: dict[str, np.ndarray] = {"u": ints(3), "m": ints(3)}
    if opset == 17:
        dft = node("DFT", "e", "f", axis=1)
    else:
        dft, c["ax"] = node("DFT", "e _ ax", "f"), np.array(1)
    between = [
        node("Unsqueeze", "h u", "e"),
        dft,
        node("ReduceSum", "f m", "g", keepdims=0),
    ]
    check(Case(dense(between, c, opset=opset), {"MatMul 'h'": 8}))


def test_determinant() -> None:
    """[5, 8, 2, 2] -> [5, 8]"""
    c = weights(2, W=(4, 8), V=(8, 3)) | {"s": ints(1, 2, 2, 5, 8)}
    nodes = [
        node("MatMul", "x W", "h"),
        node("Reshape", "h s", "r"),
        node("Transpose", "r", "t", perm=[0, 3, 4, 1, 2]),
        node("Det", "t", "g"),
        node("MatMul", "g V", "y"),
    ]
    proto = model(nodes, {"x": [4, 5, 4]}, constants=c)
    check(Case(proto, {"MatMul 'h'": 8}))


def test_tensor_scatter() -> None:
    """A cache [B, T, C] that new keys are written into; the cache is made of zeros here."""
    between = [
        node("ConstantOfShape", "s", "cache"),
        node("TensorScatter", "cache h i", "g", axis=1),
    ]
    check(Case(dense(between, {"s": ints(2, 9, 8), "i": ints(0, 2)}, opset=24), {"MatMul 'h'": 8}))


def test_tensor_scatter_into_an_input_stays() -> None:
    c = weights(2, W=(4, 8), V=(8, 3)) | {"i": ints(0, 2)}
    nodes = [
        node("MatMul", "x W", "h"),
        node("TensorScatter", "cache h i", "g", axis=1),
        node("MatMul", "g V", "y"),
    ]
    proto = model(nodes, {"x": [2, 5, 4], "cache": [2, 9, 8]}, constants=c, opset=24)
    check(Case(proto, {}))


DRAWS = ["RandomNormalLike", "RandomUniformLike", "Bernoulli"]


@pytest.mark.parametrize("op", DRAWS)
@pytest.mark.parametrize("seed", [{}, {"seed": 1.0}], ids=["own", "seeded"])
def test_random_numbers_are_those_that_the_original_draws(op: str, seed: dict[str, float]) -> None:
    """For all positions, so that what stays gets the number that it got before."""
    proto = dense([node("Sigmoid", "h", "s"), node(op, "s", "r", **seed), node("Add", "h r", "g")])
    result = prune(proto, Budget("ratio", 0.5), round_to=1, recover="none", benchmark=False)
    assert [g.removed for g in result.plan.groups] == [4]
    assert result.report.check.error < 1e-6
    made = [n.op_type for n in result.model.graph.node]
    assert made.index("Gather") < made.index(op), "it draws for as many positions as before"
    again = prune(result.model, Budget("ratio", 0.5), round_to=1, recover="none", benchmark=False)
    assert again.report.check.error < 1e-6


@pytest.mark.parametrize("op", DRAWS)
def test_random_numbers_of_heads_stay(op: str) -> None:
    """A cut through several axes is no selection of positions of one."""
    nodes = [
        node("Reshape", "h t", "s"),
        node("Sigmoid", "s", "p"),
        node(op, "p", "r", seed=1.0),
        node("Add", "p r", "m"),
        node("Reshape", "m u", "g"),
    ]
    shapes = {"t": ints(2, 5, 2, 4), "u": ints(2, 5, 8)}
    assert "several axes" in why(check(Case(dense(nodes, shapes), {})))


def test_unique_stays() -> None:
    nodes = [node("MatMul", "x W", "h"), node("Unique", "h", "y")]
    proto = model(nodes, {"x": [2, 5, 4]}, constants=weights(1, W=(4, 8)))
    assert "compares all" in why(check(Case(proto, {})))


def test_non_max_suppression_stays() -> None:
    c = weights(1, W=(3, 4), S=(3, 2)) | {"n": ints(3)}
    nodes = [
        node("MatMul", "x W", "b"),
        node("MatMul", "x S", "s0"),
        node("Transpose", "s0", "s", perm=[0, 2, 1]),
        node("NonMaxSuppression", "b s n", "i"),
        node("Cast", "i", "y", to=1),
    ]
    check(Case(model(nodes, {"x": [1, 6, 3]}, constants=c), {}))


def test_losses_stay() -> None:
    c = weights(1, W=(4, 8)) | {"t": ints(1, 2)}
    nodes = [node("MatMul", "x W", "h"), node("SoftmaxCrossEntropyLoss", "h t", "y")]
    assert "all classes" in why(check(Case(model(nodes, {"x": [2, 4]}, constants=c), {})))


def test_short_time_transform_stays() -> None:
    c = weights(1, W=(4, 16)) | {"step": np.array(4), "n": np.array(8)}
    nodes = [node("MatMul", "x W", "h"), node("STFT", "h step _ n", "y")]
    check(Case(model(nodes, {"x": [2, 4]}, constants=c), {}))


def test_affine_grid_stays() -> None:
    c = weights(1, W=(4, 6), X=(2, 3, 8, 8)) | {"s": ints(2, 3, 4, 4), "r": ints(2, 2, 3)}
    nodes = [
        node("MatMul", "x W", "h"),
        node("Reshape", "h r", "t"),
        node("AffineGrid", "t s", "grid"),
        node("GridSample", "X grid", "y"),
    ]
    assert "makes a grid" in why(check(Case(model(nodes, {"x": [2, 4]}, constants=c, opset=20), {})))


def test_windows_are_sources() -> None:
    """A window over time multiplies all channels."""
    c = {"n": np.array(5), "t": ints(5, 1)}
    between = [
        node("HannWindow", "n", "w"),
        node("Reshape", "w t", "r"),
        node("Mul", "h r", "g"),
    ]
    check(Case(dense(between, c), {"MatMul 'h'": 8}))


@pytest.mark.parametrize(("op", "extra"), [("GridSample", "w"), ("Trilu", ""), ("Inverse", ""), ("ScaledSiLU", "")])
def test_microsoft_namesakes(op: str, extra: str) -> None:
    """The older com.microsoft copies of standard operators."""
    c = {"w": (np.random.default_rng(1).random((2, 8, 8, 2)) * 2 - 1).astype(np.float32)} if extra else {}
    between = [node(op, f"h {extra}".strip(), "g", domain="com.microsoft")]
    if op == "ScaledSiLU":
        c["w"] = np.float32(2)
        between = [node(op, "h w", "g", domain="com.microsoft")]
    check(Case(image(between, c, domains={"com.microsoft": 1}), {"Conv 'h'": 8}))


def test_microsoft_pad_and_expand_dims() -> None:
    c = {"p": ints(0, 0, 1, 2, 0, 0, 2, 1), "a": np.array(0, np.int32), "z": ints(0)}
    between = [
        node("Pad", "h p", "q", domain="com.microsoft"),
        node("ExpandDims", "q a", "e", domain="com.microsoft"),
        node("Squeeze", "e z", "g"),
    ]
    check(Case(image(between, c, domains={"com.microsoft": 1}), {"Conv 'h'": 8}))


def test_distances() -> None:
    """|a - b|^2 sums over the 8 hidden positions of both."""
    c = weights(1, W=(4, 8), U=(3, 8))
    nodes = [node("MatMul", "x W", "h"), node("CDist", "h U", "y", domain="com.microsoft", metric="sqeuclidean")]
    proto = model(nodes, {"x": [5, 4]}, constants=c, domains={"com.microsoft": 1})
    check(Case(proto, {"MatMul 'h'": 8}))
