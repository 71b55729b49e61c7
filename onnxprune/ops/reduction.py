"""Reductions and normalizations over an axis that may be pruned.

Against the original with removed positions forced to zero:

- a *sum* (ReduceSum, L1, L2, squares) is exact: zeros add nothing;
- a *mean* divides by n where n' are left: the result is multiplied by n'/n, which makes it exact; RMS
  normalization is a mean of squares, corrected in its scale and epsilon:
  x / sqrt(n'/n m' + e) = sqrt(n/n') x / sqrt(m' + e n/n');
- LayerNorm subtracts a mean and sees n: removing positions is approximate, but removing all that one mean is taken over
  (a group of GroupNorm, a head that is normalised by itself) is exact;
- a maximum, a product, a softmax would see the zeros: the axis is pinned.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np

from onnxprune.groups.maps import Maps
from onnxprune.groups.observation import Array
from onnxprune.ops.base import Edit, IdleContext, MapContext, MaskEdit, Rule
from onnxprune.ops.labelled import Operand, combine, named, operand, reduce_labels, unnamed


def _axes(source: MapContext | Edit, rank: int) -> tuple[int, ...] | None:
    """The reduced axes; None where they are computed from data."""
    if source.has(1):
        value = source.value(1)
        if value is None:
            return None
        axes = [int(a) for a in value.ravel()]
    else:
        axes = list(source.attrs.get("axes") or [])
    if not axes:
        return () if source.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a % rank for a in axes))


def _reduced(ctx: MapContext, maps: Maps, axes: tuple[int, ...]) -> Maps:
    rank = ctx.rank()
    labels = tuple(str(a) for a in range(rank))
    out = tuple(x for a, x in enumerate(labels) if a not in axes)
    facets = reduce_labels(ctx, Operand(labels, ctx.shape(0), named(maps, labels)), out)
    return unnamed(facets, labels if ctx.attr("keepdims", 1) else out)


def reduce_sum(ctx: MapContext) -> list[Maps]:
    axes = _axes(ctx, ctx.rank())
    if axes is None:
        return [ctx.pin_axes(0, tuple(range(ctx.rank())), "reduces axes that are computed from data")]
    return [_reduced(ctx, ctx.maps(0), axes)]


def reduce_order(ctx: MapContext) -> list[Maps]:
    axes = _axes(ctx, ctx.rank())
    named_axes = tuple(range(ctx.rank())) if axes is None else axes
    kept = ctx.whole_axes(0, named_axes, f"compares positions along axis {', '.join(map(str, named_axes))}")
    return [_reduced(ctx, kept, axes or ())]


def rescale_mean(edit: Edit) -> None:
    """sum / n' times n'/n is sum / n."""
    axes = _axes(edit, len(edit.old(0))) or ()
    before, after = prod(edit.old(0)[a] for a in axes), prod(edit.new(0)[a] for a in axes)
    if before != after:
        edit.scale_output(after / before)


def pooled(ctx: MapContext) -> list[Maps]:
    """Pooling over space, channel by channel."""
    maps = ctx.flat_axes(ctx.maps(0), tuple(range(2, ctx.rank())))
    if len(ctx.node.outputs) > 1 and ctx.node.outputs[1]:
        ctx.pin(maps, "also gives flat positions, which count channels")
        return ctx.nothing()
    return [maps]


def single_axis(ctx: MapContext) -> list[Maps]:
    """Softmax, ArgMax, TopK, CumSum and their kin look along one axis as a whole."""
    axis = ctx.axis(-1 if ctx.opset >= 13 else 1)
    return [_along(ctx, (axis,), ctx.opset < 13)]


def _along(ctx: MapContext, axes: tuple[int, ...], to_the_end: bool = False) -> Maps:
    if to_the_end:  # before opset 13 the input is flattened to two dimensions at `axis`
        axes = tuple(range(axes[0], ctx.rank()))
    return ctx.whole_axes(0, axes, f"looks along axis {', '.join(map(str, axes))} as a whole")


def arg(ctx: MapContext) -> list[Maps]:
    maps = _along(ctx, (ctx.axis(0),))
    return [maps if ctx.attr("keepdims", 1) else tuple(f.squeeze(ctx.axis(0)) for f in maps)]


def top_k(ctx: MapContext) -> list[Maps]:
    maps = _along(ctx, (ctx.axis(-1),))
    return [maps, maps]


def cumulative(ctx: MapContext) -> list[Maps]:
    axis = ctx.value(1)
    axes = tuple(range(ctx.rank())) if axis is None else (int(axis.ravel()[0]) % ctx.rank(),)
    return [_along(ctx, axes)]


def lp_normalization(ctx: MapContext) -> list[Maps]:
    """x / |x|_p: a sum."""
    return [ctx.pass_through()]


def local_response(ctx: MapContext) -> list[Maps]:
    return [ctx.pin_axes(0, tuple(range(1, ctx.rank())), f"sums over {ctx.attr('size')} neighbouring channels")]


def _scaled(ctx: MapContext, maps: Maps, inputs: tuple[int, ...], labels_of: tuple[str, ...]) -> Maps:
    """Multiply or add vectors: `labels_of` names the axes of these inputs among "0", "1", …"""
    labels = tuple(str(a) for a in range(ctx.rank()))
    result = Operand(labels, ctx.shape(0), named(maps, labels))
    for i in inputs:
        if ctx.has(i):
            own = labels_of[len(labels_of) - ctx.rank(i) :] if ctx.rank(i) <= len(labels_of) else labels_of
            vector = operand(ctx, i, own)
            result = Operand(labels, ctx.shape(0), combine(ctx, result, vector, labels, what=f"its input {i}"))
    return unnamed(result.facets, labels)


def batch_norm(ctx: MapContext) -> list[Maps]:
    maps = _scaled(ctx, ctx.maps(0), (1, 2, 3, 4), ("1",)) if ctx.rank() > 1 else ctx.maps(0)
    return [maps, *[() for _ in ctx.node.outputs[1:]]]


def instance_norm(ctx: MapContext) -> list[Maps]:
    """Statistics per (batch, channel) over the other axes; group normalization is exported as this on a reshaped tensor."""
    for facet in ctx.maps(0):
        ctx.approximate(
            facet, tuple(range(2, ctx.rank())), "takes mean and variance over positions that would be removed"
        )
    return [_scaled(ctx, ctx.maps(0), (1, 2), ("1",))]


def group_norm(ctx: MapContext) -> list[Maps]:
    """GroupNormalization: rows are groups; opset 18 has scale and bias per group, opset 21 per channel."""
    groups, channels = int(ctx.attr("num_groups", 1)), ctx.shape(0)[1]
    maps = ctx.flat_axes(ctx.maps(0), tuple(range(2, ctx.rank())))
    rows = [f.reshape(groups, channels // groups) for f in maps if f.shape[1] > 1]
    ctx.units.boxes += rows
    for facet in rows:
        ctx.approximate(facet, (1,), "takes mean and variance over channels that would be removed")
    if not ctx.has(1) or ctx.shape(1)[0] == channels:
        return [_scaled(ctx, maps, (1, 2), ("1",))]
    data = Operand(("g", "c"), (groups, channels // groups), named(tuple(rows), ("g", "c")))
    for i in (1, 2):
        combine(ctx, data, operand(ctx, i, ("g",)), ("g", "c"), what=f"its input {i}")
    return [maps]


def follow_num_groups(edit: Edit) -> None:
    groups = int(edit.attrs["num_groups"])
    edit.set_attr("num_groups", int(edit.kept(0, 1).reshape(groups, -1).any(axis=1).sum()))


def layer_norm(ctx: MapContext) -> list[Maps]:
    rank = ctx.rank()
    first = ctx.axis(-1)
    for facet in ctx.maps(0):
        ctx.approximate(facet, tuple(range(first, rank)), f"takes mean and variance over axis {first}")
    labels = tuple(str(a) for a in range(first, rank))
    return [_scaled(ctx, ctx.maps(0), (1, 2), labels), *[() for _ in ctx.node.outputs[1:]]]


def rms_norm(ctx: MapContext) -> list[Maps]:
    labels = tuple(str(a) for a in range(ctx.axis(-1), ctx.rank()))
    return [_scaled(ctx, ctx.maps(0), (1,), labels), *[() for _ in ctx.node.outputs[1:]]]


def rescale_rms(edit: Edit) -> None:
    _rescale_rms(edit, len(edit.old(0)), 1)


def _rescale_rms(edit: Edit, rank: int, scale: int) -> None:
    first = int(edit.attrs.get("axis", -1)) % rank
    before, after = prod(edit.old(0)[first:]), prod(edit.new(0)[first:])
    if before == after:
        return
    edit.set_attr("epsilon", float(edit.attrs.get("epsilon", 1e-5)) * before / after)
    if not edit.scale_constant(scale, sqrt(before / after)):
        edit.scale_output(sqrt(before / after))


def skip_norm(ctx: MapContext) -> list[Maps]:
    """SkipLayerNormalization(input, skip, gamma, beta, bias): the normalization of a sum, which is output 3 as well."""
    labels = tuple(str(a) for a in range(ctx.rank()))
    result = Operand(labels, ctx.shape(0), named(ctx.maps(0), labels))
    simple = "Simplified" in ctx.node.op
    for i in (1, 3 if simple else 4):
        if ctx.has(i):
            other = operand(ctx, i, labels[len(labels) - ctx.rank(i) :])
            result = Operand(labels, ctx.shape(0), combine(ctx, result, other, labels, what=f"its input {i}"))
    total = unnamed(result.facets, labels)
    if not simple:
        for facet in total:
            ctx.approximate(facet, (ctx.rank() - 1,), "takes mean and variance over its last axis")
    out = _scaled(ctx, total, (2,) if simple else (2, 3), (labels[-1],))
    return [out, *[total if k == 3 else () for k in range(1, len(ctx.node.outputs))]]


def rescale_skip_rms(edit: Edit) -> None:
    _rescale_rms(edit, len(edit.old(0)), 2)


def mean_variance(ctx: MapContext) -> list[Maps]:
    axes = tuple(a % ctx.rank() for a in ctx.attr("axes", [0, 2, 3]))
    for facet in ctx.maps(0):
        ctx.approximate(facet, axes, "takes mean and variance over positions that would be removed")
    return [ctx.maps(0)]


def layer_norm_reference(edit: MaskEdit) -> None:
    rank = len(edit.shape(0))
    first = int(edit.attrs.get("axis", -1)) % rank
    axes = tuple(range(first, rank))
    edit.normalize_kept(0, axes, 1, 2, axes, float(edit.attrs.get("epsilon", 1e-5)))


def batch_norm_step(attrs: dict[str, Any], constants: list[Array]) -> Array:
    """gain / sqrt(variance + epsilon) `[C]`."""
    gain, _, _, variance = constants
    return np.asarray(gain / np.sqrt(variance + float(attrs.get("epsilon", 1e-5))))


def skip_norm_reference(edit: MaskEdit) -> None:
    last = len(edit.shape(0)) - 1
    total = edit.sum_inputs((0, 1, 4))
    edit.normalize_kept(0, (last,), 2, 3, (last,), float(edit.attrs.get("epsilon", 1e-5)), total)


def skip_rms_reference(edit: MaskEdit) -> None:
    """The bias is added inside, where it would fill removed positions before the mean is taken."""
    bias = edit.constant(3)
    if bias is not None:
        edit.set_constant(3, np.where(edit.removed(3), bias.dtype.type(0), bias))


def instance_norm_reference(edit: MaskEdit) -> None:
    axes = tuple(range(2, len(edit.shape(0))))
    edit.normalize_kept(0, axes, 1, 2, (1,), float(edit.attrs.get("epsilon", 1e-5)))


def mean_variance_reference(edit: MaskEdit) -> None:
    rank = len(edit.shape(0))
    edit.normalize_kept(0, tuple(a % rank for a in edit.attrs.get("axes", [0, 2, 3])), None, None, (), 1e-9)


def group_norm_reference(edit: MaskEdit) -> None:
    edit.normalize_groups(int(edit.attrs.get("num_groups", 1)), float(edit.attrs.get("epsilon", 1e-5)))


def of_size_one(ctx: IdleContext) -> bool:
    """A window of one position, taken everywhere."""
    window, stride, pads = (ctx.attrs.get(k) for k in ("kernel_shape", "strides", "pads"))
    auto = ctx.attrs.get("auto_pad", b"NOTSET")
    return (
        window is not None
        and all(k == 1 for k in window)
        and all(k == 1 for k in stride or ())
        and not any(pads or ())
        and auto in (b"NOTSET", b"VALID", "NOTSET", "VALID")
    )


RULES = [
    Rule(("ReduceSum",), "reduction (sum: exact)", reduce_sum, params=(1,), mixing="sum"),
    Rule(("ReduceL1", "ReduceL2", "ReduceSumSquare"), "reduction (sum: exact)", reduce_sum, params=(1,)),
    Rule(
        ("ReduceMean",),
        "reduction (mean: rescaled)",
        reduce_sum,
        params=(1,),
        adjust=rescale_mean,
        typed=True,
        mixing="sum",
    ),
    Rule(
        ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"),
        "reduction (pins the axis)",
        reduce_order,
        params=(1,),
    ),
    Rule(("MaxPool",), "pooling", pooled, idle=of_size_one),
    Rule(("AveragePool",), "pooling", pooled, idle=of_size_one, mixing="sum"),
    Rule(("GlobalAveragePool",), "pooling", pooled, mixing="sum"),
    Rule(("LpPool", "GlobalMaxPool", "GlobalLpPool"), "pooling", pooled),
    Rule(("Softmax", "LogSoftmax", "Hardmax"), "pins the axis", single_axis),
    Rule(("ArgMax", "ArgMin"), "pins the axis", arg, whole=True),
    Rule(("TopK",), "pins the axis", top_k, params=(1,), picks=(-2,), sized_by=(1,)),
    Rule(("CumSum", "CumProd"), "pins the axis", cumulative, params=(1,)),
    Rule(("LRN",), "pins the channels", local_response),
    Rule(("LpNormalization",), "normalization (exact)", lp_normalization),
    Rule(("BatchNormalization",), "pointwise", batch_norm, step=batch_norm_step),
    Rule(
        ("InstanceNormalization",),
        "normalization (whole groups: exact)",
        instance_norm,
        reference=instance_norm_reference,
    ),
    Rule(
        ("GroupNormalization",),
        "normalization (whole groups: exact)",
        group_norm,
        adjust=follow_num_groups,
        reference=group_norm_reference,
    ),
    Rule(
        ("MeanVarianceNormalization",), "normalization (approximate)", mean_variance, reference=mean_variance_reference
    ),
    Rule(
        ("LayerNormalization", "com.microsoft::LayerNormalization"),
        "normalization (approximate)",
        layer_norm,
        reference=layer_norm_reference,
    ),
    Rule(
        ("RMSNormalization", "SimplifiedLayerNormalization", "com.microsoft::SimplifiedLayerNormalization"),
        "normalization (RMS: rescaled)",
        rms_norm,
        adjust=rescale_rms,
        typed=True,
    ),
    Rule(
        ("com.microsoft::SkipLayerNormalization",),
        "normalization (approximate)",
        skip_norm,
        reference=skip_norm_reference,
    ),
    Rule(
        ("com.microsoft::SkipSimplifiedLayerNormalization",),
        "normalization (RMS: rescaled)",
        skip_norm,
        adjust=rescale_skip_rms,
        typed=True,
        reference=skip_rms_reference,
    ),
]
