"""Data movement: the operator is applied to the index map itself, with numpy.

Head splits, packed projections, channel shuffles, window partitions, halves of a gated unit: all of them are these few rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxprune.groups.maps import Facet, Maps, expand_axes, reshape, simplify, varying
from onnxprune.groups.observation import Array
from onnxprune.ops.base import Edit, IdleContext, MapContext, Rule, move
from onnxprune.ops.labelled import Operand, combine, operand
from onnxprune.ops.pointwise import of_one

# ---------------------------------------------------------------- same elements, other shape


def reshaped(ctx: MapContext) -> list[Maps]:
    """Reshape, Flatten, Squeeze, Unsqueeze: row-major order stays."""
    target = ctx.out_shape()
    return [move(ctx, 0, lambda f, s: reshape(f, s, target))]


def sizes_follow(i: int) -> Callable[[MapContext, int], bool]:
    """For `repeats`: input `i` says the sizes of the output, and `Edit.patch_sizes` has them follow what leaves."""
    return lambda ctx, axis: bool(ctx.entries(i))


def follow_target(edit: Edit, i: int = 1) -> None:
    """A target shape: sizes of changed axes follow; 0 and -1 go on meaning what they mean."""
    target = edit.observed(i)
    if target is None:
        return
    old, new = np.array(edit.old_out()), np.array(edit.new_out())
    changed = (old != new) & (target > 0)
    if not edit.attrs.get("allowzero", 0) and edit.has(0):
        zero = np.flatnonzero(target == 0)
        source = edit.new(0)
        for axis in zero:
            if axis >= len(source) or source[axis] != new[axis]:
                changed[axis] = True
    edit.patch_sizes(i, changed, old, new)


def squeeze_adjust(edit: Edit) -> None:
    """Without axes, every axis of size 1 is squeezed: an axis cut down to one must not be among them."""
    narrowed = any(old != new == 1 for old, new in zip(edit.old(0), edit.new(0), strict=True))
    if narrowed and not edit.has(1) and "axes" not in edit.attrs:
        axes = [a for a, n in enumerate(edit.old(0)) if n == 1]
        if edit.opset >= 13:
            edit.set_input(1, np.array(axes, np.int64))
        else:
            edit.set_attr("axes", axes)


def transposed(ctx: MapContext) -> list[Maps]:
    perm = ctx.attr("perm") or list(range(ctx.rank()))[::-1]
    return [move(ctx, 0, lambda f, s: np.transpose(f, perm))]


# ---------------------------------------------------------------- parts and joins


def concat(ctx: MapContext) -> list[Maps]:
    return [joined(ctx, [i for i in range(len(ctx.node.inputs)) if ctx.has(i)])]


def joined(ctx: MapContext, inputs: list[int]) -> Maps:
    """Inputs of the node, joined along `axis`."""
    rank = len(ctx.out_shape())
    axis = ctx.axis(0, rank=rank)
    order = sorted(inputs, key=ctx.is_lazy)
    if ctx.is_lazy(order[0]):
        ctx.maps(order[0])  # constants only: one of them issues the units of all
    operands = {i: operand(ctx, i, join_labels(i, rank, axis)) for i in inputs}
    return join(ctx, operands, order, axis, lambda i: f"input {i} ('{ctx.node.inputs[i]}')")


def join_labels(i: int, rank: int, axis: int) -> tuple[str, ...]:
    """Names of the axes of part `i`: all parts share them but for the joined one."""
    return tuple(f"c{i}" if a == axis else str(a) for a in range(rank))


def join(
    ctx: MapContext, operands: dict[int, Operand], order: list[int], axis: int, what: Callable[[int], str]
) -> Maps:
    """Axes other than the joined one are tied between all operands, in `order`; along the joined one, units line up.

    operands: by number, in the order in which they are joined, with the labels of `join_labels`.
    """
    rank = len(ctx.out_shape())
    others = tuple(str(a) for a in range(rank))
    lengths = {i: o.sizes[axis] for i, o in operands.items()}
    result = operands[order[0]]
    for i in order[1:]:
        out = (*result.labels, f"c{i}")
        facets = combine(ctx, result, operands[i], out, what=what(i))
        sizes = {
            **dict(zip(operands[i].labels, operands[i].sizes, strict=True)),
            **dict(zip(result.labels, result.sizes, strict=True)),
        }
        result = Operand(out, tuple(sizes[x] for x in out), facets)
    starts = dict(zip([f"c{i}" for i in operands], np.cumsum([0, *lengths.values()]), strict=False))
    total = ctx.out_shape()[axis]
    placed: list[Facet] = []
    for f in result.facets:
        part_label = next((x for x in f.labels if x in starts), None)
        if part_label is None:
            placed.append(f.over(tuple("" if a == axis else others[a] for a in range(rank))))
            continue
        part = f.over(tuple(part_label if a == axis else others[a] for a in range(rank)))
        whole = np.full([total if a == axis else n for a, n in enumerate(part.shape)], -1, np.int64)
        window = [slice(None)] * rank
        window[axis] = slice(int(starts[part_label]), int(starts[part_label]) + part.shape[axis])
        whole[tuple(window)] = part
        placed.append(whole)
    return simplify(placed)


def alone(ctx: MapContext, facet: Facet, axis: int, position: int) -> Facet:
    """One offset of every row stays as long as its row does: the rows, with size 1 along `axis`."""
    part = facet.take([position], axis=axis)
    column = ctx.units.column(part, tuple(a for a in varying(facet) if a != axis))
    ctx.pin([column], f"takes position {position} of axis {axis}")
    rows = ctx.units.issue(part.size).reshape(part.shape)
    ctx.units.row(facet, rows)
    return rows


def split(ctx: MapContext) -> list[Maps]:
    axis = ctx.axis(0)
    sizes = [ctx.out_shape(k)[axis] if o else 0 for k, o in enumerate(ctx.node.outputs)]
    if "" in ctx.node.outputs:
        ctx.pin_axes(0, (axis,), "has an unused part")
    return [part if o else () for part, o in zip(parted(ctx, axis, sizes), ctx.node.outputs, strict=True)]


def parted(ctx: MapContext, axis: int, sizes: list[int]) -> list[Maps]:
    """Parts of input 0 of these sizes, one after the other along `axis`."""
    ends = np.cumsum(sizes)

    def taken(facet: Facet, k: int) -> Facet:
        start = int(ends[k] - sizes[k])
        if sizes[k] == 1 and len(varying(facet)) > 1 and varying(facet)[-1] == axis:
            return alone(ctx, facet, axis, start)
        return facet.take(range(start, int(ends[k])), axis=axis)

    maps = ctx.maps(0)
    return [simplify([taken(f, k) if f.shape[axis] > 1 else f for f in maps]) for k in range(len(sizes))]


def split_adjust(edit: Edit) -> None:
    axis = int(edit.attrs.get("axis", 0)) % len(edit.old(0))
    outputs = range(len(edit.node.outputs))
    sizes = [edit.new_out(k)[axis] for k in outputs]
    if sizes == [edit.old_out(k)[axis] for k in outputs]:
        return
    if edit.opset >= 13:
        edit.set_input(1, np.array(sizes, np.int64))
        edit.drop_attr("num_outputs")
    else:
        edit.set_attr("split", sizes)


def slices(edit: Edit | MapContext, rank: int) -> list[tuple[int, Array | None, Array | None, int]] | None:
    """(axis, start, end, step) per sliced axis; None where a bound is computed from data."""
    starts: Array | None
    ends: Array | None
    if "starts" in edit.attrs:
        starts, ends = np.array(edit.attrs["starts"]), np.array(edit.attrs["ends"])
        axes = edit.attrs.get("axes") or list(range(starts.size))
        steps = np.ones(starts.size, np.int64)
    else:
        found = [edit.value(i) if edit.has(i) else None for i in range(1, 5)]
        known = found[2] if edit.has(3) else None
        if edit.has(3) and known is None:
            return None
        seen = edit.old(1) if isinstance(edit, Edit) else edit.shape(1)
        count = next((v.size for v in found if v is not None), seen[0] if seen else rank)
        axes = known.tolist() if known is not None else list(range(count))
        starts = found[0]
        ends = found[1]
        if edit.has(4) and found[3] is None:
            return None
        steps = found[3] if found[3] is not None else np.ones(len(axes), np.int64)
    return [
        (int(a) % rank, None if starts is None else starts[k], None if ends is None else ends[k], int(steps[k]))
        for k, a in enumerate(axes)
    ]


def sliced(ctx: MapContext) -> list[Maps]:
    bounds = slices(ctx, ctx.rank())
    if bounds is None:
        return [ctx.pin_axes(0, tuple(range(ctx.rank())), "takes axes that are computed from data")]
    unknown = tuple(a for a, start, end, _ in bounds if start is None or end is None)
    result = []
    for facet in ctx.pin_axes(0, unknown, "cuts at a position that is computed from data"):
        for axis, start, end, step in bounds:
            if facet.shape[axis] == 1 or start is None or end is None:
                continue
            positions = range(*slice(int(start), int(end), step).indices(ctx.shape(0)[axis]))
            if step != 1 or len(positions) == 1:
                facet = picked(ctx, facet, axis, np.array(positions, np.int64))
                continue
            if len(varying(facet)) > 1 and positions.start:
                ctx.units.boxes.append(facet.take(range(positions.start), axis=axis))
            facet = facet.take(positions, axis=axis)
        result.append(facet)
    return [simplify(result)]


def slice_adjust(edit: Edit) -> None:
    """Bounds follow. Every n-th position may become a list of positions, which a Gather takes after the Slice."""
    bounds = slices(edit, len(edit.old(0))) or []
    starts, ends, steps = [], [], []
    changed = []
    for k, (axis, start, end, step) in enumerate(bounds):
        size = edit.old(0)[axis]
        starts.append(0 if start is None else int(start))
        ends.append(0 if end is None else int(end))
        steps.append(step)
        if edit.new(0)[axis] == size or start is None or end is None:
            continue
        changed.append(k)
        low, high, _ = slice(int(start), int(end), step).indices(size)
        if step == 1:
            starts[k], ends[k] = edit.rank_of(0, axis, low), edit.rank_of(0, axis, max(low, high))
            continue
        index = positions_left(edit, axis, np.arange(low, high, step))
        if (np.diff(index) == step).all():
            starts[k], ends[k] = int(index[0]), int(index[-1]) + (1 if step > 0 else -1)
            if ends[k] < 0:  # down to the first position
                ends[k] = -edit.new(0)[axis] - 1
        else:
            starts[k], ends[k], steps[k] = 0, edit.new(0)[axis], 1
            edit.gather_output(axis, index)
    if not changed:
        return
    if "starts" in edit.attrs:
        edit.set_attr("starts", starts)
        edit.set_attr("ends", ends)
        return
    mask = np.isin(np.arange(len(bounds)), changed)
    edit.patch_input(1, mask, np.array(starts))
    edit.patch_input(2, mask, np.array(ends))
    if any(step != old for step, (*_, old) in zip(steps, bounds, strict=True)):
        edit.patch_input(4, mask, np.array(steps))


def positions_left(edit: Edit, axis: int, index: Array) -> Array:
    """Where those positions `index` of an axis of input 0 that stay lie among what stays; a scalar index stays."""
    kept = edit.kept(0, axis)
    index = index.astype(np.int64) % len(kept)
    return np.asarray((np.cumsum(kept) - 1)[index[kept[index]] if index.ndim else index])


def picked(ctx: MapContext, facet: Facet, axis: int, index: Array) -> Facet:
    """The positions `index` of a facet along `axis`; rows of which offsets are picked lose the same ones."""
    axes = varying(facet)
    if len(axes) > 1 and axes[-1] == axis:
        ctx.units.align_rows(facet, axes[:-1])
        if index.size == 1:
            rows = alone(ctx, facet, axis, int(index.ravel()[0]))
            return rows if index.ndim else rows.squeeze(axis)
    return np.take(facet, index, axis=axis)


def gather(ctx: MapContext) -> list[Maps]:
    """Constant indices move the map; indices from data need an axis without units."""
    axis = ctx.axis(0)
    index = ctx.value(1)
    rank = len(ctx.shape(1))
    if not ctx.is_lazy(1):
        ctx.pin(ctx.maps(1), "reads positions from it")
    if ctx.is_lazy(0) and index is None and ctx.offers(0):
        shape = ctx.shape(0)
        free = [a for a in range(len(shape)) if a != axis and shape[a] > 1]
        ctx.give(0, [ctx.fresh(shape, (a,), origin=True) for a in free])
    result = []
    for facet in ctx.maps(0):
        if facet.shape[axis] == 1:
            result.append(np.expand_dims(facet.squeeze(axis), tuple(range(axis, axis + rank))))
        elif index is None:
            ctx.pin([facet], f"looks up positions of axis {axis} that are computed from data")
        elif rank > 1:
            ctx.pin([facet], f"looks up a table of shape {list(index.shape)} on axis {axis}")
        else:
            result.append(picked(ctx, facet, axis, index.astype(np.int64)))
    return [simplify(result)]


def gather_adjust(edit: Edit) -> None:
    axis = int(edit.attrs.get("axis", 0)) % len(edit.old(0))
    index = edit.value(1)
    if index is not None and edit.old(0)[axis] != edit.new(0)[axis]:
        edit.set_input(1, positions_left(edit, axis, index).astype(index.dtype))


# ---------------------------------------------------------------- back to where a constant is stored


def shape_back(attrs: dict[str, Any], value: Array, inputs: list[Array]) -> Array:
    return value.reshape(inputs[0].shape)


def order_back(attrs: dict[str, Any], value: Array, inputs: list[Array]) -> Array:
    order = attrs.get("perm")
    return value.transpose(None if order is None else np.argsort(order))


# ---------------------------------------------------------------- nodes that move nothing


def same_shape(ctx: IdleContext) -> bool:
    """What keeps its order keeps everything, if it also keeps its shape."""
    return ctx.keeps_shape()


def same_axes(ctx: IdleContext) -> bool:
    order = ctx.attrs.get("perm")
    if order is None:
        return ctx.shape is not None and len(ctx.shape) < 2
    return list(order) == list(range(len(order)))


def whole_slice(ctx: IdleContext) -> bool:
    """All of every axis, not backwards."""
    return ctx.keeps_shape() and (not ctx.has(4) or ctx.is_all(4, 1))


RULES = [
    Rule(
        ("Reshape",),
        "movement",
        reshaped,
        sized_by=(1,),
        params=(1,),
        adjust=follow_target,
        idle=same_shape,
        mixing="copy",
        encode=shape_back,
        repeats=sizes_follow(1),
    ),
    Rule(("Flatten",), "movement", reshaped, idle=same_shape, mixing="copy", encode=shape_back),
    Rule(
        ("Squeeze",),
        "movement",
        reshaped,
        params=(1,),
        adjust=squeeze_adjust,
        idle=same_shape,
        mixing="copy",
        encode=shape_back,
    ),
    Rule(("Unsqueeze",), "movement", reshaped, params=(1,), idle=same_shape, mixing="copy", encode=shape_back),
    Rule(("Transpose",), "movement", transposed, idle=same_axes, mixing="copy", encode=order_back),
    Rule(("Concat",), "movement", concat, idle=of_one, mixing="copy"),
    Rule(("Split",), "movement", split, params=(1,), adjust=split_adjust, mixing="copy", sized_by=(1,)),
    Rule(
        ("Slice",),
        "movement",
        sliced,
        params=(1, 2, 3, 4),
        adjust=slice_adjust,
        idle=whole_slice,
        mixing="copy",
        picks=(1, 2, 3, 4),
        sized_by=(1, 2, 3, 4),
    ),
    Rule(("Gather",), "movement", gather, params=(1,), adjust=gather_adjust, mixing="copy", picks=(1,)),
]

__all__ = ["RULES", "expand_axes", "follow_target"]
