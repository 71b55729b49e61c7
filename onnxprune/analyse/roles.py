"""What a whole-number input is to the graph: a row of a table, a position, a mask; so that inputs can be made up that look like real ones.

An input is followed through nodes that only move values. Where it then picks rows of a constant (the Gather of an embedding), any row may
come, and one that is named a mask says which positions count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxprune import ops
from onnxprune.groups.analysis import Analysis
from onnxprune.model.graph import Node


@dataclass(frozen=True)
class Role:
    """kind: `index` and `position` pick from `rows` rows; of a `mask`, ones count; `other`: nothing is known."""

    kind: Literal["index", "position", "mask", "other"]
    rows: int = 0


OTHER = Role("other")


def roles(analysis: Analysis) -> dict[str, Role]:
    """By name of the graph's inputs."""
    inputs = {value.name for value in analysis.model.proto.graph.input}
    origin = {name: name for name in inputs}
    rows: dict[str, list[int]] = {}
    for node in analysis.view.graph.walk():
        rule = ops.rule_for(node.op, node.domain)
        for i, key in enumerate(node.inputs):
            if key not in origin:
                continue
            if i and i in rule.picks:
                size = _table(analysis, node)
                if size:
                    rows.setdefault(origin[key], []).append(size)
            elif i == 0 and rule.mixing_of(node.attrs) == "copy":
                origin.update(dict.fromkeys((o for o in node.outputs if o), origin[key]))
    return {name: _role(name, rows.get(name)) for name in inputs}


def _role(name: str, rows: list[int] | None) -> Role:
    if rows:
        return Role("position" if "position" in name.lower() else "index", min(rows))
    return Role("mask") if "mask" in name.lower() else OTHER


def _table(analysis: Analysis, node: Node) -> int:
    """How many rows a node picks from, where that is a constant; else 0."""
    source = analysis.sources.get(node.inputs[0])
    if source is None:
        return 0
    shape = tuple(analysis.view.constants[source].shape)
    axis = int(node.attrs.get("axis", 0))
    return int(shape[axis]) if len(shape) > 1 else 0
