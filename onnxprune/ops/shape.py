"""Operators that read shapes, and generators of index tensors: no units come out of them.

A size that was read from a pruned axis is put back to its original value where it is used in arithmetic (1/sqrt(d) keeps
its d); shape-carrying inputs get their new sizes from the rules of the operators that take them.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.groups.maps import Maps
from onnxprune.groups.observation import Array
from onnxprune.ops.base import Edit, MapContext, Rule


def none(ctx: MapContext) -> list[Maps]:
    return ctx.nothing()


def positions(ctx: MapContext) -> list[Maps]:
    """A tensor made from the size, the values or the positions of another, all of which stay."""
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            ctx.pin(ctx.maps(i), "makes a tensor of its positions")
    return ctx.nothing()


def keep_original_sizes(edit: Edit) -> None:
    start = int(edit.attrs.get("start", 0))
    end = edit.attrs.get("end")
    window = slice(start, None if end is None else int(end))
    old, new = np.array(edit.old(0))[window], np.array(edit.new(0))[window]
    changed = old != new
    if changed.any() and not _reads_only_others(edit, changed):
        edit.restore_counts(old, new)


def _reads_only_others(edit: Edit, changed: Array) -> bool:
    """True when every reader picks sizes that did not change, by constant indices."""
    for node, i in edit.consumers():
        index = edit.constant(node.inputs[1]) if node.op == "Gather" and i == 0 else None
        if index is None or changed[index.ravel()].any():
            return False
    return True


def counts_as_before(ctx: MapContext, axis: int) -> bool:
    """A size that follows the inputs is put back to the original's by its ratio, whatever the inputs."""
    return True


def keep_original_count(edit: Edit) -> None:
    """By the axes that were cut: the others' sizes may change with the inputs."""
    cut = [(old, new) for old, new in zip(edit.old(0), edit.new(0), strict=True) if old != new]
    if cut:
        edit.restore_counts(np.array(prod(old for old, _ in cut)), np.array(prod(new for _, new in cut)))


RULES = [
    Rule(("Shape",), "shape", none, adjust=keep_original_sizes, carries_shape=True, repeats=counts_as_before),
    Rule(("Size",), "shape", none, adjust=keep_original_count, carries_shape=True, repeats=counts_as_before),
    Rule(("Range",), "shape", none, params=(0, 1, 2), sized_by=(0, 1, 2)),
    Rule(("Constant",), "source (no units)", none),
    Rule(("RandomNormal", "RandomUniform"), "source (no units)", none, random=True),
    Rule(("EyeLike", "OneHot"), "pins", positions, note="makes a tensor of positions", sized_by=(1,)),
    Rule(("NonZero",), "pins", positions, note="makes a tensor of positions", picks=(-1,), sized_by=None, whole=True),
]
