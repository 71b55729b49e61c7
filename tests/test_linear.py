"""A node as a matrix product: X W + b, as the rules of `linear` unfold it, is what ONNX Runtime computes.

Seen red: taps without dilation, `before` taken from the end of `pads`, SAME_UPPER and SAME_LOWER exchanged, a kernel of
ConvTranspose that is not turned round, columns of channels ordered before those of taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import ops
from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.model.loaded import Model
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.layers import find_layers
from onnxprune.ops.linear import Linear, LinearContext
from tests.oracle import Array, net, session

TOLERANCE = 1e-4  # of the output's own scale: float32 sums in another order


@dataclass
class Case:
    """One node in ONNX Runtime: its unfolded form, operands and output."""

    linear: Linear | None
    operands: list[Array | None]
    y: Array

    def __post_init__(self) -> None:
        assert self.y.size

    @property
    def form(self) -> Linear:
        assert self.linear is not None
        return self.linear

    def operand(self, i: int | None) -> Array | None:
        return None if i is None or i >= len(self.operands) else self.operands[i]

    @property
    def x(self) -> Array:
        found = self.operands[self.form.x]
        assert found is not None
        return found

    @property
    def w(self) -> Array:
        found = self.operands[self.form.w]
        assert found is not None
        return found


def run(op: str, *operands: Array | None, fed: tuple[int, ...] = (0,), **attrs: Any) -> Case:
    """Operands at the positions `fed` are inputs of the graph, the others constants; None is skipped."""
    names = ["" if v is None else f"i{k}" for k, v in enumerate(operands)]
    inputs, constants, feeds = [], [], {}
    for k, (name, value) in enumerate(zip(names, operands, strict=True)):
        if value is None:
            continue
        if k in fed:
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
            feeds[name] = value
        else:
            constants.append(numpy_helper.from_array(value, name))
    node = helper.make_node(op, names, ["y"], **attrs)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    y = session(model).run(None, feeds)[0]
    rule = ops.rule_for(op, "").linear
    assert rule is not None
    shapes = tuple(None if v is None else v.shape for v in operands)
    stored = tuple(v is not None and k not in fed for k, v in enumerate(operands))
    read = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return Case(rule(LinearContext(read, shapes, stored)), list(operands), y)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def prove(case: Case) -> None:
    """Everything that a `Linear` promises."""
    form, x, w, y = case.form, case.x, case.w, case.y
    positions = form.positions(y.shape)
    channel_axis = 1 if hasattr(form, "kernel_shape") else -2 if form.left else -1  # type: ignore[union-attr]
    assert positions * y.shape[channel_axis] == y.size
    picks = np.sort(np.random.default_rng(1).permutation(positions)[: max(3, positions // 2)])
    rows, targets, matrix = form.rows(x, y.shape, picks), form.targets(y, picks), form.matrix(w)
    assert rows.shape == (form.groups, picks.size, matrix.shape[1]) and rows.dtype == x.dtype
    assert targets.shape == (form.groups, picks.size, matrix.shape[2])
    found = rows.astype(np.float64) @ matrix
    b = case.operand(form.b)
    if b is not None:
        bias = form.bias(b)
        assert bias is not None
        found = found + bias[:, None]
        assert np.allclose(form.stored_bias(bias), b.reshape(-1), rtol=1e-6)
    assert np.abs(found - targets).max() <= TOLERANCE * np.abs(y).max()
    # targets are y, position by position, group by group
    last = np.moveaxis(y, channel_axis, -1)
    for at, pick in enumerate(picks[:5]):
        place = np.unravel_index(pick, last.shape[:-1])
        assert np.array_equal(targets[:, at].reshape(-1), last[place])
    again = form.kernel(matrix)
    assert again.shape == w.shape and np.allclose(again, w, rtol=1e-6)
    assert form.channels.shape == matrix.shape[:2]
    axis = form.channel_axis % x.ndim
    assert set(form.channels.ravel()) == set(range(x.shape[axis]))
    for channel in range(x.shape[axis]):
        zeroed = x.copy()
        np.moveaxis(zeroed, axis, 0)[channel] = 0
        expected = np.where((form.channels == channel)[:, None], 0, rows)
        assert np.array_equal(form.rows(zeroed, y.shape, picks), expected)


# ---------------------------------------------------------------- convolutions

CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 4, 9), (6, 4, 3), {}),
    "1-D, dilated and padded": ((2, 4, 11), (5, 4, 3), {"dilations": [3], "pads": [2, 5], "strides": [2]}),
    "2-D": ((2, 3, 7, 6), (4, 3, 3, 2), {}),
    "2-D, one tap": ((2, 3, 5, 4), (4, 3, 1, 1), {"strides": [2, 2]}),
    "2-D, all different": (
        (2, 3, 11, 13),
        (4, 3, 3, 2),
        {"strides": [2, 3], "dilations": [2, 4], "pads": [1, 0, 2, 3]},
    ),
    "2-D, all padding in front": ((1, 3, 5, 5), (4, 3, 3, 3), {"pads": [2, 2, 0, 0]}),
    "2-D, all padding behind": ((1, 3, 5, 5), (4, 3, 3, 3), {"pads": [0, 0, 2, 2]}),
    "3-D": ((2, 2, 5, 4, 6), (3, 2, 3, 2, 3), {"pads": [1, 0, 2, 0, 1, 1], "strides": [2, 1, 2]}),
    "groups": ((2, 6, 6, 5), (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "groups of a 1-D": ((3, 4, 8), (4, 2, 4), {"group": 2, "dilations": [2], "pads": [3, 0]}),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"group": 5, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise with two outputs each": ((2, 3, 6, 6), (6, 1, 3, 2), {"group": 3}),
    "one group of one channel": ((2, 1, 6, 6), (4, 1, 3, 3), {"pads": [1, 1, 1, 1]}),
    "SAME_UPPER": ((2, 3, 7, 8), (4, 3, 2, 4), {"auto_pad": "SAME_UPPER"}),
    "SAME_LOWER": ((2, 3, 7, 8), (4, 3, 2, 4), {"auto_pad": "SAME_LOWER"}),
    "SAME_UPPER with strides": ((2, 3, 8, 7), (4, 3, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "SAME_LOWER with strides": ((2, 3, 8, 7), (4, 3, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "SAME_UPPER, stride above the kernel": ((2, 3, 8, 7), (4, 3, 1, 2), {"auto_pad": "SAME_UPPER", "strides": [3, 3]}),
    "SAME_LOWER, stride above the kernel": ((2, 3, 8, 7), (4, 3, 2, 1), {"auto_pad": "SAME_LOWER", "strides": [3, 3]}),
    "VALID": ((2, 3, 7, 8), (4, 3, 3, 2), {"auto_pad": "VALID", "strides": [2, 1]}),
    "NOTSET": ((2, 3, 7, 8), (4, 3, 3, 2), {"auto_pad": "NOTSET", "pads": [0, 1, 1, 0]}),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CONVS)
def test_conv(name: str, bias: bool) -> None:
    x, w, attrs = CONVS[name]
    prove(run("Conv", normal(*x), normal(*w), *([normal(w[0])] if bias else []), **attrs))


@pytest.mark.parametrize("seed", range(30))
def test_any_conv(seed: int) -> None:
    """Random rank, groups, strides, dilations and paddings."""
    rng = np.random.default_rng(seed)
    rank, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    kernel, strides, dilations = (rng.integers(1, 4, rank).tolist() for _ in range(3))
    pads = rng.integers(0, 3, 2 * rank).tolist()
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = [r + int(rng.integers(0, 5)) for r in reach]
    x = normal(int(rng.integers(1, 4)), group * int(rng.integers(1, 4)), *size, seed=seed)
    w = normal(group * int(rng.integers(1, 4)), x.shape[1] // group, *kernel, seed=seed)
    prove(run("Conv", x, w, normal(len(w)), group=group, strides=strides, dilations=dilations, pads=pads))


TRANSPOSES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 4, 5), (4, 3, 3), {}),
    "stride": ((2, 3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    "stride above the kernel": ((2, 3, 4, 3), (3, 4, 2, 1), {"strides": [3, 4]}),
    "overlap": ((2, 3, 4, 5), (3, 4, 4, 3), {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
    "padded unevenly": ((2, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 3], "pads": [0, 1, 2, 0]}),
    "padded beyond the kernel": ((2, 3, 6, 6), (3, 4, 2, 1), {"strides": [2, 2], "pads": [3, 2, 1, 2]}),
    "dilated": ((2, 3, 4, 5), (3, 4, 3, 2), {"strides": [2, 2], "dilations": [2, 3], "pads": [1, 0, 0, 2]}),
    "groups": ((2, 6, 4, 3), (6, 2, 3, 2), {"group": 3, "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    "depthwise": ((2, 4, 5), (4, 1, 4), {"group": 4, "strides": [2], "pads": [1, 1]}),
    "3-D": ((2, 2, 3, 2, 3), (2, 3, 2, 3, 2), {"strides": [2, 1, 2], "pads": [0, 1, 0, 1, 0, 1]}),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", TRANSPOSES)
def test_conv_transpose(name: str, bias: bool) -> None:
    x, w, attrs = TRANSPOSES[name]
    outputs = w[1] * attrs.get("group", 1)
    prove(run("ConvTranspose", normal(*x), normal(*w), *([normal(outputs)] if bias else []), **attrs))


# ---------------------------------------------------------------- products


@pytest.mark.parametrize("bias", [None, (4,), (1, 4), (1,)], ids=str)
@pytest.mark.parametrize("alpha, beta", [(1.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("b_turned", [0, 1])
@pytest.mark.parametrize("a_turned", [0, 1])
def test_gemm(a_turned: int, b_turned: int, alpha: float, beta: float, bias: tuple[int, ...] | None) -> None:
    x = normal(3, 7) if a_turned else normal(7, 3)
    w = normal(4, 3) if b_turned else normal(3, 4)
    more = [] if bias is None else [normal(*bias)]
    prove(run("Gemm", x, w, *more, transA=a_turned, transB=b_turned, alpha=alpha, beta=beta))


@pytest.mark.parametrize("shape", [(7, 3), (1, 3), (2, 5, 3), (2, 4, 5, 3)], ids=str)
def test_matmul_by_a_constant(shape: tuple[int, ...]) -> None:
    prove(run("MatMul", normal(*shape), normal(3, 4)))


@pytest.mark.parametrize("shape", [(3, 7), (3, 1), (2, 3, 5), (2, 4, 3, 5)], ids=str)
def test_matmul_of_a_constant(shape: tuple[int, ...]) -> None:
    prove(run("MatMul", normal(4, 3), normal(*shape), fed=(1,)))


# ---------------------------------------------------------------- what is declined

IMAGE, KERNEL = normal(2, 4, 6, 6), normal(4, 4, 3, 3)
DECLINED = {
    "kernel is computed": lambda: run("Conv", IMAGE, KERNEL, fed=(0, 1)),
    "bias is computed": lambda: run("Conv", IMAGE, KERNEL, normal(4), fed=(0, 2)),
    "kernel of a transposed convolution is computed": lambda: run("ConvTranspose", IMAGE, KERNEL, fed=(0, 1)),
    "bias of a transposed convolution is computed": lambda: run("ConvTranspose", IMAGE, KERNEL, normal(4), fed=(0, 2)),
    "output_padding": lambda: run("ConvTranspose", IMAGE, KERNEL, strides=[2, 2], output_padding=[1, 1]),
    "output_shape": lambda: run("ConvTranspose", IMAGE, KERNEL, strides=[2, 2], output_shape=[12, 12]),
    "transposed SAME_UPPER": lambda: run("ConvTranspose", IMAGE, KERNEL, strides=[2, 2], auto_pad="SAME_UPPER"),
    "both factors are constant": lambda: run("MatMul", normal(5, 3), normal(3, 4), fed=()),
    "no factor is constant": lambda: run("MatMul", normal(5, 3), normal(3, 4), fed=(0, 1)),
    "a batch of weights": lambda: run("MatMul", normal(2, 5, 3), normal(2, 3, 4)),
    "a batch of weights on the left": lambda: run("MatMul", normal(2, 5, 3), normal(2, 3, 4), fed=(1,)),
    "a vector of weights": lambda: run("MatMul", normal(5, 3), normal(3)),
    "a vector by weights": lambda: run("MatMul", normal(3), normal(3, 4)),
    "Gemm of a constant": lambda: run("Gemm", normal(5, 3), normal(3, 4), fed=(1,)),
    "Gemm by a computed matrix": lambda: run("Gemm", normal(5, 3), normal(3, 4), fed=(0, 1)),
    "Gemm with a computed bias": lambda: run("Gemm", normal(5, 3), normal(3, 4), normal(4), fed=(0, 2)),
    "Gemm with a bias per row": lambda: run("Gemm", normal(5, 3), normal(3, 4), normal(5, 1)),
    "Gemm with a bias matrix": lambda: run("Gemm", normal(5, 3), normal(3, 4), normal(5, 4)),
    "Gemm with a scalar bias": lambda: run("Gemm", normal(5, 3), normal(3, 4), np.array(2, np.float32)),
    "Gemm without its product": lambda: run("Gemm", normal(5, 3), normal(3, 4), normal(4), alpha=0.0),
    "Gemm without its bias": lambda: run("Gemm", normal(5, 3), normal(3, 4), normal(4), beta=0.0),
}


@pytest.mark.parametrize("name", DECLINED)
def test_declined(name: str) -> None:
    assert DECLINED[name]().linear is None


def test_a_skipped_bias_is_no_bias() -> None:
    case = run("Gemm", normal(5, 3), normal(3, 4), None)
    assert case.form.b == 2 and case.operand(2) is None
    prove(case)


# ---------------------------------------------------------------- layers of a model


def layers(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> list[LinearLayer]:
    steps = Stepwise(Model(model), [])
    inferred = onnx.shape_inference.infer_shapes(model)
    for v in [*inferred.graph.value_info, *model.graph.input, *inferred.graph.output]:
        shapes.setdefault(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim))
    for t in model.graph.initializer:
        shapes[t.name] = tuple(t.dims)
    return find_layers(model, shapes.get, steps.is_plain, steps.constant)


def test_layers_and_where_their_biases_are() -> None:
    model = net("""g (float[2,3,6] x) => (float[2,3,4] y, float[2,3,4] z)
        <float[6,4] w, float[4] b, float[4,4] v, float[1,1,4] c, float[3,1] rows, float[1] one, float[2,6,4] many> {
        h0 = MatMul(x, w)
        h1 = Add(h0, b)
        k0 = MatMul(h1, v)
        k1 = Add(c, k0)
        m0 = MatMul(k1, v)
        m1 = Add(m0, rows)
        n0 = MatMul(m1, v)
        n1 = Add(n0, n0)
        p0 = MatMul(n1, v)
        p1 = Add(p0, one)
        q0 = MatMul(p1, v)
        q1 = Mul(q0, b)
        z = MatMul(q1, v)
        y = Add(z, b)
        r = MatMul(x, many)
    }""")
    found = {x.key: x for x in layers(model, {})}
    assert list(found) == ["h0", "k0", "m0", "n0", "p0", "q0", "z"], "a batch of weights is no layer"
    assert {k: x.b for k, x in found.items() if x.b} == {"h0": "b", "k0": "c"}
    assert found["h0"].adder == ("h1", 1) and found["k0"].adder == ("k1", 0)
    assert all(found[k].adder is None for k in ("m0", "n0", "p0", "q0", "z")), "z is an output itself"


def test_a_bias_over_the_last_axis_is_none_of_weights_on_the_left() -> None:
    """y[m, n] = sum_k w[m, k] x[k, n]: its outputs are m, the bias runs over n."""
    model = net("""g (float[4,4] x) => (float[4,4] y) <float[4,4] w, float[4] b> {
        h = MatMul(w, x)
        y = Add(h, b)
    }""")
    (layer,) = layers(model, {})
    assert (layer.x, layer.w, layer.b, layer.adder) == ("x", "w", "", None)
