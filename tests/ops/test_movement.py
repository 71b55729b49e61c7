"""Data movement: the operator acts on the index map itself."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.choose.allocate import allocate
from onnxprune.choose.budget import Budget
from onnxprune.cut.rewrite import rewrite
from tests.ops.harness import Array, Case, analysed, check, dense, image, model, node, weights, why


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


# ---------------------------------------------------------------- same elements, other shape


@pytest.mark.parametrize("target", [(2, 5, 2, 4), (2, 5, 2, -1), (0, 0, 2, 4), (0, 0, -1, 4)])
@pytest.mark.parametrize("opset", [5, 13, 14, 21])
def test_heads_apart_and_together(target: tuple[int, ...], opset: int) -> None:
    """A reshape to 2 heads of 4 and back leaves rows of a box: 4 steps, each one position of either head."""
    between = [node("Reshape", "h s", "r"), node("Relu", "r", "q"), node("Reshape", "q t", "g")]
    check(Case(dense(between, {"s": ints(*target), "t": ints(2, 5, -1)}, opset=max(7, opset)), {"MatMul 'h'": 4}))


@pytest.mark.parametrize("keep", [0, 8])
def test_reshape_with_explicit_width(keep: int) -> None:
    """The pruned size stands in the target itself, or is a 0."""
    between = [node("Reshape", "h s", "r"), node("Reshape", "r t", "g")]
    check(Case(dense(between, {"s": ints(0, 0, keep), "t": ints(2, 5, 8)}), {"MatMul 'h'": 8}))


def test_reshape_by_computed_shape() -> None:
    """[B*T, 8] from Shape, Gather, Mul, Concat, as exporters write it; the width is an explicit 8."""
    nodes = [
        node("MatMul", "x W", "h"),
        node("Shape", "h", "s"),
        node("Gather", "s i0", "b"),
        node("Gather", "s i1", "t"),
        node("Gather", "s i2", "d"),
        node("Mul", "b t", "bt"),
        node("Concat", "bt d", "target", axis=0),
        node("Reshape", "h target", "g"),
        node("MatMul", "g V", "y"),
    ]
    c = weights(1, W=(4, 8), V=(8, 3)) | {"i0": ints(0), "i1": ints(1), "i2": ints(2)}
    check(Case(model(nodes, {"x": ["B", "T", 4]}, constants=c), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int) -> None:
    """Any axis, and back."""
    proto = image([node("Flatten", "h", "f", axis=axis), node("Reshape", "f s", "g")], {"s": ints(2, -1, 8, 8)})
    check(Case(proto, {"Conv 'h'": 8}))


def test_flatten_then_gemm() -> None:
    nodes = [node("Conv", "x W", "h"), node("Flatten", "h", "f"), node("Gemm", "f V b", "y", transB=1)]
    c = weights(1, W=(8, 3, 3, 3), V=(5, 8 * 36), b=(5,))
    check(Case(model(nodes, {"x": ["B", 3, 8, 8]}, constants=c), {"Conv 'h'": 8}))


@pytest.mark.parametrize("opset", [11, 12, 13, 21])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    """Axes became inputs in opset 13."""
    if opset < 13:
        between, c = [node("Unsqueeze", "h", "u", axes=[1]), node("Squeeze", "u", "g", axes=[1])], {}
    else:
        between, c = [node("Unsqueeze", "h a", "u"), node("Squeeze", "u a", "g")], {"a": ints(1)}
    check(Case(dense(between, c, opset=opset), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_of_all_ones(opset: int) -> None:
    """Without axes: a width of 2 cut down to 1 must not be squeezed away."""
    nodes = [
        node("MatMul", "x W", "h"),
        node("Unsqueeze", "h", "u", axes=[0]) if opset < 13 else node("Unsqueeze", "h a", "u"),
        node("Squeeze", "u", "g"),
        node("MatMul", "g V", "y"),
    ]
    c = weights(1, W=(4, 2), V=(2, 3)) | ({"a": ints(0)} if opset >= 13 else {})
    check_two(model(nodes, {"x": [3, 5, 4]}, constants=c, opset=opset))


def check_two(proto: object) -> None:
    """Two units, of which one goes."""
    from tests.ops.harness import analysed, found, oracle

    analysis = analysed(proto)  # type: ignore[arg-type]
    assert found(analysis) == {"MatMul 'h'": 2}
    assert oracle(analysis, 0.5, 0) <= 1e-4


@pytest.mark.parametrize("perm", [None, [2, 1, 0], [0, 2, 1]])
def test_transpose(perm: list[int] | None) -> None:
    attributes = {} if perm is None else {"perm": perm}
    back = {} if perm is None else {"perm": list(np.argsort(perm))}
    between = [node("Transpose", "h", "t", **attributes), node("Tanh", "t", "u"), node("Transpose", "u", "g", **back)]
    check(Case(dense(between), {"MatMul 'h'": 8}))


def test_channels_last_and_back() -> None:
    between = [
        node("Transpose", "h", "t", perm=[0, 2, 3, 1]),
        node("Add", "t b", "a"),
        node("Transpose", "a", "g", perm=[0, 3, 1, 2]),
    ]
    check(Case(image(between, weights(2, b=(8,))), {"Conv 'h'": 8}))


def test_channel_shuffle() -> None:
    """[2, 4] transposed to [4, 2] and split in half again: both rows of either view lose equally many."""
    between = [
        node("Reshape", "h s", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t f", "g"),
    ]
    check(Case(image(between, {"s": ints(2, 2, 4, 8, 8), "f": ints(2, 8, 8, 8)}), {"Conv 'h'": 4}))


# ---------------------------------------------------------------- parts and joins


@pytest.mark.parametrize("opset", [2, 11, 13, 18])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 6), None])
def test_split(opset: int, sizes: tuple[int, ...] | None) -> None:
    """Sizes are an attribute, an input from opset 13, or a number of parts from 18. Equal halves multiplied are tied."""
    attributes: dict[str, object] = {"axis": 2}
    c: dict[str, Array] = {}
    inputs = "h"
    if sizes and opset < 13:
        attributes["split"] = list(sizes)
    elif sizes:
        c["z"], inputs = ints(*sizes), "h z"
    elif opset >= 18:
        attributes["num_outputs"] = 2
    split = node("Split", inputs, "a b", **attributes)
    if sizes == (2, 6):
        between, expected = [split, node("Concat", "b a", "g", axis=2)], {"MatMul 'h'": 8}
        proto = dense(between, c, opset=max(opset, 7))
    else:
        between, expected = [split, node("Mul", "a b", "g")], {"MatMul 'h'": 4}
        proto = dense(between, c, opset=max(opset, 7), out=4)
    check(Case(proto, expected))


@pytest.mark.parametrize("opset", [1, 9, 10, 11, 13])
@pytest.mark.parametrize("bounds", [(0, 4), (4, 8), (-4, 2**40), (2, -2)])
def test_slice_halves(opset: int, bounds: tuple[int, int]) -> None:
    """Bounds are attributes before opset 10. The other part is read by a second product."""
    if opset < 10:
        between, c = [node("Slice", "h", "g", starts=[bounds[0]], ends=[bounds[1]], axes=[2])], {}
    else:
        between, c = [node("Slice", "h s e a", "g")], {"s": ints(bounds[0]), "e": ints(bounds[1]), "a": ints(2)}
    c |= weights(2, U=(8, 3))
    proto = dense([*between, node("MatMul", "h U", "z")], c, opset=max(opset, 7), out=4)
    proto.graph.output.append(type(proto.graph.output[0])(name="z"))
    proto.graph.output[-1].CopyFrom(proto.graph.output[0])
    proto.graph.output[-1].name = "z"
    check(Case(proto, {"MatMul 'h'": 8}))


FAR = 2**40


@pytest.mark.parametrize("bounds", [(0, 8, 2), (1, FAR, 3), (-1, -FAR, -1), (6, -FAR, -2), (6, 0, -3)])
def test_slice_with_steps(bounds: tuple[int, int, int]) -> None:
    """Every n-th position, forwards and backwards: no matter which positions go, the slice takes those that stay."""
    c = {"s": ints(bounds[0]), "e": ints(bounds[1]), "a": ints(-1), "t": ints(bounds[2])}
    taken = len(range(8)[slice(*bounds)])
    check(Case(dense([node("Slice", "h s e a t", "g")], c, out=taken), {"MatMul 'h'": 8}))


def test_slice_with_steps_on_one_of_two_axes() -> None:
    """Every other channel of a window of space: first and last column cut off."""
    c = {"s": ints(1, 1), "e": ints(7, FAR), "a": ints(3, 1), "t": ints(1, 2)}
    check(Case(image([node("Slice", "h s e a t", "g")], c, out=4), {"Conv 'h'": 8}))


def test_flipped_channels_stay_a_slice() -> None:
    c = {"s": ints(-1), "e": ints(-FAR), "a": ints(-1), "t": ints(-1)}
    analysis = analysed(dense([node("Slice", "h s e a t", "g")], c))
    removed = allocate(analysis, np.arange(analysis.solution.count, dtype=float), Budget("ratio", 0.5), 1).removed
    assert [n.op_type for n in rewrite(analysis, removed).graph.node] == ["MatMul", "Slice", "MatMul"]


def test_every_other_position_of_two_heads() -> None:
    """Even and odd positions of 2 heads of 8 are cut apart: an offset of either leaves both heads, or a head goes."""
    between = [
        node("Reshape", "h heads", "r"),
        node("Slice", "r zero far last two", "even"),
        node("Slice", "r one far last two", "odd"),
        node("Sigmoid", "even", "se"),
        node("Tanh", "odd", "to"),
        node("Concat", "se to", "j", axis=3),
        node("Reshape", "j flat", "g"),
    ]
    c = {"heads": ints(2, 5, 2, 8), "flat": ints(2, 5, -1), "zero": ints(0), "far": ints(FAR), "last": ints(-1)}
    c |= {"one": ints(1), "two": ints(2)}
    check(Case(dense(between, c, width=16), {"MatMul 'h'": 4, "MatMul 'h' rows": 2}))


ONE_OFFSET = {
    "Gather, scalar": [node("Gather", "r one", "e", axis=3), node("Unsqueeze", "e last", "u")],
    "Gather": [node("Gather", "r ones", "u", axis=3)],
    "Slice": [node("Slice", "r ones two last", "u")],
    "Slice with a step": [node("Slice", "r ones four last two", "u")],
    "Split": [node("Split", "r sizes", "p u q", axis=3)],
}


@pytest.mark.parametrize("form", ONE_OFFSET)
def test_one_offset_of_every_head(form: str) -> None:
    """4 heads of 3 times their own offset 1, which stays as long as its head does: 2 others may go (no part of a Split), or heads."""
    nodes = ONE_OFFSET[form]
    between = [node("Reshape", "h heads", "r"), *nodes, node("Mul", "r u", "m"), node("Reshape", "m flat", "g")]
    c = {"heads": ints(2, 5, 4, 3), "flat": ints(2, 5, -1), "sizes": ints(1, 1, 1), "one": np.array(1)}
    c |= {"ones": ints(1), "two": ints(2), "last": ints(-1)} | {"four": ints(4)}
    single = {} if form == "Split" else {"MatMul 'h'": 3}
    check(Case(dense(between, c, width=12), single | {"MatMul 'h' rows": 4}))


def test_slice_of_space_passes_channels() -> None:
    c = {"s": ints(1, 1), "e": ints(7, -1), "a": ints(2, 3), "t": ints(2, 1)}
    check(Case(image([node("Slice", "h s e a t", "g")], c), {"Conv 'h'": 8}))


@pytest.mark.parametrize("axis", [1, -3])
def test_concat(axis: int) -> None:
    """Two branches of 8 and 4 channels, and once more the first: 8 and 4 units."""
    c = weights(2, U=(4, 3, 3, 3))
    between = [
        node("Conv", "x U", "u", pads=[1, 1, 1, 1]),
        node("Concat", "h u h", "g", axis=axis),
    ]
    check(Case(image(between, c, out=20), {"Conv 'h'": 8, "Conv 'u'": 4}))


def test_concat_with_an_input_and_a_constant() -> None:
    """The positions of the graph input stay; the two of the constant can go as well, one has to stay."""
    c = weights(2, C=(2, 2, 8, 8))
    between = [node("Concat", "h x C", "g", axis=1)]
    check(Case(image(between, c, out=13), {"Conv 'h'": 8, "Concat 'g'": 2}))


def test_concat_along_another_axis_ties() -> None:
    c = weights(2, U=(8, 3, 3, 3))
    between = [node("Conv", "x U", "u", pads=[1, 1, 1, 1]), node("Concat", "h u", "g", axis=2)]
    check(Case(image(between, c), {"Conv 'h'": 8}))


@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize("index", [(3, 1, 4, 0), (0, 0, 1, 2), (-1, -2, -3, -4)])
def test_gather_with_constant_indices(opset: int, index: tuple[int, ...]) -> None:
    """Four of eight columns; the others are read by nobody, but are units as well. One twice: it goes twice."""
    between = [node("Gather", "h i", "g", axis=2)]
    check(Case(dense(between, {"i": ints(*index)}, opset=opset, out=4), {"MatMul 'h'": 8}))


def test_gather_picks_parts_of_a_packed_projection() -> None:
    """[B, T, 3, 2, 4]: q, k and v by scalar indices; 4 of each of 2 heads."""
    c = weights(3, P=(4, 24), O=(8, 3)) | {"s": ints(2, 5, 3, 2, 4), "f": ints(2, 5, 8)}
    c |= {f"i{k}": np.array(k) for k in range(3)}
    nodes = [
        node("MatMul", "x P", "p"),
        node("Reshape", "p s", "r"),
        node("Transpose", "r", "t", perm=[2, 0, 3, 1, 4]),
        *[node("Gather", f"t i{k}", n, axis=0) for k, n in enumerate("qkv")],
        node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "q kt", "z"),
        node("Softmax", "z", "a", axis=-1),
        node("MatMul", "a v", "o"),
        node("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
        node("Reshape", "ot f", "of"),
        node("MatMul", "of O", "y"),
    ]
    # q, k and v share one box [3, 2, 4], so that all three lose equally many: one group of 4 steps, and the 2 heads
    check(Case(model(nodes, {"x": [2, 5, 4]}, constants=c), {"MatMul 'p'": 4, "MatMul 'p' rows": 2}))


def test_embedding_lookup() -> None:
    """A table's columns can go, its rows are looked up by data."""
    c = weights(4, T=(10, 8), V=(8, 3))
    nodes = [node("Gather", "T i", "h"), node("MatMul", "h V", "y")]
    check(Case(model(nodes, {"i": ["B", "T"]}, constants=c, types={"i": "int64"}), {"Gather 'h'": 8}))


# ---------------------------------------------------------------- growing


@pytest.mark.parametrize("opset", [8, 13])
@pytest.mark.parametrize("shape", [(2, 2, 5, 8), (2, 1, 1, 1), (2, 5, 8)])
def test_expand(opset: int, shape: tuple[int, ...]) -> None:
    proto = dense([node("Expand", "h s", "g")], {"s": ints(*shape)}, opset=opset)
    check(Case(proto, {"MatMul 'h'": 8}))


def test_expand_of_heads() -> None:
    """Keys shared by two query heads: [B, T, 1, 4] expanded to 2 heads."""
    between = [
        node("Unsqueeze", "h a", "u"),
        node("Expand", "u s", "e"),
        node("Reshape", "e t", "g"),
    ]
    proto = dense(between, {"a": ints(2), "s": ints(2, 5, 2, 8), "t": ints(2, 5, 16)}, out=16)
    check(Case(proto, {"MatMul 'h'": 8}))


@pytest.mark.parametrize("repeats", [(1, 1, 2), (1, 3, 1), (2, 1, 1)])
def test_tile(repeats: tuple[int, ...]) -> None:
    proto = dense([node("Tile", "h r", "g")], {"r": ints(*repeats)}, out=8 * repeats[2])
    check(Case(proto, {"MatMul 'h'": 8}))


@pytest.mark.parametrize("opset", [2, 11, 13, 18, 19, 21])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_space(opset: int, mode: str) -> None:
    """Amounts are an attribute before opset 11; axes came with opset 18."""
    c: dict[str, Array] = {}
    pads = [0, 0, 1, 2, 0, 0, 2, 1]
    if opset < 11:
        between = [node("Pad", "h", "g", mode=mode, pads=pads)]
    elif opset < 18:
        between, c = [node("Pad", "h p", "g", mode=mode)], {"p": ints(*pads)}
    else:
        between, c = [node("Pad", "h p _ a", "g", mode=mode)], {"p": ints(1, 2, 2, 1), "a": ints(2, -1)}
    check(Case(image(between, c, opset=max(opset, 7)), {"Conv 'h'": 8}))


@pytest.mark.parametrize("opset", [2, 11, 13, 18])
def test_pad_channels(opset: int) -> None:
    """Zero channels before (1) and after (2): units of their own, which no weight offers."""
    c: dict[str, Array] = {}
    pads = [0, 1, 0, 0, 0, 2, 0, 0]
    if opset < 11:
        between = [node("Pad", "h", "g", pads=pads)]
    elif opset < 18:
        between, c = [node("Pad", "h p", "g")], {"p": ints(*pads)}
    else:
        between, c = [node("Pad", "h p _ a", "g")], {"p": ints(1, 2), "a": ints(1)}
    check(Case(image(between, c, opset=max(opset, 7), out=11), {"Conv 'h'": 8}))


@pytest.mark.parametrize(("before", "units"), [(0, {"MatMul 'h'": 7}), (1, {"MatMul 'h' rows": 4})])
def test_pad_heads(before: int, units: dict[str, int]) -> None:
    """Linear attention appends a one to every value, which sums up the weights: it leaves with its head only.

    Of the 6 values and the one of each head the values may leave. With one more in front, a step of values would have to be 7 of 8: heads leave.
    """
    between = [
        node("Reshape", "h heads", "r"),
        node("Pad", "r p one", "padded"),
        node("Slice", "padded s4 e4 ax", "values"),
        node("Slice", "padded s1 e1 ax", "total"),
        node("Div", "values total", "mean"),
        node("Reshape", "mean flat", "g"),
    ]
    c = {
        "heads": ints(2, 5, 4, 6),
        "p": ints(0, 0, 0, before, 0, 0, 0, 1),
        "one": np.array(1, np.float32),
        "s4": ints(before),
        "e4": ints(before + 6),
        "s1": ints(before + 6),
        "e1": ints(before + 7),
        "ax": ints(3),
        "flat": ints(2, 5, 24),
    }
    check(Case(dense(between, c, width=24), units))


def test_pad_channels_by_reflection_stays() -> None:
    proto = image([node("Pad", "h p", "g", mode="reflect")], {"p": ints(0, 1, 0, 0, 0, 2, 0, 0)}, out=11)
    assert "pads axis 1" in why(check(Case(proto, {})))


@pytest.mark.parametrize(
    ("opset", "form"),
    [(7, "scales"), (9, "scales"), (10, "scales"), (11, "scales"), (11, "sizes"), (13, "scales"), (13, "sizes")]
    + [(18, "scales"), (18, "sizes"), (18, "axes"), (19, "axes")],
)
def test_resize(opset: int, form: str) -> None:
    """Upsample until 9; scales or sizes, for all axes or (from 18) for some."""
    c: dict[str, Array] = {}
    scales = np.array([1, 1, 2, 2], np.float32)
    if opset < 9:
        between = [node("Upsample", "h", "g", scales=[1.0, 1.0, 2.0, 2.0])]
    elif opset == 9:
        between, c = [node("Upsample", "h s", "g")], {"s": scales}
    elif opset == 10:
        between, c = [node("Resize", "h s", "g")], {"s": scales}
    elif form == "scales":
        roi = {"roi": np.array([], np.float32)} if opset < 13 else {}
        between, c = [node("Resize", "h roi s" if roi else "h _ s", "g")], {"s": scales, **roi}
    elif form == "sizes":
        empty = {"roi": np.array([], np.float32), "no": np.array([], np.float32)} if opset < 13 else {}
        between = [node("Resize", "h roi no s" if empty else "h _ _ s", "g", mode="linear")]
        c = {"s": ints(2, 8, 16, 12), **empty}
    else:
        between, c = [node("Resize", "h _ _ s", "g", axes=[2, 3])], {"s": ints(16, 12)}
    check(Case(image(between, c, opset=opset), {"Conv 'h'": 8}))


def test_resize_of_channels_stays() -> None:
    proto = image([node("Resize", "h _ s", "g")], {"s": np.array([1, 2, 1, 1], np.float32)}, out=16)
    assert "interpolates" in why(check(Case(proto, {})))


@pytest.mark.parametrize("form", ["constant", "computed"])
def test_constant_of_shape(form: str) -> None:
    """A mask made to the size of the activation."""
    between = [node("ConstantOfShape", "s", "m"), node("Add", "h m", "g")]
    c = {"s": ints(2, 5, 8)}
    if form == "computed":
        between.insert(0, node("Shape", "h", "s"))
        c = {}
    check(Case(dense(between, c), {"MatMul 'h'": 8}))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("opset", [7, 11, 13])
def test_depth_to_space(mode: str, opset: int) -> None:
    """16 channels are 4 of 2x2 blocks. CRD came with opset 11."""
    if mode == "CRD" and opset < 11:
        pytest.skip("CRD came with opset 11")
    attributes = {"mode": mode} if opset >= 11 else {}
    between = [node("DepthToSpace", "h", "g", blocksize=2, **attributes)]
    check(Case(image(between, width=16, out=4, opset=opset), {"Conv 'h'": 4}))


def test_space_to_depth() -> None:
    check(Case(image([node("SpaceToDepth", "h", "g", blocksize=2)], out=32), {"Conv 'h'": 8}))
