"""What a whole-number input is to the graph: a row of a table, a position, a mask; so that inputs can be made up that look like real ones.

An input is followed through nodes that only move values, cast whole numbers, keep them within bounds, or add a constant to them (the offset
of a position table) or multiply them by one. Where it then picks rows of a constant (the Gather of an embedding, OneHot in front of a
product), any row may come; one that is named a mask says which positions count; one that is compared with the positions of an axis is a
length of it; and a single number that is compared with constants (a sample rate) is one of these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import helper

from onnxprune import ops
from onnxprune.groups.analysis import Analysis
from onnxprune.model.graph import Node
from onnxprune.ops.base import Rule
from onnxprune.runtime.inputs import is_mask


@dataclass(frozen=True)
class Role:
    """kind: `index` and `position` pick from `rows` rows; of a `mask`, ones count; a `length` is of an axis of `rows` positions; a `choice`
    is one of `values`; `other`: unknown.
    """

    kind: Literal["index", "position", "mask", "length", "choice", "other"]
    rows: int = 0
    values: tuple[int, ...] = ()


OTHER = Role("other")
MOVED = frozenset({"Reshape", "Slice", "Expand"})
BOUNDED = frozenset({"Min", "Max"})
ORDERED = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})


@dataclass(frozen=True)
class _Origin:
    """A tensor that holds `factor` times an input plus `offset`."""

    name: str
    factor: int = 1
    offset: int = 0

    def rows(self, size: int) -> int:
        """How many values of the input, from 0 on, stay below a size."""
        return max(1, (size - 1 - max(0, self.offset)) // self.factor + 1)


def roles(analysis: Analysis) -> dict[str, Role]:
    """By name of the graph's inputs."""
    inputs = {value.name for value in analysis.model.proto.graph.input}
    whole = {name for name in inputs if name in analysis.feeds[0] and analysis.feeds[0][name].dtype.kind in "iu"}
    origin = {name: _Origin(name) for name in inputs}
    behind = set(inputs)  # tensors that depend on values, not on sizes alone
    rows: dict[str, list[int]] = {}
    lengths: dict[str, list[int]] = {}
    compared: dict[str, set[int]] = {}
    for node in analysis.view.graph.walk():
        rule = ops.rule_for(node.op, node.domain)
        if not rule.carries_shape and behind.intersection(node.inputs):
            behind.update(o for o in node.outputs if o)
        for i, key in enumerate(node.inputs):
            if key not in origin:
                continue
            of = origin[key]
            if (i and i in rule.picks) or (node.op == "OneHot" and i == 0):
                size = _table(analysis, node)
                if size:
                    rows.setdefault(of.name, []).append(of.rows(size))
                continue
            is_pair = len(node.inputs) == 2
            if node.op in ORDERED and node.inputs[1 - i] not in behind:
                size = _positions(analysis, node.inputs[1 - i])
                if size > 1 and of.name in whole:
                    lengths.setdefault(of.name, []).append(size)
                continue
            number = _constant(analysis, node, 1 - i) if is_pair else None
            if node.op == "Equal" and number is not None and of.factor == 1:
                compared.setdefault(of.name, set()).add(number - of.offset)
            found = _followed(node, rule, of, i, number)
            if found is not None:
                origin.update(dict.fromkeys((o for o in node.outputs if o), found))
    masks = {name for name, array in analysis.feeds[0].items() if is_mask(name, array.shape)}
    return {name: _role(name, name in masks, rows.get(name), lengths.get(name), compared.get(name)) for name in inputs}


def _role(name: str, masks: bool, rows: list[int] | None, lengths: list[int] | None, compared: set[int] | None) -> Role:
    if rows:
        return Role("position" if "position" in name.lower() else "index", min(rows))
    if masks:
        return Role("mask")
    if lengths:
        return Role("length", min(lengths))
    return Role("choice", values=tuple(sorted(compared))) if compared else OTHER


def _followed(node: Node, rule: Rule, of: _Origin, i: int, number: int | None) -> _Origin | None:
    """What a node makes of its `i`-th input. number: the constant that is its other one."""
    if number is not None and node.op == "Add":
        return replace(of, offset=of.offset + number)
    if number is not None and node.op == "Sub" and i == 0:
        return replace(of, offset=of.offset - number)
    if number is not None and node.op == "Mul" and number > 0:
        return replace(of, factor=of.factor * number, offset=of.offset * number)
    if node.op in BOUNDED and number is not None:
        return of
    return of if i == 0 and (node.op == "Clip" or _is_kept(node, rule)) else None


def _positions(analysis: Analysis, key: str) -> int:
    """The size of the only axis of a tensor that is longer than one; 0 where there is none, or several."""
    long = [n for n in analysis.observation.shapes.get(analysis.sources.get(key, key), ()) if n > 1]
    return long[0] if len(long) == 1 else 0


def _is_kept(node: Node, rule: Rule) -> bool:
    """Is what a node gives its first input, moved, or numbers of another type?"""
    if node.op == "Cast":
        return helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])).kind in "iuf"
    return rule.mixing_of(node.attrs) == "copy" or node.op in MOVED


def _constant(analysis: Analysis, node: Node, i: int) -> int | None:
    """A single whole number at one of a node's inputs."""
    source = analysis.sources.get(node.inputs[i])
    if source is None:
        return None
    stored = analysis.view.constants[source]
    if tuple(stored.shape) not in ((), (1,)):
        return None
    value = np.asarray(stored.values)
    return int(value.ravel()[0]) if value.dtype.kind in "iu" else None


def _table(analysis: Analysis, node: Node) -> int:
    """How many rows a node picks from, where that is a constant; else 0. OneHot picks from those of an identity matrix."""
    if node.op == "OneHot":
        return _constant(analysis, node, 1) or 0
    source = analysis.sources.get(node.inputs[0])
    if source is None:
        return 0
    shape = tuple(analysis.view.constants[source].shape)
    axis = int(node.attrs.get("axis", 0))
    return int(shape[axis]) if len(shape) > 1 else 0
