"""Reductions, pooling, normalizations."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.harness import (
    TOLERANCE,
    Array,
    Case,
    Node,
    analysed,
    check,
    dense,
    found,
    image,
    model,
    node,
    oracle,
    weights,
    why,
)


def reduce_nodes(
    op: str, opset: int, axes: list[int], keepdims: int, from_opset: int
) -> tuple[list[object], dict[str, Array]]:
    if opset < from_opset:
        return [node(op, "h", "g", axes=axes, keepdims=keepdims)], {}
    return [node(op, "h ax", "g", keepdims=keepdims)], {"ax": np.array(axes)}


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[-1], [1], [1, 2]])
@pytest.mark.parametrize(
    ("op", "opset"), [("ReduceSum", 11), ("ReduceSum", 13), ("ReduceMean", 13), ("ReduceMean", 18)]
)
def test_sum_and_mean(op: str, opset: int, axes: list[int], keepdims: int) -> None:
    """Sums are exact, means are rescaled, over the pruned axis too."""
    between, c = reduce_nodes(op, opset, axes, keepdims, 13 if op == "ReduceSum" else 18)
    c |= weights(2, W=(4, 8))
    nodes = [node("MatMul", "x W", "h"), *between, node("Tanh", "g", "y")]
    if axes == [1]:
        c |= weights(3, V=(8, 3))
        nodes[-1] = node("MatMul", "g V", "y")
    proto = model(nodes, {"x": [2, 5, 4]}, constants=c, opset=opset)  # type: ignore[arg-type]
    check(Case(proto, {"MatMul 'h'": 8}))


@pytest.mark.parametrize(("op", "opset"), [("ReduceL1", 13), ("ReduceL2", 18), ("ReduceSumSquare", 18)])
def test_norms_are_sums(op: str, opset: int) -> None:
    between, c = reduce_nodes(op, opset, [-1], 0, 18)
    nodes = [node("MatMul", "x W", "h"), *between, node("Tanh", "g", "y")]
    proto = model(nodes, {"x": [2, 5, 4]}, constants=c | weights(2, W=(4, 8)), opset=opset)  # type: ignore[arg-type]
    check(Case(proto, {"MatMul 'h'": 8}))


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"])
def test_comparisons_keep_their_axis(op: str, opset: int) -> None:
    between, c = reduce_nodes(op, opset, [-1], 0, 18)
    first = node("MatMul", "x W", "h0") if op == "ReduceLogSum" else node("MatMul", "x W", "h")
    nodes = [first, *([node("Exp", "h0", "h")] if op == "ReduceLogSum" else []), *between, node("Tanh", "g", "y")]
    proto = model(nodes, {"x": [2, 5, 4]}, constants=c | weights(2, W=(4, 8)), opset=opset)  # type: ignore[arg-type]
    assert "compares positions" in why(check(Case(proto, {})))


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_other_axes_pass(op: str) -> None:
    between, c = reduce_nodes(op, 18, [1], 1, 18)
    check(Case(dense(between, c, opset=18), {"MatMul 'h'": 8}))  # type: ignore[arg-type]


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("opset", [1, 10, 11, 12, 19, 22])
def test_pool(op: str, opset: int) -> None:
    proto = image([node(op, "h", "g", kernel_shape=[2, 2], strides=[2, 2])], opset=max(7, opset))
    check(Case(proto, {"Conv 'h'": 8}))


@pytest.mark.parametrize("op", ["GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"])
def test_global_pool(op: str) -> None:
    check(Case(image([node(op, "h", "g")]), {"Conv 'h'": 8}))


def test_max_pool_with_indices_stays() -> None:
    nodes = [
        node("Conv", "x W", "h"),
        node("MaxPool", "h", "p i", kernel_shape=[2, 2], strides=[2, 2]),
        node("MaxUnpool", "p i", "g", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "g V", "y"),
    ]
    proto = model(nodes, {"x": [2, 3, 6, 6]}, constants=weights(1, W=(8, 3, 3, 3), V=(4, 8, 1, 1)))
    assert "count channels" in why(check(Case(proto, {})))


@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_keeps_its_axis(op: str, opset: int) -> None:
    assert "as a whole" in why(check(Case(dense([node(op, "h", "g", axis=2)], opset=opset), {})))


@pytest.mark.parametrize(("opset", "free"), [(11, False), (13, True)])
def test_softmax_over_another_axis(opset: int, free: bool) -> None:
    """Before opset 13, axis 1 means all axes from 1 on."""
    proto = dense([node("Softmax", "h", "g", axis=1)], opset=opset)
    check(Case(proto, {"MatMul 'h'": 8} if free else {}))


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_arg_keeps_its_axis(op: str) -> None:
    nodes = [node("MatMul", "x W", "h"), node(op, "h", "i", axis=-1), node("Cast", "i", "y", to=1)]
    proto = model(nodes, {"x": [2, 5, 4]}, constants=weights(2, W=(4, 8)))
    assert "as a whole" in why(check(Case(proto, {})))


@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_over_another_axis(keepdims: int) -> None:
    nodes = [node("ArgMax", "h", "i", axis=1, keepdims=keepdims), node("Cast", "i", "g", to=1)]
    check(Case(dense(nodes), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("opset", [1, 10, 11])
@pytest.mark.parametrize("axis", [1, 2])
def test_top_k(opset: int, axis: int) -> None:
    """k became an input in opset 10. Values and indices pass along other axes."""
    between = [node("TopK", "h", "g i", axis=axis, k=2)] if opset < 10 else [node("TopK", "h k", "g i", axis=axis)]
    c = {} if opset < 10 else {"k": np.array([2])}
    proto = dense(between, c, opset=max(opset, 7), out=2 if axis == 2 else 8)
    check(Case(proto, {"MatMul 'h'": 8} if axis == 1 else {}))


@pytest.mark.parametrize("axis", [1, -1])
def test_cumulative_sum(axis: int) -> None:
    proto = dense([node("CumSum", "h a", "g")], {"a": np.array(axis)})
    check(Case(proto, {"MatMul 'h'": 8} if axis == 1 else {}))


def test_local_response_keeps_its_channels() -> None:
    assert "neighbouring" in why(check(Case(image([node("LRN", "h", "g", size=3)]), {})))


@pytest.mark.parametrize("axis", [1, -1])
def test_lp_normalization(axis: int) -> None:
    check(Case(dense([node("LpNormalization", "h", "g", axis=axis, p=2)]), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("opset", [6, 22])
def test_instance_normalization(opset: int) -> None:
    """Channel by channel: exact."""
    proto = image([node("InstanceNormalization", "h s b", "g")], weights(3, s=(8,), b=(8,)), opset=max(opset, 7))
    check(Case(proto, {"Conv 'h'": 8}))


@pytest.mark.parametrize(("opset", "scales"), [(18, 4), (21, 8)])
def test_group_normalization(opset: int, scales: int) -> None:
    """4 groups of 2 channels leave as a whole; single channels only on request. Scales are per group (18) or per channel (21)."""
    proto = image(
        [node("GroupNormalization", "h s b", "g", num_groups=4)], weights(3, s=(scales,), b=(scales,)), opset=opset
    )
    for inexact, units in ((False, {"Conv 'h' rows": 4}), (True, {"Conv 'h'": 2, "Conv 'h' rows": 4})):
        analysis = analysed(proto, inexact)
        assert found(analysis) == units
        for seed, share in enumerate((0.3, 0.5, 0.75)):
            assert (
                oracle(analysis, share, seed, checker=opset > 18) <= TOLERANCE
            )  # the checker calls that of opset 18 deprecated
    assert "mean and variance" in why(analysed(proto))


def normed(x: str, y: str, groups: int) -> tuple[list[Node], dict[str, Array]]:
    """Group normalization as exporters write it without an operator for it."""
    nodes = [
        node("Reshape", f"{x} {y}split", f"{y}rows"),
        node("InstanceNormalization", f"{y}rows {y}one {y}zero", f"{y}norm"),
        node("Shape", x, f"{y}shape"),
        node("Reshape", f"{y}norm {y}shape", y),
    ]
    one, zero = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    return nodes, {f"{y}split": np.array([0, groups, -1], np.int64), f"{y}one": one, f"{y}zero": zero}


@pytest.mark.parametrize(
    ("before", "behind", "steps"),
    [(4, 4, 12), (4, 12, 4), (4, 6, 6), (6, 4, 8), (4, 8, 6), (4, 16, 3), (4, 48, 0)],
)
def test_groups_that_overlap_leave_together(before: int, behind: int, steps: int) -> None:
    """24 channels, normalised `before` at a time, are joined to 24 others, and all are normalised `behind` at a time.

    So do the skip connections of a U-Net, which stayed: of 4 and 6 at a time, the first 12 leave together, the last 6 alone.
    """
    first, own = normed("a", "h", 24 // before)
    last, more = normed("j", "n", 48 // behind)
    nodes = [
        node("Conv", "x A", "a", pads=[1, 1, 1, 1]),
        *first,
        node("Conv", "x B", "b", pads=[1, 1, 1, 1]),
        node("Concat", "h b", "j", axis=1),
        *last,
        node("Conv", "n V", "y"),
    ]
    constants = weights(7, A=(24, 3, 3, 3), B=(24, 3, 3, 3), V=(4, 48, 1, 1)) | own | more
    proto = model(nodes, {"x": [2, 3, 8, 8]}, constants=constants)
    analysis = analysed(proto)
    assert found(analysis) == ({"Conv 'a' rows": steps} if steps else {})
    for seed, share in enumerate((0.4, 0.5, 0.75) if steps else ()):
        assert oracle(analysis, share, seed) <= TOLERANCE


def test_normalization_of_every_head() -> None:
    """LayerNormalization of 4 heads of 3, each by itself: heads leave as a whole."""
    between = [
        node("Reshape", "h heads", "r"),
        node("LayerNormalization", "r s b", "n", axis=-1),
        node("Reshape", "n flat", "g"),
    ]
    c = weights(3, s=(3,), b=(3,)) | {"heads": np.array([2, 5, 4, 3]), "flat": np.array([2, 5, -1])}
    check(Case(dense(between, c, width=12), {"MatMul 'h' rows": 4}))


@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization(bias: bool) -> None:
    c = weights(3, s=(8,), b=(8,))
    proto = dense([node("LayerNormalization", "h s b" if bias else "h s", "g", axis=-1)], c)
    exact = analysed(proto)
    assert found(exact) == {}
    assert "mean and variance" in why(exact)
    check(Case(proto, {"MatMul 'h'": 8}, inexact=True))


def test_layer_normalization_over_another_axis() -> None:
    between = [
        node("Transpose", "h", "t", perm=[0, 2, 1]),
        node("LayerNormalization", "t s", "l", axis=-1),
        node("Transpose", "l", "g", perm=[0, 2, 1]),
    ]
    check(Case(dense(between, weights(3, s=(5,))), {"MatMul 'h'": 8}))


def test_mean_variance_normalization() -> None:
    check(Case(image([node("MeanVarianceNormalization", "h", "g", axes=[0, 2, 3])], opset=13), {"Conv 'h'": 8}))


def test_rms_normalization() -> None:
    check(Case(dense([node("RMSNormalization", "h s", "g")], weights(3, s=(8,)), opset=23), {"MatMul 'h'": 8}))


def test_rms_normalization_spelled_out() -> None:
    """x / sqrt(mean(x^2) + e) s: the mean is rescaled."""
    between = [
        node("Mul", "h h", "q"),
        node("ReduceMean", "q", "m", axes=[-1]),
        node("Add", "m e", "a"),
        node("Sqrt", "a", "r"),
        node("Div", "h r", "d"),
        node("Mul", "d s", "g"),
    ]
    check(Case(dense(between, weights(3, s=(8,)) | {"e": np.float32(0.01)}), {"MatMul 'h'": 8}))


def test_simplified_layer_normalization() -> None:
    """ONNX Runtime's RMS normalization, registered under ai.onnx, where `onnx.checker` does not know it."""
    proto = dense([node("SimplifiedLayerNormalization", "h s", "g")], weights(3, s=(8,)))
    assert found(analysed(proto)) == {"MatMul 'h'": 8}


def test_skip_simplified_layer_normalization() -> None:
    c = weights(3, s=(8,), U=(4, 8), b=(8,))
    between = [
        node("MatMul", "x U", "u"),
        node("SkipSimplifiedLayerNormalization", "h u s b", "n _ _ t", domain="com.microsoft"),
        node("Add", "n t", "g"),
    ]
    check(Case(dense(between, c, domains={"com.microsoft": 1}), {"MatMul 'h'": 8}))


def test_skip_layer_normalization() -> None:
    c = weights(4, s=(8,), z=(8,), U=(4, 8), b=(8,))
    between = [
        node("MatMul", "x U", "u"),
        node("SkipLayerNormalization", "h u s z b", "n _ _ t", domain="com.microsoft"),
        node("Add", "n t", "g"),
    ]
    proto = dense(between, c, domains={"com.microsoft": 1})
    assert found(analysed(proto)) == {}
    check(Case(proto, {"MatMul 'h'": 8}, inexact=True))


@pytest.mark.parametrize("by", ["Cast", "DequantizeLinear"])
@pytest.mark.parametrize(
    ("op", "opset", "scales"),
    [("InstanceNormalization", 21, 8), ("GroupNormalization", 18, 4), ("GroupNormalization", 21, 8)],
)
def test_normalization_with_decoded_scales(by: str, op: str, opset: int, scales: int) -> None:
    """The masked original normalises with the same numbers, though none of them is stored as it is."""
    c = weights(3, s0=(scales,), b0=(scales,))
    if by == "Cast":
        c = {k: v.astype(np.float16) for k, v in c.items()}
        decoded = [node("Cast", f"{n}0", n, to=1) for n in "sb"]
    else:
        c = {k: np.rint(v * 20).astype(np.int8) for k, v in c.items()} | {"u": np.array(0.05, np.float32)}
        decoded = [node("DequantizeLinear", f"{n}0 u", n) for n in "sb"]
    attributes = {"num_groups": 4} if op == "GroupNormalization" else {}
    proto = image([*decoded, node(op, "h s b", "g", **attributes)], c, opset=opset)
    analysis = analysed(proto)
    assert found(analysis)
    for seed, share in enumerate((0.3, 0.5, 0.75)):
        assert oracle(analysis, share, seed, checker=opset > 18) <= TOLERANCE
