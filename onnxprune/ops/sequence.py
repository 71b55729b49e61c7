"""Sequences of tensors: the walk follows each tensor that lies in one.

A tensor cut into a sequence and taken out again part by part is a Split; tensors put into one and joined are a Concat.
"""

from __future__ import annotations

import numpy as np

from onnxprune.groups.maps import Maps, Shape, simplify, varying
from onnxprune.groups.observation import Array
from onnxprune.ops.base import Edit, MapContext, Parts, Repeated, Rule
from onnxprune.ops.labelled import Operand, named
from onnxprune.ops.movement import join, join_labels, parted


def _sizes(shape: Shape, axis: int, given: Array | None) -> list[int]:
    """How long each part is: as listed, or of one length with what is left in the last, or one position each."""
    total = shape[axis]
    if given is not None and given.ndim:
        return [int(n) for n in given]
    each = 1 if given is None else int(given)
    return [min(each, total - start) for start in range(0, total, each)]


def split_to_sequence(ctx: MapContext) -> list[Maps]:
    axis = ctx.axis(0)
    if ctx.has(1) and ctx.value(1) is None:
        ctx.pin(ctx.maps(0), "cuts at positions that are computed from data")
        ctx.build(0, ())
        return ctx.nothing()
    sizes = _sizes(ctx.shape(0), axis, ctx.value(1))
    keeps = ctx.has(1) or bool(ctx.attr("keepdims", 1))
    parts: list[tuple[Maps, Shape]] = []
    for maps, size in zip(parted(ctx, axis, sizes), sizes, strict=True):
        ctx.units.boxes += [f for f in maps if len(varying(f)) > 1]
        ctx.pin([f for f in maps if f.size == 1], f"leaves it as the only position of a part along axis {axis}")
        shape = tuple(size if a == axis else n for a, n in enumerate(ctx.shape(0)))
        if not keeps:
            maps, shape = tuple(f.squeeze(axis) for f in maps), (*shape[:axis], *shape[axis + 1 :])
        parts.append((tuple(f for f in maps if varying(f)), shape))
    ctx.build(0, tuple(parts))
    return ctx.nothing()


def follow_parts(edit: Edit) -> None:
    """Lengths follow, one for each part."""
    axis = int(edit.attrs.get("axis", 0)) % len(edit.old(0))
    if not edit.has(1) or edit.old(0)[axis] == edit.new(0)[axis]:
        return
    ends = np.cumsum(_sizes(edit.old(0), axis, edit.value(1)))
    edit.set_input(1, np.diff([0, *(edit.rank_of(0, axis, int(end)) for end in ends)]).astype(np.int64))


def construct(ctx: MapContext) -> list[Maps]:
    ctx.build(0, tuple((ctx.maps(i), ctx.shape(i)) for i in range(len(ctx.node.inputs))))
    return ctx.nothing()


def empty(ctx: MapContext) -> list[Maps]:
    ctx.build(0, ())
    return ctx.nothing()


def _place(ctx: MapContext, i: int, last: int) -> int | None:
    """A position in a sequence, `last` where none is given; None where it is computed from data."""
    if not ctx.has(i):
        return last
    value = ctx.value(i)
    return None if value is None else int(value)


def insert(ctx: MapContext) -> list[Maps]:
    parts, new = list(ctx.parts(0)), (ctx.maps(1), ctx.shape(1))
    place = _place(ctx, 2, len(parts))
    if isinstance(ctx.parts(0), Repeated):
        _pin_all(ctx, (*parts, new), "puts a tensor among a number of others that a loop decides")
        ctx.build(0, (((), new[1]),))
        return ctx.nothing()
    if place is None:
        _pin_all(ctx, (*parts, new), "puts a tensor at a position that is computed from data")
        parts.append(((), new[1]))
    else:
        parts.insert(place, new)
    ctx.build(0, tuple(parts))
    return ctx.nothing()


def erase(ctx: MapContext) -> list[Maps]:
    parts = list(ctx.parts(0))
    place = _place(ctx, 1, -1)
    if isinstance(ctx.parts(0), Repeated):
        ctx.build(0, ctx.parts(0))
        return ctx.nothing()
    if place is None:
        _pin_all(ctx, tuple(parts), "takes away a tensor at a position that is computed from data")
        place = -1
    del parts[place : place + 1 or None]
    ctx.build(0, tuple(parts))
    return ctx.nothing()


def at(ctx: MapContext) -> list[Maps]:
    """The part itself; of parts with the same units, any."""
    parts, place = ctx.parts(0), _place(ctx, 1, -1)
    if not parts:
        return ctx.nothing()
    first = parts[0][0]
    if isinstance(parts, Repeated):
        return [first]
    if place is not None:
        return [parts[place][0]]
    alike = all(len(maps) == len(first) and all(map(np.array_equal, maps, first)) for maps, _ in parts)
    if alike:
        return [first]
    _pin_all(ctx, parts, "takes a tensor at a position that is computed from data")
    return ctx.nothing()


def _pin_all(ctx: MapContext, parts: Parts, reason: str) -> None:
    for maps, _ in parts:
        ctx.pin(maps, reason)


def concat_from_sequence(ctx: MapContext) -> list[Maps]:
    rank = len(ctx.out_shape())
    axis = ctx.axis(0, rank=rank)
    operands = {}
    for k, (maps, shape) in enumerate(ctx.parts(0)):
        if ctx.attr("new_axis", 0):
            maps, shape = tuple(np.expand_dims(f, axis) for f in maps), (*shape[:axis], 1, *shape[axis:])
        elif isinstance(ctx.parts(0), Repeated):
            ctx.pin([f for f in maps if f.shape[axis] > 1], "joins a number of tensors that a loop decides")
            maps = tuple(f for f in maps if f.shape[axis] == 1)
        labels = join_labels(k, rank, axis)
        operands[k] = Operand(labels, shape, named(maps, labels))
    return [simplify(join(ctx, operands, list(operands), axis, lambda k: f"tensor {k} of the sequence"))]


RULES = [
    Rule(
        ("SplitToSequence",),
        "movement",
        split_to_sequence,
        params=(1,),
        adjust=follow_parts,
        sequences=(0,),
        sized_by=(1,),
    ),
    Rule(("SequenceConstruct",), "movement", construct, sequences=(0,)),
    Rule(("SequenceEmpty",), "movement", empty, sequences=(0,)),
    Rule(("SequenceInsert",), "movement", insert, params=(2,), sequences=(0,)),
    Rule(("SequenceErase",), "movement", erase, params=(1,), sequences=(0,)),
    Rule(("SequenceAt",), "movement", at, params=(1,), sequences=(), sized_by=(1,)),
    Rule(("ConcatFromSequence",), "movement", concat_from_sequence, sequences=()),
    Rule(("SequenceLength",), "shape", lambda ctx: ctx.nothing(), sequences=()),
]
