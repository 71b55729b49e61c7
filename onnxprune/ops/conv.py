"""Convolutions: a contraction over input channels within each group.

    x [N, g*i, S...]  W [g*o, i, K...]  ->  y[n, g, o, s] = sum_i,k x[n, g, i, s+k] W[g, o, i, k]

Groups are a batch label: every group loses equally many channels, or a whole group goes with its outputs. A depthwise
convolution is the case i = o = 1, in which input and output channel are the same unit; nothing else is special about it.
ConvTranspose stores W as [g*i, o, K...].
"""

from __future__ import annotations

from math import prod

from onnxprune.groups.maps import Maps, Shape, reshape, varying
from onnxprune.ops.base import CostContext, Edit, MapContext, Rule, weights_at
from onnxprune.ops.labelled import Named, Operand, combine, named, operand, unnamed
from onnxprune.ops.linear import Linear, LinearContext, Sliding


def contract(
    ctx: MapContext,
    view: Shape,
    labels: tuple[str, ...],
    channels: int,
    w: int = 1,
    bias: int = 2,
    channels_last: bool = False,
) -> Maps:
    """Maps of the output; the kernel is input `w`, seen as `view` with axes `labels`, the bias input `bias`."""
    groups = int(ctx.attr("group", 1))
    x_shape, rank = ctx.shape(0), ctx.rank()
    at = rank - 1 if channels_last else 1
    spatial = tuple(a for a in range(1, rank) if a != at)
    named_axes = tuple("n" if a == 0 else f"s{a}" for a in range(rank))
    maps = ctx.flat_axes(ctx.maps(0), spatial)

    def apart(shape: Shape, inner: str) -> tuple[Shape, tuple[str, ...]]:
        """A shape and its labels with the channel axis in groups."""
        grouped = (groups, shape[at] // groups)
        return (*shape[:at], *grouped, *shape[at + 1 :]), (*named_axes[:at], "g", inner, *named_axes[at + 1 :])

    split, x_labels = apart(x_shape, "i")
    grouped = tuple(reshape(f, x_shape, split) for f in maps)
    ctx.units.boxes += [f for f in grouped if len(varying(f)) > 1]
    x = Operand(x_labels, split, named(grouped, x_labels))
    if not ctx.is_lazy(w):
        ctx.pin_axes(w, tuple(range(2, ctx.rank(w))), "slides this axis of its kernel over space")
    kernel = operand(ctx, w, labels, view)
    out = ctx.out_shape()
    parts, out_labels = apart((*out[:at], channels, *out[at + 1 :]), "o")
    facets = _joint(ctx, combine(ctx, x, kernel, out_labels, weight=True, what="its kernel"))
    ctx.units.boxes += [f.ids for f in facets if len(f.labels) > 1]
    flat = tuple(reshape(f, parts, out) for f in unnamed(facets, out_labels))
    labels_flat = (*named_axes[:at], "c", *named_axes[at + 1 :])
    result = Operand(labels_flat, out, named(flat, labels_flat))
    if ctx.has(bias):
        result = Operand(
            labels_flat, out, combine(ctx, result, operand(ctx, bias, ("c",)), labels_flat, what="its bias")
        )
    return unnamed(result.facets, labels_flat)


def _joint(ctx: MapContext, facets: tuple[Named, ...]) -> tuple[Named, ...]:
    """Groups `g` and channels `o` of each of them as units `(g, o)`: whole groups go, or the same channels of every group."""
    g, o = (next((f for f in facets if f.labels == (label,)), None) for label in "go")
    if g is None or o is None:
        return facets
    ids = ctx.units.issue(g.ids.size * o.ids.size, str(ctx.node)).reshape(g.ids.size, o.ids.size)
    ctx.units.row(ids, g.ids[:, None])
    ctx.units.tie(ctx.units.column(ids, (0,)).ravel(), o.ids)
    return (*(f for f in facets if f is not g and f is not o), Named(("g", "o"), ids))


def conv(ctx: MapContext) -> list[Maps]:
    return [convolved(ctx)]


def convolved(ctx: MapContext, w: int = 1, bias: int = 2, channels_last: bool = False) -> Maps:
    """Maps of a convolution whose kernel `[g*o, i, K...]` is input `w`."""
    groups, shape = int(ctx.attr("group", 1)), ctx.shape(w)
    view = (groups, shape[0] // groups, *shape[1:])
    kernel = tuple(f"k{a}" for a in range(2, len(shape)))
    return contract(ctx, view, ("g", "o", "i", *kernel), shape[0], w, bias, channels_last)


def conv_transpose(ctx: MapContext) -> list[Maps]:
    groups, w = int(ctx.attr("group", 1)), ctx.shape(1)
    view = (groups, w[0] // groups, *w[1:])
    kernel = tuple(f"k{a}" for a in range(2, len(w)))
    return [contract(ctx, view, ("g", "i", "o", *kernel), w[1] * groups)]


def follow_groups(edit: Edit) -> None:
    if int(edit.attrs.get("group", 1)) > 1:
        edit.set_attr("group", edit.new(0)[1] // edit.new(1)[1])


def follow_groups_transposed(edit: Edit) -> None:
    if int(edit.attrs.get("group", 1)) > 1:
        edit.set_attr("group", edit.new_out()[1] // edit.new(1)[1])


def conv_macs(cost: CostContext) -> int:
    w, out = cost.inputs[1], cost.outputs[0]
    return 0 if w is None or out is None else prod(out) * prod(w[1:])


def conv_transpose_macs(cost: CostContext) -> int:
    w, x = cost.inputs[1], cost.inputs[0]
    return 0 if w is None or x is None else prod(x) * prod(w[1:])


def conv_linear(ctx: LinearContext) -> Linear | None:
    """im2col; `auto_pad` as the specification of Conv says."""
    if not ctx.is_constant[1] or (ctx.has(2) and not ctx.is_constant[2]):
        return None
    x, w = ctx.shape(0), ctx.shape(1)
    kernel = tuple(w[2:])
    rank, one = len(kernel), (1,) * len(kernel)
    strides = tuple(int(s) for s in ctx.attrs.get("strides", one))
    dilations = tuple(int(d) for d in ctx.attrs.get("dilations", one))
    before = tuple(int(p) for p in ctx.attrs.get("pads", (0,) * (2 * rank)))[:rank]
    auto = ctx.attrs.get("auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    same = auto if auto.startswith("SAME") else ""
    before = (0,) * rank if auto == "VALID" else before
    return Sliding(int(ctx.attrs.get("group", 1)), x[1], kernel, strides, dilations, before, auto_pad=same)


def conv_transpose_linear(ctx: LinearContext) -> Linear | None:
    """A convolution with stride 1 of the input with `stride - 1` zeros between its elements, and the kernel turned round."""
    given = {"output_shape", "output_padding"} & set(ctx.attrs)
    if not ctx.is_constant[1] or (ctx.has(2) and not ctx.is_constant[2]) or given:
        return None
    if ctx.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
        return None
    x, w = ctx.shape(0), ctx.shape(1)
    kernel = tuple(w[2:])
    rank, one = len(kernel), (1,) * len(kernel)
    dilations = tuple(int(d) for d in ctx.attrs.get("dilations", one))
    pads = tuple(int(p) for p in ctx.attrs.get("pads", (0,) * (2 * rank)))[:rank]
    before = tuple((k - 1) * d - p for k, d, p in zip(kernel, dilations, pads, strict=True))
    spread = tuple(int(s) for s in ctx.attrs.get("strides", one))
    return Sliding(int(ctx.attrs.get("group", 1)), x[1], kernel, one, dilations, before, upsampled=spread)


def fused_conv(ctx: MapContext) -> list[Maps]:
    """FusedConv(X, W, B, Z): Conv + optional Z, then an activation."""
    maps = conv(ctx)[0]
    if ctx.has(3):
        labels = tuple(str(a) for a in range(len(ctx.out_shape())))
        added = combine(
            ctx,
            Operand(labels, ctx.out_shape(), named(maps, labels)),
            operand(ctx, 3, labels),
            labels,
            what="the added input",
        )
        maps = unnamed(added, labels)
    return [maps]


RULES = [
    Rule(
        ("Conv",),
        "contraction",
        conv,
        adjust=follow_groups,
        macs=conv_macs,
        rounded=True,
        linear=conv_linear,
        weights=weights_at((1, 1)),
    ),
    Rule(
        ("com.microsoft::FusedConv",),
        "contraction",
        fused_conv,
        adjust=follow_groups,
        macs=conv_macs,
        rounded=True,
        weights=weights_at((1, 1)),
    ),
    Rule(
        ("ConvTranspose",),
        "contraction",
        conv_transpose,
        adjust=follow_groups_transposed,
        macs=conv_transpose_macs,
        rounded=True,
        linear=conv_transpose_linear,
        weights=weights_at((1, 0)),
    ),
]
