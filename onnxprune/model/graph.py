"""A read-only view of a graph: nodes in order, tensors by key, subgraphs nested.

Keys name tensors and nodes uniquely over all scopes: a top-level tensor's key is its name, one inside the `then_branch` of
the node that produces `y` is `y.then_branch//name`; a node's key is that of its first output. Two imports of the same file
give the same keys, so a decision made on one can be carried out on the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. `inputs` and `outputs` are tensor keys, "" where skipped; `gs_node` is the graphsurgeon node."""

    key: str
    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    gs_node: gs.Node
    subgraphs: dict[str, Graph] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op} '{self.name or self.key}'"


@dataclass(frozen=True, eq=False)
class Graph:
    """A (sub)graph: `path` is "" at the top, else `NODE.ATTRIBUTE/`."""

    path: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def walk(self) -> Iterator[Node]:
        """All nodes, those of subgraphs before the node that holds them."""
        for node in self.nodes:
            for sub in node.subgraphs.values():
                yield from sub.walk()
            yield node


@dataclass(frozen=True, eq=False)
class View:
    """The whole model: `tensors` maps each key to its graphsurgeon tensor, `constants` holds those with known values."""

    graph: Graph
    tensors: dict[str, gs.Tensor]
    constants: dict[str, gs.Constant]
    opsets: dict[str, int]
    gs_graphs: dict[str, gs.Graph]

    @property
    def keys(self) -> dict[int, str]:
        return {id(tensor): key for key, tensor in self.tensors.items()}

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 1))


def name_of(key: str) -> str:
    """The tensor's name in its own graph."""
    return key.rsplit("//", 1)[-1]


def view(graph: gs.Graph, opsets: dict[str, int]) -> View:
    """Index a graphsurgeon graph (not modified)."""
    tensors: dict[str, gs.Tensor] = {}
    constants: dict[str, gs.Constant] = {}
    known: dict[int, str] = {}
    homes: dict[int, str] = {}  # constants, which branches may read first: where they are defined
    graphs: dict[str, gs.Graph] = {}

    def key_of(tensor: gs.Tensor, path: str) -> str:
        if not tensor.name:
            return ""
        found = known.get(id(tensor))
        if found is None:
            found = homes.get(id(tensor), path) + tensor.name
            known[id(tensor)] = found
            tensors[found] = tensor
            if isinstance(tensor, gs.Constant):
                constants[found] = tensor
        return found

    def build(sub: gs.Graph, path: str) -> Graph:
        graphs[path] = sub
        homes.update((id(t), path) for t in getattr(sub, "constants", ()))
        inputs = tuple(key_of(t, path) for t in sub.inputs)
        nodes = []
        for i, node in enumerate(sub.nodes):
            first = next((t.name for t in node.outputs if t.name), f"#{i}")
            node_key = path + first
            node_inputs = tuple(key_of(t, path) for t in node.inputs)
            subgraphs = {
                name: build(value, f"{node_key}.{name}//")
                for name, value in node.attrs.items()
                if isinstance(value, gs.Graph)
            }
            outputs = tuple(key_of(t, path) for t in node.outputs)
            nodes.append(
                Node(node_key, node.op, node.domain or "", node.name, node_inputs, outputs, node.attrs, node, subgraphs)
            )
        outputs = tuple(key_of(t, path) for t in sub.outputs)
        return Graph(path, tuple(nodes), inputs, outputs)

    top = build(graph, "")
    return View(top, tensors, constants, opsets, graphs)
