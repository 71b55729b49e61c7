"""Operators that make a tensor larger, or another cut of the same space: Expand, Tile, Pad, Resize, DepthToSpace and its inverse."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.groups.maps import Facet, Maps, reshape, simplify, varying
from onnxprune.groups.observation import Array
from onnxprune.ops.base import Edit, IdleContext, MapContext, Mixing, Rule, move
from onnxprune.ops.movement import same_shape, sizes_follow

# ---------------------------------------------------------------- repeated and padded


def expand(ctx: MapContext) -> list[Maps]:
    return [grown(ctx, ctx.pass_through())]


def grown(ctx: MapContext, maps: Maps) -> Maps:
    """An axis grown from size 1 may be cut again: it has units of its own (in every row that the tensor has)."""
    out = ctx.out_shape()
    before = (1,) * (len(out) - ctx.rank()) + ctx.shape(0)
    fresh: list[Facet] = []
    for axis in [a for a, n in enumerate(out) if before[a] == 1 and n > 1]:
        outer = [f for f in maps if varying(f) and varying(f)[-1] < axis]
        rows = max(outer, key=lambda f: varying(f)[-1], default=None)
        if maps and (rows is None or ctx.is_dynamic_out(axis)):
            continue
        facet = ctx.grown(axis) if rows is None else ctx.fresh(out, (*varying(rows), axis))
        if rows is not None and facet is not None:
            ctx.units.row(facet, rows)
        fresh += [facet] if facet is not None else []
    return (*maps, *fresh)


def expand_adjust(edit: Edit) -> None:
    target = edit.observed(1)
    if target is None:
        return
    old, new = np.array(edit.old_out())[-target.size :], np.array(edit.new_out())[-target.size :]
    edit.patch_sizes(1, (old != new) & (target != 1), old, new)


def tile(ctx: MapContext) -> list[Maps]:
    """Every axis as often as was observed; how often may follow the inputs (keys repeated for every sample of a batch)."""
    if ctx.rank() != len(ctx.out_shape()):  # before opset 6: one axis, as often as the second input says
        return [ctx.pin_axes(0, tuple(range(ctx.rank())), "repeats an axis a number of times computed from data")]
    counts = [after // before for before, after in zip(ctx.shape(0), ctx.out_shape(), strict=True)]
    tiled = move(ctx, 0, lambda f, s: np.tile(f, [n if f.shape[a] > 1 else 1 for a, n in enumerate(counts)]))
    return [grown(ctx, tiled)]


def tile_adjust(edit: Edit) -> None:
    """An axis grown from size 1 is repeated as often as positions stay; otherwise repeats are counts of what is there."""
    old, new = np.array(edit.old_out()), np.array(edit.new_out())
    edit.patch_sizes(1, (old != new) & (np.array(edit.old(0)) == 1), old, new)


def follow_shape(edit: Edit) -> None:
    """ConstantOfShape and the like: the input is the output's shape."""
    old, new = np.array(edit.old_out()), np.array(edit.new_out())
    edit.patch_sizes(0, old != new, old, new)


def pad_amounts(source: Edit | MapContext, rank: int) -> tuple[Array, Array] | None:
    """Amounts before and after, one per axis; None where computed from data."""
    if "pads" in source.attrs or "paddings" in source.attrs:
        pads = np.array(source.attrs.get("pads", source.attrs.get("paddings")))
        return pads[:rank], pads[rank:]
    found = source.value(1)
    if found is None:
        return None
    pads = found
    before, after = np.zeros(rank, np.int64), np.zeros(rank, np.int64)
    axes = source.value(3) if source.has(3) else np.arange(rank)
    if axes is None:
        return None
    before[axes], after[axes] = pads[: len(axes)], pads[len(axes) :]
    return before, after


def _pad_mode(attrs: dict[str, object]) -> str:
    mode = attrs.get("mode", "constant")
    return mode.decode() if isinstance(mode, bytes) else str(mode)


def pad(ctx: MapContext) -> list[Maps]:
    """Padded positions along a pruned axis are units of their own, which no one else has."""
    rank = ctx.rank()
    amounts = pad_amounts(ctx, rank)
    if amounts is None:
        dynamic = tuple(a for a in range(rank) if ctx.shape(0)[a] != ctx.out_shape()[a])
        return [ctx.pin_axes(0, dynamic, "pads by amounts that are computed from data")]
    before, after = amounts
    padded = tuple(a for a in range(rank) if before[a] or after[a])
    constant = _pad_mode(ctx.attrs) == "constant" and (before >= 0).all() and (after >= 0).all()
    result = []
    for facet in ctx.maps(0):
        on = [a for a in padded if facet.shape[a] > 1]
        if on and not (constant and len(on) == 1 and varying(facet)[-1] == on[0]):
            ctx.pin([facet], f"pads axis {on[0]} in mode {_pad_mode(ctx.attrs)}")
            continue
        if on and len(varying(facet)) > 1:
            result.append(padded_rows(ctx, facet, on[0], int(before[on[0]]), int(after[on[0]])))
            continue
        for a in on:
            sides = [[n if x == a else 1 for x in range(rank)] for n in (int(before[a]), int(after[a]))]
            parts = [ctx.units.issue(int(np.prod(side))).reshape(side) for side in sides]
            facet = np.concatenate([parts[0], facet, parts[1]], axis=a)
        result.append(facet)
    return [simplify(result)]


def padded_rows(ctx: MapContext, facet: Facet, axis: int, before: int, after: int) -> Facet:
    """Rows with padding at their ends: it leaves with its row only, and so does what makes room for it elsewhere."""
    lead = tuple(a for a in varying(facet) if a != axis)
    parts = []
    for count in (before, after):
        side = [count if a == axis else n for a, n in enumerate(facet.shape)]
        part = ctx.units.issue(int(np.prod(side))).reshape(side)
        if count:
            ctx.pin([ctx.units.column(part, lead)], f"pads axis {axis}")
        parts.append(part)
    whole = np.concatenate([parts[0], facet, parts[1]], axis=axis)
    rows = ctx.units.issue(int(np.prod([facet.shape[a] for a in lead])))
    side = [1 if a == axis else n for a, n in enumerate(facet.shape)]
    for x in (facet, whole):
        ctx.units.row(x, rows.reshape(side))
    return whole


def pad_adjust(edit: Edit) -> None:
    rank = len(edit.old(0))
    amounts = pad_amounts(edit, rank)
    if amounts is None:
        return
    before, after = (np.array(x) for x in amounts)
    old = np.concatenate([before, after])
    for axis in range(rank):
        if (before[axis] or after[axis]) and edit.new_out()[axis] != edit.old_out()[axis]:
            kept = edit.kept_out(0, axis)
            n = edit.old(0)[axis]
            before[axis], after[axis] = (
                kept[: int(amounts[0][axis])].sum(),
                kept[int(amounts[0][axis]) + n :].sum(),
            )
    new = np.concatenate([before, after])
    if (new == old).all():
        return
    if "pads" in edit.attrs:
        edit.set_attr("pads", [int(p) for p in new])
    elif "paddings" in edit.attrs:
        edit.set_attr("paddings", [int(p) for p in new])
    else:
        axes = edit.value(3) if edit.has(3) else None
        picked = np.arange(rank) if axes is None else np.asarray(axes) % rank
        edit.set_input(1, np.concatenate([before[picked], after[picked]]).astype(np.int64))


def resize(ctx: MapContext) -> list[Maps]:
    changed = tuple(a for a, (x, y) in enumerate(zip(ctx.shape(0), ctx.out_shape(), strict=True)) if x != y)
    return [ctx.whole_axes(0, changed, "interpolates along this axis")]


def resize_adjust(edit: Edit) -> None:
    if not edit.has(3):
        return
    axes = edit.attrs.get("axes") or list(range(len(edit.old_out())))
    old, new = np.array(edit.old_out())[axes], np.array(edit.new_out())[axes]
    if (old != new).any():
        edit.patch_input(3, old != new, new)


def constant_of_shape(ctx: MapContext) -> list[Maps]:
    shape = ctx.out_shape()
    found = [ctx.grown(a) for a, n in enumerate(shape) if n > 1]
    return [tuple(f for f in found if f is not None)]


# ---------------------------------------------------------------- blocks of space


def depth_to_space(ctx: MapContext) -> list[Maps]:
    """All b*b sub-channels of an output channel go together: space cannot lose positions."""
    n, c, h, w = ctx.shape(0)
    b = int(ctx.attr("blocksize"))
    mode = ctx.attr("mode", "DCR")
    crd = (mode.decode() if isinstance(mode, bytes) else mode) == "CRD"
    blocks = (n, c // (b * b), b * b, h, w) if crd else (n, b * b, c // (b * b), h, w)
    result = []
    for facet in ctx.flat_axes(ctx.maps(0), (2, 3)):
        if facet.shape[1] > 1:
            axis = 2 if crd else 1
            facet = reshape(facet, ctx.shape(0), blocks)
            facet = (ctx.units.align(facet, (axis,)) if facet.shape[axis] > 1 else facet).squeeze(axis)
        result.append(facet)
    return [simplify(result)]


def space_to_depth(ctx: MapContext) -> list[Maps]:
    """Output channel (i, j, c) of block offset (i, j) is input channel c."""
    b = int(ctx.attr("blocksize"))
    flat = ctx.flat_axes(ctx.maps(0), (2, 3))
    return [simplify([np.tile(f, (1, b * b, 1, 1)) if f.shape[1] > 1 else f for f in flat])]


# ---------------------------------------------------------------- attributes and constants that decide


def no_padding(ctx: IdleContext) -> bool:
    amounts = ctx.attrs.get("pads", ctx.attrs.get("paddings"))
    return not any(amounts) if amounts is not None else ctx.is_all(1, 0)


def one_tile(ctx: IdleContext) -> bool:
    return ctx.opset >= 6 and ctx.is_all(1, 1)


def resize_mixing(attrs: dict[str, Any]) -> Mixing | None:
    """A weighted sum of positions, unless values beyond the edge are given."""
    return None if attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" else "sum"


RULES = [
    Rule(
        ("Expand",),
        "movement",
        expand,
        params=(1,),
        adjust=expand_adjust,
        repeats=sizes_follow(1),
        idle=same_shape,
        mixing="copy",
        sized_by=(1,),
    ),
    Rule(
        ("Tile",),
        "movement",
        tile,
        sized_by=(1,),
        params=(1,),
        adjust=tile_adjust,
        idle=one_tile,
        mixing="copy",
        repeats=sizes_follow(1),
    ),
    Rule(("Pad",), "movement", pad, params=(1, 2, 3), adjust=pad_adjust, idle=no_padding, sized_by=(1,)),
    Rule(
        ("Resize", "Upsample"),
        "movement",
        resize,
        params=(1, 2, 3),
        adjust=resize_adjust,
        mixing=resize_mixing,
        sized_by=(1, 2, 3),
    ),
    Rule(
        ("ConstantOfShape",),
        "movement",
        constant_of_shape,
        params=(0,),
        adjust=follow_shape,
        sized_by=(0,),
        repeats=sizes_follow(0),
    ),
    Rule(("DepthToSpace",), "movement", depth_to_space, mixing="copy"),
    Rule(("SpaceToDepth",), "movement", space_to_depth, mixing="copy"),
]
