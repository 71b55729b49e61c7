"""Operators that read or write at positions computed from data.

The indexed axes keep all their positions; axes that an index leaves alone pass through.
"""

from __future__ import annotations

import numpy as np

from onnxprune.groups.maps import Maps, simplify, varying
from onnxprune.groups.observation import Array
from onnxprune.ops.base import Edit, MapContext, Rule
from onnxprune.ops.labelled import Operand, combine, named, operand, unnamed
from onnxprune.ops.movement import picked, positions_left


def gather_elements(ctx: MapContext) -> list[Maps]:
    """out[i, j] = data[index[i, j], j]: along the axes that are not addressed, data, index and output go together."""
    axis, rank = ctx.axis(0), ctx.rank()
    partial = tuple(a for a in range(rank) if a != axis and ctx.shape(0)[a] != ctx.shape(1)[a])
    for i in (0, 1):
        if partial and not ctx.is_lazy(i):
            ctx.pin_axes(i, partial, "looks up single elements in a part of its data")
    kept = ctx.whole_axes(
        0, (axis,), f"looks up positions of axis {axis} that are computed from data, element by element"
    )
    kept = tuple(f for f in kept if not any(f.shape[a] > 1 for a in partial))
    labels = tuple("position" if a == axis else str(a) for a in range(rank))
    wanted = tuple("index" if a == axis else str(a) for a in range(rank))
    data = Operand(labels, ctx.shape(0), named(kept, labels))
    return [unnamed(combine(ctx, data, operand(ctx, 1, wanted), wanted, what="its index"), wanted)]


def gather_nd(ctx: MapContext) -> list[Maps]:
    """out[b.., i.., rest..] = data[b.., index[b.., i..], rest..]; constant numbers of rows are those of a Gather."""
    batch = int(ctx.attr("batch_dims", 0))
    index = ctx.shape(1)
    rows = ctx.value(1)
    if not ctx.is_lazy(1):
        ctx.pin(ctx.maps(1), "reads positions from it")
    if rows is not None and batch == 0 and index[-1] == 1 and len(index) == 2:
        return [simplify([picked(ctx, f, 0, rows[:, 0]) if f.shape[0] > 1 else f for f in ctx.maps(0)])]
    first = batch + index[-1]
    kept = ctx.pin_axes(0, tuple(range(first)), "looks up positions that are computed from data")
    lead = len(ctx.out_shape()) - (ctx.rank() - first)
    return [simplify([f.reshape((1,) * lead + f.shape[first:]) for f in kept])]


def scatter_nd(ctx: MapContext) -> list[Maps]:
    """data with data[index] = updates: trailing axes of both are tied, and so are the written positions of axis 0 if known."""
    index = ctx.value(1)
    if index is not None and index.ndim == 2 and index.shape[1] == 1 and np.unique(index).size == index.size:
        return _scatter_known(ctx, index[:, 0])
    first = ctx.shape(1)[-1]
    rank = ctx.rank()
    trailing = tuple(str(a) for a in range(first, rank))
    kept = ctx.pin_axes(0, tuple(range(first)), "writes at positions that are computed from data")
    lead = ctx.rank(2) - len(trailing)
    if not ctx.is_lazy(2):
        ctx.pin_axes(2, tuple(range(lead)), "writes at positions that are computed from data")
    labels = (*(f"d{a}" for a in range(first)), *trailing)
    data = Operand(labels, ctx.shape(0), named(kept, labels))
    updates = operand(ctx, 2, (*(f"u{a}" for a in range(lead)), *trailing))
    return [unnamed(combine(ctx, data, updates, labels, what="its updates"), labels)]


def _scatter_known(ctx: MapContext, index: Array) -> list[Maps]:
    """Rows of constant numbers are replaced: the updates' units are those of the rows they replace."""
    rank = ctx.rank()
    labels = tuple(str(a) for a in range(rank))
    rows = index.astype(np.int64) % ctx.shape(0)[0]
    data = ctx.maps(0)
    part = tuple(f.take(rows, axis=0) if f.shape[0] > 1 else f for f in data)
    picked = Operand(labels, (len(rows), *ctx.shape(0)[1:]), named(part, labels))
    combine(ctx, picked, operand(ctx, 2, labels), labels, what="its updates")
    return [data]


def follow_rows(edit: Edit) -> None:
    """The numbers of the addressed rows among those that stay."""
    index = edit.value(1)
    if index is not None and edit.old(0)[0] != edit.new(0)[0]:
        edit.set_input(1, positions_left(edit, 0, index[:, 0])[:, None].astype(index.dtype))


def scatter_elements(ctx: MapContext) -> list[Maps]:
    """out[index[i, j], j] = updates[i, j], else data: along the axes that are not addressed, all of them go together."""
    axis, rank = ctx.axis(0), ctx.rank()
    data, index = ctx.shape(0), ctx.shape(1)
    partial = tuple(a for a in range(rank) if a != axis and data[a] != index[a])
    if all(ctx.is_lazy(i) for i in range(3)):
        return ctx.nothing()
    result: Operand | None = None
    for i in sorted(range(3), key=ctx.is_lazy):
        labels = tuple(("data" if i == 0 else "update") if a == axis else str(a) for a in range(rank))
        other = operand(ctx, i, labels)
        if not ctx.is_lazy(i):
            kept = ctx.whole_axes(i, (axis,), "writes single elements")
            written = [f for f in kept if any(f.shape[a] > 1 for a in partial)]
            ctx.pin(written, "writes single elements in a part of its data")
            kept = tuple(f for f in kept if not any(f is w for w in written))
            other = Operand(labels, ctx.shape(i), named(kept, labels))
        if result is None:
            result = other
            continue
        out = tuple(dict.fromkeys((*result.labels, *labels)))
        sizes = dict(zip(labels, ctx.shape(i), strict=True)) | dict(zip(result.labels, result.sizes, strict=True))
        result = Operand(out, tuple(sizes[x] for x in out), combine(ctx, result, other, out, what=f"its input {i}"))
    assert result is not None
    order = tuple("data" if a == axis else str(a) for a in range(rank))
    return [unnamed(tuple(f for f in result.facets if "update" not in f.labels), order)]


def triangle(ctx: MapContext) -> list[Maps]:
    return [ctx.pin_axes(0, (ctx.rank() - 2, ctx.rank() - 1), "keeps a triangle of its last two axes")]


def grid_sample(ctx: MapContext) -> list[Maps]:
    """Channels pass, space is sampled, and the batch of the data is that of the grid."""
    rank = ctx.rank()
    space, where = (tuple(f"{x}{a}" for a in range(2, rank)) for x in "sp")
    maps = ctx.flat_axes(ctx.maps(0), tuple(range(2, rank)))
    data = Operand(("b", "c", *space), ctx.shape(0), named(maps, ("b", "c", *space)))
    labels = ("b", *where, "xy")
    if ctx.is_lazy(1):
        grid = operand(ctx, 1, labels)
    else:
        kept = ctx.whole_axes(1, (rank - 1,), "reads coordinates from it")
        grid = Operand(labels, ctx.shape(1), named(kept, labels))
    out = ("b", "c", *where)
    return [unnamed(combine(ctx, data, grid, out, what="its grid"), out)]


def reverse_sequence(ctx: MapContext) -> list[Maps]:
    axes = (int(ctx.attr("batch_axis", 1)), int(ctx.attr("time_axis", 0)))
    return [ctx.pin_axes(0, axes, "reverses along this axis")]


def roi_align(ctx: MapContext) -> list[Maps]:
    maps = ctx.flat_axes(ctx.pin_axes(0, (0,), "selects images"), (2, 3))
    return [tuple(f for f in maps if varying(f))]


RULES = [
    Rule(("GatherElements",), "indexing", gather_elements, picks=(1,)),
    Rule(("GatherND",), "indexing", gather_nd, params=(1,), adjust=follow_rows, picks=(1,)),
    Rule(("ScatterND",), "indexing", scatter_nd, params=(1,), adjust=follow_rows, places=True),
    Rule(("ScatterElements", "Scatter"), "indexing", scatter_elements, places=True),
    Rule(("Trilu",), "indexing", triangle, params=(1,)),
    Rule(("GridSample",), "indexing", grid_sample),
    Rule(("ReverseSequence",), "indexing", reverse_sequence, params=(1,), picks=(1,)),
    Rule(("RoiAlign",), "indexing", roi_align, picks=(1, 2)),
]
