"""Give nodes of a model other constants, wherever they are: at the top or inside a branch.

A constant that only this input reads is changed where it is stored (initializer or Constant node) and keeps its name;
otherwise the node gets one of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, ModelProto, numpy_helper

from onnxprune.core.flat import SEPARATOR, subgraphs
from onnxprune.core.observation import Array


def with_constants(proto: ModelProto, changes: dict[tuple[str, int], Array]) -> ModelProto:
    """A copy in which input i of the node with key k is `changes[k, i]`."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    reads: Counter[str] = Counter()
    names: set[str] = set()
    _count(copy.graph, reads, names)
    _patch(copy.graph, "", changes, reads, names)
    return copy


def constants_at(proto: ModelProto, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Array]:
    """The constants at inputs of nodes, by (node key, input); left out where there is none."""
    found: dict[tuple[str, int], Array] = {}
    _collect(proto.graph, "", set(places), found)
    return {place: found[place] for place in places if place in found}


def _collect(graph: GraphProto, path: str, places: set[tuple[str, int]], found: dict[tuple[str, int], Array]) -> None:
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            stored.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    for k, node in enumerate(graph.node):
        key = path + next((o for o in node.output if o), f"#{k}")
        for i, name in enumerate(node.input):
            if (key, i) in places and name in stored:
                found[key, i] = numpy_helper.to_array(stored[name])
        for attribute, sub in subgraphs(node):
            _collect(sub, f"{key}.{attribute}{SEPARATOR}", places, found)


def _count(graph: GraphProto, reads: Counter[str], names: set[str]) -> None:
    reads.update(o.name for o in graph.output)
    names.update(t.name for t in graph.initializer)
    for node in graph.node:
        reads.update(node.input)
        names.update(node.output)
        for _, sub in subgraphs(node):
            _count(sub, reads, names)


def _patch(
    graph: GraphProto, path: str, changes: dict[tuple[str, int], Array], reads: Counter[str], names: set[str]
) -> None:
    stored = {t.name: t for t in graph.initializer}
    made = {n.output[0]: n for n in graph.node if n.op_type == "Constant"}
    inputs = {i.name for i in graph.input}
    for k, node in enumerate(list(graph.node)):
        key = path + next((o for o in node.output if o), f"#{k}")
        for i in sorted(i for owner, i in changes if owner == key):
            value = np.ascontiguousarray(changes[key, i])
            while len(node.input) <= i:
                node.input.append("")
            name = node.input[i]
            if name in stored and reads[name] == 1 and name not in inputs:
                stored[name].CopyFrom(_tensor(value, name, stored[name].doc_string))
                continue
            if name in made and reads[name] == 1 and any(a.name == "value" for a in made[name].attribute):
                attribute = next(a for a in made[name].attribute if a.name == "value")
                attribute.t.CopyFrom(_tensor(value, attribute.t.name, attribute.t.doc_string))
                continue
            base = f"{name or node.output[0]}_refit"
            number = 0
            while (fresh := f"{base}{number or ''}") in names:
                number += 1
            names.add(fresh)
            reads[name] -= 1
            reads[fresh] = 1
            graph.initializer.add().CopyFrom(_tensor(value, fresh, ""))
            node.input[i] = fresh
            if name in stored and not reads[name] and name not in inputs:
                graph.initializer.remove(stored.pop(name))
        for attribute, sub in subgraphs(node):
            _patch(sub, f"{key}.{attribute}{SEPARATOR}", changes, reads, names)


def _tensor(value: Array, name: str, doc: str):  # type: ignore[no-untyped-def]
    tensor = numpy_helper.from_array(value, name)
    tensor.doc_string = doc
    return tensor
