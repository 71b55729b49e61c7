"""Positions computed from data; shapes; generators."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.harness import Case, check, dense, image, model, node, weights, why


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_gather_elements_keeps_its_axis() -> None:
    """torch.gather along time, one index per position: channels leave data, index and output together."""
    nodes = [node("GatherElements", "h i", "g", axis=1)]
    proto = dense(nodes, {"i": np.zeros((2, 5, 8), np.int64)})
    check(Case(proto, {"MatMul 'h'": 8}))


def test_gather_elements_along_the_channels() -> None:
    """torch.gather along the channels: they are looked up as a whole and stay."""
    nodes = [node("GatherElements", "h i", "g", axis=2)]
    proto = dense(nodes, {"i": np.zeros((2, 5, 8), np.int64)})
    assert "GatherElements" in why(check(Case(proto, {})))


@pytest.mark.parametrize("last", [1, 2])
def test_gather_nd(last: int) -> None:
    """Leading axes are indexed; the channels behind them pass."""
    index = np.zeros((2, 3, last), np.int64) if last == 2 else np.array([[1], [0]])
    proto = dense([node("GatherND", "h i", "g")], {"i": index})
    check(Case(proto, {"MatMul 'h'": 8}))


def test_gather_nd_of_constant_rows() -> None:
    """[heads + keys, N, S, d]: 4 heads and one row of keys, by number. 6 offsets leave all of them."""
    between = [
        node("Reshape", "h apart", "r"),
        node("Transpose", "r", "t", perm=[2, 0, 1, 3]),
        node("GatherND", "t heads", "q"),
        node("GatherND", "t keys", "k"),
        node("Mul", "q k", "m"),
        node("Transpose", "m", "u", perm=[1, 2, 0, 3]),
        node("Reshape", "u flat", "g"),
    ]
    c = {
        "apart": ints(2, 5, 5, 6),
        "heads": ints(0, 3, 1, 2)[:, None],
        "keys": ints(-1)[:, None],
        "flat": ints(2, 5, -1),
    }
    check(Case(dense(between, c, width=30, out=24), {"MatMul 'h'": 6}))


def test_gather_nd_reads_computed_positions() -> None:
    """What gives the positions keeps its axes."""
    between = [node("Cast", "h", "c", to=7), node("Clip", "c zero three", "i"), node("GatherND", "table i", "g")]
    c = weights(2, table=(4, 4, 4, 4, 4, 4, 4, 4, 8)) | {"zero": np.array(0), "three": np.array(3)}
    assert "reads positions" in why(check(Case(dense(between, c), {"GatherND 'g'": 8})))


@pytest.mark.parametrize("opset", [11, 13, 16, 18])
def test_scatter_nd(opset: int) -> None:
    """h with h[0] = u: the channels of both are tied."""
    c = weights(2, U=(4, 8)) | {"i": ints(0).reshape(1, 1), "z": ints(0)}
    between = [
        node("Gather", "x z", "x0", axis=0),
        node("MatMul", "x0 U", "u"),
        node("ScatterND", "h i u", "g"),
    ]
    check(Case(dense(between, c, opset=opset), {"MatMul 'h'": 8}))


def test_scatter_nd_of_zeros() -> None:
    """Swin's masks and KV caches: a constant that is written over."""
    c = weights(2, Z=(2, 5, 8)) | {"i": ints(0).reshape(1, 1), "z": ints(0)}
    between = [node("Gather", "h z", "u", axis=0), node("ScatterND", "Z i u", "g")]
    check(Case(dense(between, c), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("op", ["ScatterElements", "Scatter"])
def test_scatter_elements(op: str) -> None:
    """Rows are written by single numbers; features pass."""
    c = {"i": np.zeros((1, 1, 8), np.int64), "u": np.ones((1, 1, 8), np.float32)}
    proto = dense([node(op, "h i u", "g", axis=1)], c, opset=10 if op == "Scatter" else 17)
    check(Case(proto, {"MatMul 'h'": 8}))


def test_scatter_elements_along_the_features() -> None:
    c = {"i": np.zeros((1, 1, 8), np.int64), "u": np.ones((1, 1, 8), np.float32)}
    assert "single elements" in why(check(Case(dense([node("ScatterElements", "h i u", "g", axis=2)], c), {})))


def test_triangle_keeps_its_axes() -> None:
    assert "triangle" in why(check(Case(dense([node("Trilu", "h", "g")]), {})))


def test_grid_sample() -> None:
    c = {"w": (np.random.default_rng(1).random((2, 4, 4, 2)) * 2 - 1).astype(np.float32)}
    check(Case(image([node("GridSample", "h w", "g")], c), {"Conv 'h'": 8}))


def test_reverse_sequence() -> None:
    proto = dense([node("ReverseSequence", "h n", "g", batch_axis=0, time_axis=1)], {"n": ints(3, 5)})
    check(Case(proto, {"MatMul 'h'": 8}))


@pytest.mark.parametrize("op", ["RoiAlign", "MaxRoiPool"])
def test_regions(op: str) -> None:
    if op == "RoiAlign":
        c = {"r": np.array([[0, 0, 4, 4], [1, 1, 6, 6]], np.float32), "b": ints(0, 1)}
        between = [node(op, "h r b", "g", output_height=3, output_width=3)]
    else:
        c = {"r": np.array([[0, 0, 0, 4, 4], [1, 1, 1, 6, 6]], np.float32)}
        between = [node(op, "h r", "g", pooled_shape=[3, 3])]
    check(Case(image(between, c), {"Conv 'h'": 8}))


def test_gather_by_data_keeps_its_axis() -> None:
    c = weights(1, W=(4, 8), V=(3, 2))
    nodes = [
        node("MatMul", "x W", "h"),
        node("Gather", "h i", "g", axis=2),
        node("MatMul", "g V", "y"),
    ]
    proto = model(nodes, {"x": [2, 5, 4], "i": [3]}, constants=c, types={"i": "int64"})
    assert "computed from data" in why(check(Case(proto, {})))


@pytest.mark.parametrize("opset", [13, 15, 19])
def test_shape_keeps_the_scale(opset: int) -> None:
    """h / sqrt(d) with d from Shape: still the original d."""
    between = [
        node("Shape", "h", "s"),
        node("Gather", "s two", "d"),
        node("Cast", "d", "f", to=1),
        node("Sqrt", "f", "q"),
        node("Div", "h q", "g"),
    ]
    check(Case(dense(between, {"two": np.array(2)}, opset=opset), {"MatMul 'h'": 8}))


def test_shape_with_start_and_end() -> None:
    between = [
        node("Shape", "h", "d", start=-1),
        node("Cast", "d", "f", to=1),
        node("Div", "h f", "g"),
    ]
    check(Case(dense(between, opset=15), {"MatMul 'h'": 8}))


def test_size_keeps_the_count() -> None:
    between = [node("Size", "h", "n"), node("Cast", "n", "f", to=1), node("Div", "h f", "g")]
    check(Case(dense(between), {"MatMul 'h'": 8}))


def test_range_and_one_hot_have_no_units() -> None:
    """Positions made on the fly: added to activations, they hold the axis they lie along."""
    c = {
        "zero": np.array(0),
        "one": np.array(1),
        "five": np.array(5),
        "eight": np.array(8),
        "v": np.array([0, 1], np.float32),
    }
    between = [
        node("Range", "zero five one", "r"),
        node("OneHot", "r eight v", "o"),
        node("Add", "h o", "g"),
    ]
    assert "no removable index" in why(check(Case(dense(between, c), {})))


def test_range_along_time_passes() -> None:
    c = {"zero": np.array(0), "one": np.array(1), "five": np.array(5), "t": ints(5, 1)}
    between = [
        node("Range", "zero five one", "r"),
        node("Cast", "r", "f", to=1),
        node("Reshape", "f t", "p"),
        node("Add", "h p", "g"),
    ]
    check(Case(dense(between, c), {"MatMul 'h'": 8}))


def test_non_zero_has_no_units() -> None:
    """The positions of non-zero entries count the pruned axis: it stays."""
    nodes = [node("MatMul", "x W", "h"), node("NonZero", "h", "n"), node("Cast", "n", "y", to=1)]
    check(Case(model(nodes, {"x": [2, 5, 4]}, constants=weights(1, W=(4, 8))), {}))


def test_eye_like() -> None:
    nodes = [
        node("MatMul", "x W", "h"),
        node("EyeLike", "h", "e"),
        node("Add", "h e", "g"),
        node("MatMul", "g V", "y"),
    ]
    proto = model(nodes, {"x": [5, 4]}, constants=weights(1, W=(4, 8), V=(8, 3)))
    check(Case(proto, {}))
