"""Give nodes of a model other constants, wherever they are: at the top or inside a branch.

A constant that only this input reads is changed where it is stored (initializer or Constant node) and keeps its name, a sparse one
becomes dense; otherwise the node gets one of its own. Where initializers are declared as inputs (IR version 3 wants that), so are new ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, helper, numpy_helper

from onnxprune.model.branches import SEPARATOR, subgraphs
from onnxprune.model.constants import tensor_in
from onnxprune.model.loaded import Model
from onnxprune.model.tensors import Array


def with_constants(proto: ModelProto, changes: dict[tuple[str, int], Array]) -> ModelProto:
    """A copy in which input i of the node with key k is `changes[k, i]`."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    changes = _in_place(copy, changes)
    reads: Counter[str] = Counter()
    names: set[str] = set()
    _count(copy.graph, reads, names)
    stale: set[str] = set()
    _patch(copy.graph, "", changes, reads, names, stale)
    _sweep(copy.graph, reads, stale)
    return copy


@dataclass(frozen=True)
class Shared:
    """A stored constant, and every (node key, input) that reads it; a graph that gives it as an output counts as ("", -1)."""

    tensor: TensorProto
    readers: list[tuple[str, int]]


def shared(proto: ModelProto) -> list[Shared]:
    """Constants that more than one node reads, wherever these are."""
    found: list[Shared] = []
    _share(proto.graph, "", {}, found)
    return [x for x in found if len(x.readers) > 1]


def _share(graph: GraphProto, path: str, outer: dict[str, Shared], found: list[Shared]) -> None:
    own = {v.name for v in graph.input} | {o for n in graph.node for o in n.output}
    scope = {name: x for name, x in outer.items() if name not in own}
    held = {t.name: t for t in graph.initializer}
    held |= {n.output[0]: t for n in graph.node if (t := tensor_in(n)) is not None}
    for name, tensor in held.items():
        scope[name] = Shared(tensor, [])
        found.append(scope[name])
    for k, node in enumerate(graph.node):
        key = path + next((o for o in node.output if o), f"#{k}")
        for i, name in enumerate(node.input):
            if name in scope:
                scope[name].readers.append((key, i))
        for attribute, sub in subgraphs(node):
            _share(sub, f"{key}.{attribute}{SEPARATOR}", scope, found)
    for value in graph.output:
        if value.name in scope:
            scope[value.name].readers.append(("", -1))


def _in_place(proto: ModelProto, changes: dict[tuple[str, int], Array]) -> dict[tuple[str, int], Array]:
    """Write what becomes the same for all readers of a constant where it is stored; the other changes."""
    left = dict(changes)
    for constant in shared(proto):
        values = [left.get(place) for place in constant.readers]
        first = values[0]
        if first is not None and all(v is not None and np.array_equal(v, first) for v in values):
            tensor = constant.tensor
            if tuple(tensor.dims) == first.shape:
                tensor.CopyFrom(_tensor(np.ascontiguousarray(first), tensor.name, tensor.doc_string))
                left = {place: v for place, v in left.items() if place not in constant.readers}
    return left


def constants_at(model: Model, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Array]:
    """The constants at inputs of nodes, by (node key, input); left out where there is none."""
    found: dict[tuple[str, int], TensorProto] = {}
    _collect(model.proto.graph, "", set(places), found, {})
    return {p: numpy_helper.to_array(found[p], base_dir=str(model.folder or "")) for p in places if p in found}


def digest_of(values: dict[tuple[str, int], Array]) -> str | None:
    """SHA-256 of constants with their types and shapes, in their order; None of none."""
    if not values:
        return None
    found = hashlib.sha256()
    for (node, i), value in values.items():
        found.update(f"{node}:{i} {value.dtype.name} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def _collect(
    graph: GraphProto,
    path: str,
    places: set[tuple[str, int]],
    found: dict[tuple[str, int], TensorProto],
    outer: dict[str, TensorProto],
) -> None:
    made = {o for n in graph.node for o in n.output}
    stored = {name: t for name, t in outer.items() if name not in made} | {t.name: t for t in graph.initializer}
    for node in graph.node:
        tensor = tensor_in(node)
        if tensor is not None:
            stored[node.output[0]] = tensor
    for k, node in enumerate(graph.node):
        key = path + next((o for o in node.output if o), f"#{k}")
        for i, name in enumerate(node.input):
            if (key, i) in places and name in stored:
                found[key, i] = stored[name]
        for attribute, sub in subgraphs(node):
            _collect(sub, f"{key}.{attribute}{SEPARATOR}", places, found, stored)


def inputs_at(proto: ModelProto, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """The names of inputs of nodes, by (node key, input); left out where there is none."""
    found: dict[tuple[str, int], str] = {}
    _names(proto.graph, "", set(places), found)
    return found


def _names(graph: GraphProto, path: str, places: set[tuple[str, int]], found: dict[tuple[str, int], str]) -> None:
    for k, node in enumerate(graph.node):
        key = path + next((o for o in node.output if o), f"#{k}")
        found.update({(key, i): name for i, name in enumerate(node.input) if (key, i) in places})
        for attribute, sub in subgraphs(node):
            _names(sub, f"{key}.{attribute}{SEPARATOR}", places, found)


def _count(graph: GraphProto, reads: Counter[str], names: set[str]) -> None:
    reads.update(o.name for o in graph.output)
    names.update(t.name for t in graph.initializer)
    for node in graph.node:
        reads.update(node.input)
        names.update(node.output)
        for _, sub in subgraphs(node):
            _count(sub, reads, names)


def _patch(
    graph: GraphProto,
    path: str,
    changes: dict[tuple[str, int], Array],
    reads: Counter[str],
    names: set[str],
    stale: set[str],
) -> None:
    """Write the changes. `stale`: names that lost a reader or their shape."""
    stored = {t.name: t for t in graph.initializer}
    sparse = {t.values.name: t for t in graph.sparse_initializer}
    made = {n.output[0]: t for n in graph.node if (t := tensor_in(n)) is not None}
    inputs = {i.name: i for i in graph.input}
    must_declare = any(name in inputs for name in stored)  # before IR version 4, every initializer is an input
    for k, node in enumerate(list(graph.node)):
        key = path + next((o for o in node.output if o), f"#{k}")
        for i in sorted(i for owner, i in changes if owner == key):
            value = np.ascontiguousarray(changes[key, i])
            while len(node.input) <= i:
                node.input.append("")
            name = node.input[i]
            if name in stored and reads[name] == 1:
                if tuple(stored[name].dims) != value.shape:
                    stale.add(name)
                stored[name].CopyFrom(_tensor(value, name, stored[name].doc_string))
                if name in inputs:
                    inputs[name].type.CopyFrom(_type(value))
                continue
            if name in sparse and reads[name] == 1 and name not in inputs:
                graph.sparse_initializer.remove(sparse[name])
                graph.initializer.add().CopyFrom(_tensor(value, name, ""))
                continue
            if name in made and reads[name] == 1:
                made[name].CopyFrom(_tensor(value, made[name].name, made[name].doc_string))
                continue
            base = f"{name or node.output[0]}_refit"
            number = 0
            while (fresh := f"{base}{number or ''}") in names:
                number += 1
            names.add(fresh)
            reads[name] -= 1
            reads[fresh] = 1
            graph.initializer.add().CopyFrom(_tensor(value, fresh, ""))
            if must_declare:
                graph.input.add(name=fresh).type.CopyFrom(_type(value))
            node.input[i] = fresh
            stale.add(name)
        for attribute, sub in subgraphs(node):
            _patch(sub, f"{key}.{attribute}{SEPARATOR}", changes, reads, names, stale)


def _sweep(graph: GraphProto, reads: Counter[str], stale: set[str]) -> None:
    """Drop constants that nobody reads any more, what only made them, and what was said of their shapes."""
    for node in reversed(list(graph.node)):
        outputs = [o for o in node.output if o]
        if any(o in stale for o in outputs) and not any(reads[o] for o in outputs) and not [*subgraphs(node)]:
            reads.subtract(x for x in node.input if x)
            stale.update(x for x in node.input if x)
            graph.node.remove(node)
        for _, sub in subgraphs(node):
            _sweep(sub, reads, stale)
    inputs = {i.name: i for i in graph.input}
    for tensor in list(graph.initializer):
        if tensor.name in stale and not reads[tensor.name]:
            if tensor.name in inputs:
                graph.input.remove(inputs[tensor.name])
            graph.initializer.remove(tensor)
    known = {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    for info in list(graph.value_info):
        if info.name in stale and (info.name not in known or reads[info.name] == 1):
            graph.value_info.remove(info)


def _type(value: Array) -> TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _tensor(value: Array, name: str, doc: str):  # type: ignore[no-untyped-def]
    tensor = numpy_helper.from_array(value, name)
    tensor.doc_string = doc
    return tensor
