"""What a whole-number input is to the graph: a row of a table, a position, a mask; so that inputs can be made up that look like real ones.

An input is followed through nodes that only move values, cast whole numbers, or add a constant to them (the offset of a position table).
Where it then picks rows of a constant (the Gather of an embedding, OneHot in front of a product), any row may come; one that is named a
mask says which positions count; and a single number that is compared with constants (a sample rate) is one of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import helper

from onnxprune import ops
from onnxprune.groups.analysis import Analysis
from onnxprune.model.graph import Node
from onnxprune.ops.base import Rule


@dataclass(frozen=True)
class Role:
    """kind: `index` and `position` pick from `rows` rows; of a `mask`, ones count; a `choice` is one of `values`; `other`: unknown."""

    kind: Literal["index", "position", "mask", "choice", "other"]
    rows: int = 0
    values: tuple[int, ...] = ()


OTHER = Role("other")
MOVED = frozenset({"Reshape", "Slice", "Expand"})


def roles(analysis: Analysis) -> dict[str, Role]:
    """By name of the graph's inputs."""
    inputs = {value.name for value in analysis.model.proto.graph.input}
    origin = {name: (name, 0) for name in inputs}  # by tensor, the input, and what was added to it
    rows: dict[str, list[int]] = {}
    compared: dict[str, set[int]] = {}
    for node in analysis.view.graph.walk():
        rule = ops.rule_for(node.op, node.domain)
        for i, key in enumerate(node.inputs):
            if key not in origin:
                continue
            if (i and i in rule.picks) or (node.op == "OneHot" and i == 0):
                size = _table(analysis, node)
                if size:
                    rows.setdefault(origin[key][0], []).append(max(1, size - max(0, origin[key][1])))
                continue
            number = _constant(analysis, node, 1 - i) if len(node.inputs) == 2 and i < 2 else None
            if node.op == "Equal" and number is not None:
                compared.setdefault(origin[key][0], set()).add(number - origin[key][1])
            offset = _offset(node, i, number) if number is not None else None
            if offset is None and i == 0 and _is_kept(node, rule):
                offset = 0
            if offset is not None:
                name, so_far = origin[key]
                origin.update(dict.fromkeys((o for o in node.outputs if o), (name, so_far + offset)))
    return {name: _role(name, rows.get(name), compared.get(name)) for name in inputs}


def _role(name: str, rows: list[int] | None, compared: set[int] | None) -> Role:
    if rows:
        return Role("position" if "position" in name.lower() else "index", min(rows))
    if "mask" in name.lower():
        return Role("mask")
    return Role("choice", values=tuple(sorted(compared))) if compared else OTHER


def _is_kept(node: Node, rule: Rule) -> bool:
    """Is what a node gives its first input, moved, or whole numbers of another type?"""
    if node.op == "Cast":
        return helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])).kind in "iu"
    return rule.mixing_of(node.attrs) == "copy" or node.op in MOVED


def _offset(node: Node, i: int, number: int) -> int | None:
    """What a node adds to its `i`-th input."""
    if node.op == "Add":
        return number
    return -number if node.op == "Sub" and i == 0 else None


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
