"""Quantized operators: each is its float namesake with a scale and a zero point beside every tensor.

    QLinearConv   y = quantize(conv(dequantize(x), dequantize(w)) + b)      w_scale, w_zero_point: one, or [M], one per kernel

Scales and zero points per channel are sliced with the channel; those of a whole tensor stay. In a quantized tensor zero is its
zero point, not 0: the masked original silences removed channels in the kernels that read them instead, whose weights become
*their* zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.groups.maps import Maps
from onnxprune.groups.observation import Array
from onnxprune.ops import attention
from onnxprune.ops.base import CostContext, Edit, MapContext, MaskEdit, Rule
from onnxprune.ops.conv import convolved, follow_groups
from onnxprune.ops.labelled import Operand, combine, named, operand, unnamed
from onnxprune.ops.movement import joined
from onnxprune.ops.pointwise import broadcast, encode, quantize


@dataclass(frozen=True)
class _Inputs:
    """Positions of the inputs of a contraction: operands, vectors along the rows of A or the columns of B, bias."""

    a: int
    b: int
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    zero: int | None = None  # the zero point of B
    other: int | None = None  # that of A


CONVS = {"QLinearConv": _Inputs(0, 3, (), (4, 5), 5, 2), "ConvInteger": _Inputs(0, 1, (), (3,), 3, 2)}
PRODUCTS = {
    "QLinearMatMul": _Inputs(0, 3, (1, 2), (4, 5), 5, 2),
    "MatMulInteger": _Inputs(0, 1, (2,), (3,), 3, 2),
    "MatMulInteger16": _Inputs(0, 1),
    "QGemm": _Inputs(0, 3, (), (4, 5, 6), 5, 2),
    "DynamicQuantizeMatMul": _Inputs(0, 1, (), (2, 3, 4), 3),
    "MatMulIntegerToFloat": _Inputs(0, 1, (2, 4), (3, 5, 6), 5, 4),
}


# ---------------------------------------------------------------- contractions


def quantized_conv(ctx: MapContext) -> list[Maps]:
    """QLinearConv, ConvInteger; `channels_last` for com.microsoft::QLinearConv."""
    where = CONVS[ctx.node.op]
    last = bool(ctx.attr("channels_last", 0))
    bias = 8 if ctx.node.op == "QLinearConv" else len(ctx.node.inputs)
    maps = convolved(ctx, where.b, bias, last)
    labels = tuple(str(a) for a in range(ctx.rank()))
    channel = labels[-1] if last else labels[1]
    return [_vectors(ctx, maps, labels, where.columns, channel)]


def _vectors(ctx: MapContext, maps: Maps, labels: tuple[str, ...], inputs: tuple[int, ...], label: str) -> Maps:
    """Tie what varies along one axis of the output; scalars and vectors of one entry do not."""
    result = Operand(labels, ctx.out_shape(), named(maps, labels))
    for i in inputs:
        if ctx.has(i) and prod(ctx.shape(i)) > 1:
            rank = ctx.rank(i)  # [N], or [.., 1, N]
            own = (*(f"v{a}" for a in range(rank - 1)), label)
            facets = combine(ctx, result, operand(ctx, i, own), labels, what=f"its input {i}")
            result = Operand(labels, ctx.out_shape(), facets)
    return unnamed(result.facets, labels)


def quantized_product(ctx: MapContext) -> list[Maps]:
    where = PRODUCTS[ctx.node.op]
    rank_a, rank_b = ctx.rank(where.a), ctx.rank(where.b)
    batch = tuple(f"b{x}" for x in range(max(rank_a, rank_b, 2) - 2))
    left = ("k", "m") if ctx.attr("transA", 0) else ("m", "k")
    right = ("n", "k") if ctx.attr("transB", 0) else ("k", "n")
    a = operand(ctx, where.a, ("k",) if rank_a == 1 else (*batch[len(batch) - rank_a + 2 :], *left))
    b = operand(ctx, where.b, ("k",) if rank_b == 1 else (*batch[len(batch) - rank_b + 2 :], *right))
    out = (*batch, *(("m",) if rank_a > 1 else ()), *(("n",) if rank_b > 1 else ()))
    maps = unnamed(combine(ctx, a, b, out, weight=True), out)
    if "n" in out:
        maps = _vectors(ctx, maps, out, where.columns, "n")
    for i in where.rows:
        if ctx.has(i) and prod(ctx.shape(i)) > 1:
            axis = out.index("m")
            for f in maps:
                if f.shape[axis] > 1:
                    ctx.pin([f], "quantizes row by row")
            ctx.pin(ctx.maps(i), "quantizes row by row") if not ctx.is_lazy(i) else None
    return [maps]


def silence(edit: MaskEdit) -> None:
    """What the node reads of removed units, and the kernels that compute them, become the zero point of its weights."""
    where = (CONVS | PRODUCTS)[edit.node.op]
    value = edit.constant(where.b)
    if value is None:
        return
    zero: Array = np.zeros((), value.dtype)
    if where.zero is not None and edit.has(where.zero):
        known = edit.constant(where.zero)
        if known is None:
            return
        zero = known.reshape(-1)
        if (
            zero.size > 1
        ):  # per output channel: the first axis of a kernel, the last of a matrix (the first if transposed)
            first = edit.node.op in CONVS or edit.attrs.get("transB", 0)
            zero = zero.reshape(-1, *[1] * (value.ndim - 1)) if first else zero
    edit.set_constant(where.b, np.where(edit.removed(where.b), zero.astype(value.dtype), value))


def kernel_places(op: str) -> list[tuple[int, int, int | None]]:
    """B, its zero point and that of A."""
    where = (CONVS | PRODUCTS)[op]
    return [] if where.zero is None else [(where.b, where.zero, where.other)]


def quantized_conv_macs(cost: CostContext) -> int:
    return _conv_macs(cost, 3)


def integer_conv_macs(cost: CostContext) -> int:
    return _conv_macs(cost, 1)


def _conv_macs(cost: CostContext, w: int) -> int:
    kernel, out = cost.inputs[w], cost.outputs[0]
    return 0 if kernel is None or out is None else prod(out) * prod(kernel[1:])


def product_macs(cost: CostContext) -> int:
    a, out = cost.inputs[0], cost.outputs[0]
    if not a or out is None:
        return 0
    return prod(out) * (a[-2] if cost.attrs.get("transA", 0) else a[-1])


def follow_kernel_groups(edit: Edit) -> None:
    """QLinearConv: the kernel is input 3."""
    if int(edit.attrs.get("group", 1)) > 1:
        channels = edit.new(0)[-1 if edit.attrs.get("channels_last", 0) else 1]
        edit.set_attr("group", channels // edit.new(3)[1])


# ---------------------------------------------------------------- the others


def dynamic_quantize(ctx: MapContext) -> list[Maps]:
    """DynamicQuantizeLinear: the range always contains 0, so that zeros in place of removed positions leave it alone."""
    return [ctx.maps(0), (), ()]


def quantized_unary(ctx: MapContext) -> list[Maps]:
    """QLinearSigmoid, QLinearLeakyRelu: X, its scale and zero point, those of the output."""
    return [ctx.maps(0)]


def quantized_binary(ctx: MapContext) -> list[Maps]:
    """QLinearAdd, QLinearMul: A and B are inputs 0 and 3."""
    return [broadcast(ctx, [0, 3])]


def quantized_where(ctx: MapContext) -> list[Maps]:
    return [broadcast(ctx, [0, 1, 4])]


def quantized_concat(ctx: MapContext) -> list[Maps]:
    """QLinearConcat(scale, zero point, then each input with its own)."""
    return [joined(ctx, [i for i in range(2, len(ctx.node.inputs), 3) if ctx.has(i)])]


def quantized_pool(ctx: MapContext) -> list[Maps]:
    rank = ctx.rank()
    spatial = range(1, rank - 1) if ctx.attr("channels_last", 0) else range(2, rank)
    return [ctx.flat_axes(ctx.maps(0), tuple(spatial))]


def quantized_softmax(ctx: MapContext) -> list[Maps]:
    axis = int(ctx.attr("axis", -1)) % ctx.rank()
    axes = (axis,) if int(ctx.attr("opset", 13)) >= 13 else tuple(range(axis, ctx.rank()))
    return [ctx.pin_axes(0, axes, f"looks along axis {axis} as a whole")]


def quantized_mean(ctx: MapContext) -> list[Maps]:
    """QLinearReduceMean: its rescaling would be lost in rounding, so the axis stays."""
    axes = tuple(a % ctx.rank() for a in ctx.attr("axes") or range(ctx.rank()))
    kept = ctx.pin_axes(0, axes, "takes a quantized mean over this axis")
    if ctx.attr("keepdims", 1):
        return [kept]
    return [tuple(f.squeeze(axes) for f in kept)]


# ---------------------------------------------------------------- attention


def quantized_attention(ctx: MapContext) -> list[Maps]:
    """QAttention(x, W, bias, x_scale, w_scale, mask, x_zero, w_zero, past): com.microsoft::Attention with 8-bit weights."""
    return attention.packed(ctx, 1, 2, past=8, bias=len(ctx.node.inputs), scales=(4, 7))


def silence_attention(edit: MaskEdit) -> None:
    attention.silence(edit, 2)
    value, zero = edit.constant(1), edit.constant(7) if edit.has(7) else None
    if value is not None:
        point = np.zeros((), value.dtype) if zero is None else zero
        edit.set_constant(1, np.where(edit.removed(1), point.astype(value.dtype), value))


RULES = [
    Rule(
        ("QLinearConv", "com.microsoft::QLinearConv"),
        "contraction",
        quantized_conv,
        adjust=follow_kernel_groups,
        macs=quantized_conv_macs,
        rounded=True,
        reference=silence,
        eight_bit=kernel_places,
    ),
    Rule(
        ("ConvInteger",),
        "contraction",
        quantized_conv,
        adjust=follow_groups,
        macs=integer_conv_macs,
        rounded=True,
        reference=silence,
        eight_bit=kernel_places,
    ),
    Rule(
        (
            "QLinearMatMul",
            "MatMulInteger",
            "com.microsoft::MatMulInteger16",
            "com.microsoft::QGemm",
            "com.microsoft::DynamicQuantizeMatMul",
            "com.microsoft::MatMulIntegerToFloat",
        ),
        "contraction",
        quantized_product,
        macs=product_macs,
        reference=silence,
        eight_bit=kernel_places,
    ),
    Rule(("DynamicQuantizeLinear",), "pointwise", dynamic_quantize, coded=True),
    Rule(("com.microsoft::QuantizeLinear",), "pointwise", quantize, coded=True, rounds=True),
    Rule(("com.microsoft::DequantizeLinear",), "pointwise", quantize, coded=True, encode=encode),
    Rule(("com.microsoft::QLinearSigmoid", "com.microsoft::QLinearLeakyRelu"), "pointwise", quantized_unary),
    Rule(("com.microsoft::QLinearAdd", "com.microsoft::QLinearMul"), "pointwise", quantized_binary),
    Rule(("com.microsoft::QLinearWhere",), "pointwise", quantized_where),
    Rule(("com.microsoft::QLinearConcat",), "movement", quantized_concat),
    Rule(("com.microsoft::QLinearAveragePool", "com.microsoft::QLinearGlobalAveragePool"), "pooling", quantized_pool),
    Rule(("com.microsoft::QLinearSoftmax",), "pins the axis", quantized_softmax),
    Rule(("com.microsoft::QLinearReduceMean",), "reduction (pins the axis)", quantized_mean),
    Rule(
        ("com.microsoft::QAttention",),
        "contraction",
        quantized_attention,
        adjust=attention.follow_packed,
        macs=attention.packed_macs,
        reference=silence_attention,
        eight_bit=lambda op: [(1, 7, 6)],
    ),
]
