"""Pointwise operators: operands are tied position by position, with numpy broadcasting.

A constant along a pruned axis (a bias, a scale, a position table) is sliced with it.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from onnxprune.groups.maps import Facet, Maps, per_axis, varying
from onnxprune.groups.observation import Array
from onnxprune.groups.units import Ids
from onnxprune.ops.base import IdleContext, MapContext, Mixing, Rule
from onnxprune.ops.labelled import Operand, combine, named, operand, unnamed

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp Gelu HardSigmoid "
    "HardSwish LeakyRelu Log Mish Reciprocal Relu Selu Shrink Sigmoid Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu "
    "com.microsoft::FastGelu com.microsoft::Gelu com.microsoft::QuickGelu com.microsoft::BiasGelu"
).split()
NARY = "BitShift Mod Pow PRelu Where".split()
WHOLE = (
    "And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Equal Floor Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual "
    "Not Or Round Sign Xor"
).split()


FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
WIDE = {"float16", "bfloat16", "float32", "float64"}
RANDOM = "draws random numbers position by position: removing some would change the others"
SLICED = "per-axis scales are sliced too"


def broadcast(ctx: MapContext, inputs: list[int]) -> Maps:
    """Maps of the broadcast of `inputs`, which may be one."""
    rank = len(ctx.out_shape())
    labels = tuple(str(a) for a in range(rank))
    distinct: dict[str, int] = {}
    for i in inputs:
        if ctx.has(i):
            distinct.setdefault(ctx.node.inputs[i], i)
    order = sorted(distinct.values(), key=ctx.is_lazy)  # activations first: constants follow them
    result: Operand | None = None
    for i in order:
        own = labels[rank - ctx.rank(i) :]
        if result is None and (len(order) == 1 or not ctx.is_lazy(i)):
            result = Operand(own, ctx.shape(i), named(ctx.maps(i), own))
            continue
        other = operand(ctx, i, own)
        if result is None:
            result = Operand(own, ctx.shape(i), named(ctx.maps(i), own))
            continue
        what = f"input {i} ('{ctx.node.inputs[i]}')"
        facets = combine(ctx, result, other, labels, what=what)
        sizes = tuple(max(result.size(x), other.size(x)) for x in labels)
        result = Operand(labels, sizes, facets)
    return unnamed(result.facets, labels) if result else ()


def unary(ctx: MapContext) -> list[Maps]:
    return [broadcast(ctx, list(range(len(ctx.node.inputs))))]


def first_input(ctx: MapContext) -> list[Maps]:
    """The other inputs are scalars (bounds, ratios, targets of a cast)."""
    return [ctx.pass_through(), *[() for _ in ctx.node.outputs[1:]]]


def dropout(ctx: MapContext) -> list[Maps]:
    """Nothing happens at inference; in training, a mask is drawn position by position."""
    training = ctx.value(2)
    if ctx.has(2) and (training is None or training.any()):
        ctx.pin(ctx.maps(0), RANDOM)
        return ctx.nothing()
    maps = ctx.pass_through()
    return [maps for _ in ctx.node.outputs]


def quantize(ctx: MapContext) -> list[Maps]:
    """(De)QuantizeLinear: scale and zero point are scalars or vectors along `axis`."""
    rank = ctx.rank()
    labels = tuple(str(a) for a in range(rank))
    if ctx.is_lazy(0) and not ctx.offers(0):  # a bias of 32-bit integers: what is dequantized is no index
        ctx.give(0, per_axis(ctx.shape(0), lambda n: ctx.units.issue(n, str(ctx.node))))
    if ctx.attr("block_size", 0):
        return [in_blocks(ctx, ctx.axis(1), int(ctx.attr("block_size")))]
    result = Operand(labels, ctx.shape(0), named(ctx.maps(0), labels))
    for i in (1, 2):
        if ctx.has(i) and ctx.rank(i) == 1 and ctx.shape(i)[0] > 1:
            vector = operand(ctx, i, (labels[ctx.axis(1)],))
            result = Operand(labels, ctx.shape(0), combine(ctx, result, vector, labels, what=f"its input {i}"))
    return [unnamed(result.facets, labels)]


def in_blocks(ctx: MapContext, axis: int, size: int) -> Maps:
    """Scales and zero points stand for `size` positions along `axis` each: whole blocks go, with their scales."""
    maps, whole = ctx.maps(0), ctx.shape(0)[axis]
    tables = [i for i in (1, 2) if ctx.has(i)]
    along = [f for f in maps if f.shape[axis] > 1]
    others = [f for f in maps if f.shape[axis] == 1]
    reason = f"quantizes blocks of {size} along axis {axis} (of {whole})"
    if not all(ctx.is_lazy(i) for i in tables):
        for i in (0, *tables):
            ctx.pin(ctx.maps(i), f"{reason}, with scales that are computed")
        return maps
    firsts: list[Facet] = []
    if whole % size or any(varying(f) != (axis,) for f in along):
        ctx.pin(along, reason)
    else:
        side = [whole // size if a == axis else 1 for a in range(ctx.rank())]
        firsts = [tie_blocks(ctx, f.ravel(), size).reshape(side) for f in along]
    for i in tables:
        ctx.give(i, [*firsts, *others])
    return maps


def tie_blocks(ctx: MapContext, ids: Ids, size: int) -> Ids:
    """Positions of one block go together; the first unit of each block."""
    blocks = ids.reshape(-1, size)
    ctx.units.tie(blocks[:, :1], blocks)
    return blocks[:, 0]


def unchanged(attrs: dict[str, Any], constants: list[Array]) -> Array:
    """The step of what gives its input back at inference."""
    return np.ones(())


def encode(attrs: dict[str, Any], value: Array, inputs: list[Array]) -> Array | None:
    """Codes for DequantizeLinear: round(value / scale) + zero point, within the range of the codes' type."""
    codes, scale = inputs[:2]
    is_whole = codes.dtype.kind in "iu" or codes.dtype.name in ("int4", "uint4")
    if not is_whole or codes.shape != value.shape or not (scale != 0).all():
        return None
    axis, block = int(attrs.get("axis", 1)), int(attrs.get("block_size") or 0)
    if block and scale.ndim != value.ndim:
        return None

    def spread(table: Array) -> Array:
        if block:
            return np.repeat(table.astype(np.float64), block, axis).take(range(value.shape[axis]), axis)
        side = [1] * value.ndim
        if table.size > 1:
            side[axis] = table.size
        return table.astype(np.float64).reshape(side)

    found = np.rint(value / spread(scale)) + (spread(inputs[2]) if len(inputs) > 2 else 0.0)
    limits = ml_dtypes.iinfo(codes.dtype)  # type: ignore[no-untyped-call]
    return np.clip(found, limits.min, limits.max).astype(codes.dtype)


def same_value(attrs: dict[str, Any], value: Array, inputs: list[Array]) -> Array:
    return value


def as_stored(attrs: dict[str, Any], value: Array, inputs: list[Array]) -> Array | None:
    """A Cast: the value in the type of what is stored, if that holds numbers as large."""
    stored = inputs[0].dtype
    if stored.name not in WIDE or attrs.get("to") not in FLOATS:
        return None
    with np.errstate(over="ignore"):
        found = np.asarray(value).astype(stored)
    return found if np.isfinite(found.astype(np.float64)).all() else None


def always(ctx: IdleContext) -> bool:
    return True


def of_one(ctx: IdleContext) -> bool:
    """The sum, the mean, the largest of one tensor; a Concat of one."""
    return len(ctx.inputs) == 1


def is_inference(ctx: IdleContext) -> bool:
    """Dropout does nothing unless it trains."""
    if ctx.opset < 7:
        return bool(ctx.attrs.get("is_test", 0))
    return not ctx.has(2) or ctx.is_all(2, 0)


def has_type(ctx: IdleContext) -> bool:
    """A Cast to the type that its input has."""
    return bool(ctx.kind) and ctx.kind == ctx.attrs.get("to")


def cast_mixing(attrs: dict[str, Any]) -> Mixing | None:
    return "sum" if attrs.get("to") in FLOATS else None


def casts_to_whole(attrs: dict[str, Any]) -> bool:
    return helper.tensor_dtype_to_np_dtype(int(attrs["to"])).kind in "iub"


RULES = [
    Rule(("Identity",), "pointwise", unary, alias=True, step=unchanged, idle=always, mixing="copy", encode=same_value),
    Rule(("Cast",), "pointwise", unary, idle=has_type, mixing=cast_mixing, encode=as_stored, whole=casts_to_whole),
    Rule(tuple(UNARY), "pointwise", unary),
    Rule(("Max", "Min"), "pointwise", unary, idle=of_one),
    Rule(("Mean", "Sum"), "pointwise", unary, idle=of_one, mixing="sum"),
    Rule(("Neg", "Sub"), "pointwise", unary, mixing="sum"),
    Rule(("Div", "Mul"), "pointwise", unary, mixing="scale"),
    Rule(tuple(NARY), "pointwise", unary),
    Rule(tuple(WHOLE), "pointwise", unary, whole=True),
    Rule(("Clip", "CastLike"), "pointwise", first_input, params=(1, 2)),
    Rule(
        ("Dropout",), "pointwise", dropout, params=(1, 2), step=unchanged, idle=is_inference, random=True, mixing="sum"
    ),
    Rule(("Add",), "pointwise", unary, adds=True, mixing="sum"),
    Rule(("QuantizeLinear",), "pointwise", quantize, note=SLICED, coded=True, rounds=True),
    Rule(("DequantizeLinear",), "pointwise", quantize, note=SLICED, coded=True, encode=encode),
]
