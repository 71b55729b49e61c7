"""Write a graph back into a model: start from the original's protos and change only what differs.

Three questions are answered for each graph, from the outside in:

1. which constants live here? One that came from here stays here, in its old form and place; one that the file
   itself did not use stays too; one that lost its last consumer is dropped; a new one goes to the innermost
   graph that holds all its consumers. Before IR version 4 an initializer has to be a graph input: a new constant is a
   Constant node there, or, where that does not hold its type, an initializer and input of the outermost graph.
2. which nodes are as they were? They are copied whole; others are patched field by field.
3. which declarations (inputs, outputs, value_info) still hold? Those of tensors that are gone are dropped, those whose
   tensor changed its shape or type are patched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from onnxprune.model import attributes, declarations
from onnxprune.model.constants import (
    Constant,
    is_constant,
    node_holds,
    write_new_node,
    write_node,
    write_tensor,
)
from onnxprune.model.declarations import Declared
from onnxprune.model.protobuf import copy_fields, copy_unknown_fields
from onnxprune.model.schema import schema_of
from onnxprune.model.tensors import StoredSparseValues

FIRST_IR_WITH_FREE_INITIALIZERS = 4


def export_model(graph: gs.Graph, original: ModelProto) -> ModelProto:
    """The model that `original` becomes with `graph` as its graph; `graph` and `original` are not modified.

    Untouched tensors are copied as they are (external ones stay references, which hold beside the original's folder).
    Nodes must be in topological order. New variables are declared in value_info if their dtype is known.
    """
    model = ModelProto()
    copy_fields(original, model, "graph")
    _Export(original).graph(graph, original.graph, model.graph)
    return model


def node_writer(original: ModelProto) -> Callable[[gs.Node], NodeProto]:
    """Writes single nodes of a graph that was imported from `original`, as they are now; what they hold of subgraphs is written as well."""
    export = _Export(original)

    def written(node: gs.Node) -> NodeProto:
        proto = NodeProto()
        export._node(node, node.__dict__.get("origin"), proto)
        return proto

    return written


class _Export:
    """One export; guards which constants have been written, so that each is written once."""

    def __init__(self, model: ModelProto) -> None:
        self.top = model.graph
        self.versions = {o.domain or "ai.onnx": o.version for o in model.opset_import}
        self.has_free_initializers = model.ir_version >= FIRST_IR_WITH_FREE_INITIALIZERS
        self.written: set[int] = set()
        self.homes: dict[int, int] = {}
        self._alive: list[Any] = [model.graph]
        _homes(model.graph, self.homes, self._alive)

    def graph(self, graph: gs.Graph, original: GraphProto, target: GraphProto) -> None:
        protos = list(original.node)
        taken = self._is_input if original is self.top else _is_none
        local = _Local(original, protos, graph, self.homes, self.written, taken)
        self.written.update(id(c) for c in (*local.heirs.values(), *local.new))
        self._header(graph, original, target)
        self._initializers(local, original, target)
        self._nodes(graph, local, protos, target)
        self._declarations(graph, local, original, target)

    def _header(self, graph: gs.Graph, original: GraphProto, target: GraphProto) -> None:
        for field, now in (("name", graph.name), ("doc_string", graph.doc_string)):
            if now != getattr(original, field):
                setattr(target, field, now)
            elif original.HasField(field):
                setattr(target, field, getattr(original, field))
        target.metadata_props.extend(original.metadata_props)
        copy_unknown_fields(original, target)

    def _initializers(self, local: "_Local", original: GraphProto, target: GraphProto) -> None:
        for tensor in original.initializer:
            constant = local.heirs.get(id(tensor))
            if constant is not None:
                write_tensor(target.initializer.add(), constant, tensor, constant.name)
            elif tensor.name in local.orphans:
                target.initializer.append(tensor)
        for sparse in original.sparse_initializer:
            constant = local.heirs.get(id(sparse))
            if constant is None:
                if sparse.values.name in local.orphans:
                    target.sparse_initializer.append(sparse)
            elif isinstance(constant._values, StoredSparseValues):
                new = target.sparse_initializer.add()
                new.CopyFrom(constant._values.sparse)
                if new.values.name != constant.name:
                    new.values.name = constant.name
            else:
                write_tensor(target.initializer.add(), constant, None, constant.name)
        for constant in local.new:
            if self.has_free_initializers or self._is_input(constant):
                write_tensor(target.initializer.add(), constant, None, constant.name)
            else:
                write_new_node(target.node.add(), constant)

    def _is_input(self, constant: gs.Constant) -> bool:
        """Must this new constant be a graph input, with a default value?"""
        opset = self.versions.get("ai.onnx", 1)
        return not self.has_free_initializers and not node_holds(np.dtype(constant.dtype), opset)

    def _nodes(self, graph: gs.Graph, local: "_Local", protos: list[NodeProto], target: GraphProto) -> None:
        """Nodes in the graph's order; Constant nodes at their old place, or earlier if a consumer moved before it."""
        position = {id(p): i for i, p in enumerate(protos)}
        waiting = dict(local.constant_nodes)
        by_tensor = {id(c): i for i, (_, c) in waiting.items() if c is not None}
        order = iter(sorted(waiting))
        upcoming = next(order, None)

        def emit(index: int) -> None:
            proto, constant = waiting.pop(index)
            if constant is None:
                target.node.append(proto)
            else:
                write_node(target.node.add(), constant, proto)

        def emit_before(limit: int) -> None:
            nonlocal upcoming
            while upcoming is not None and upcoming < limit:
                if upcoming in waiting:
                    emit(upcoming)
                upcoming = next(order, None)

        by_name = None
        for node in graph.nodes:
            origin = node.__dict__.get("origin")
            if origin is None or id(origin) not in position:
                if by_name is None:
                    by_name = {o: p for p in protos for o in p.output if o}
                origin = _namesake(node, by_name)
            if origin is not None:
                emit_before(position[id(origin)])
            if waiting:
                for tensor in _reads(node):
                    index = by_tensor.get(id(tensor))
                    if index is not None and index in waiting:
                        emit(index)
            self._node(node, origin, target.node.add())
        emit_before(len(protos))

    def _node(self, node: gs.Node, origin: NodeProto | None, target: NodeProto) -> None:
        has_graph = any(isinstance(v, gs.Graph) for v in node.attrs.values())
        inputs = [t.name for t in node.inputs]
        outputs = [t.name for t in node.outputs]
        if origin is None:
            target.input.extend(inputs)
            target.output.extend(outputs)
            target.op_type = node.op
            self._patch_names(node, target)
            self._attributes(node, [], target)
            return
        same_attributes = not has_graph and _same_attributes(node, origin)
        if has_graph or not same_attributes:
            copy_fields(origin, target, "attribute")
            self._attributes(node, origin.attribute, target)
        else:
            target.CopyFrom(origin)
        if target.input != inputs:
            del target.input[:]
            target.input.extend(inputs)
        if target.output != outputs:
            del target.output[:]
            target.output.extend(outputs)
        if target.op_type != node.op:
            target.op_type = node.op
        self._patch_names(node, target)

    @staticmethod
    def _patch_names(node: gs.Node, target: NodeProto) -> None:
        if target.name != node.name:
            target.name = node.name
        if target.domain != (node.domain or ""):
            target.domain = node.domain or ""

    def _attributes(self, node: gs.Node, originals: Iterable[AttributeProto], target: NodeProto) -> None:
        left = dict(node.attrs)
        for original in originals:
            if original.name not in left:
                continue
            value = left.pop(original.name)
            if isinstance(value, gs.Graph):
                self._subgraph(value, original, target.attribute.add())
            elif attributes.is_unchanged(original, value):
                target.attribute.append(original)
            else:
                new = target.attribute.add()
                attributes.write(new, original.name, value, original, original.type)
        for name, value in left.items():
            new = target.attribute.add()
            if isinstance(value, gs.Graph):
                empty = AttributeProto(name=name, type=AttributeProto.GRAPH)
                self._subgraph(value, empty, new)
            else:
                schema = schema_of(node.op, node.domain or "", self._version(node))
                kind = schema.types.get(name) if schema is not None else None
                attributes.write(new, name, value, None, kind)

    def _version(self, node: gs.Node) -> int:
        return int(self.versions.get(node.domain or "ai.onnx", 1))

    def _subgraph(self, graph: gs.Graph, original: AttributeProto, target: AttributeProto) -> None:
        copy_fields(original, target, "g")
        target.g.SetInParent()
        self.graph(graph, original.g, target.g)

    def _declarations(self, graph: gs.Graph, local: "_Local", original: GraphProto, target: GraphProto) -> None:
        declared = declarations.declarations(original)
        gone = local.names - set(local.tensors)
        lists = (
            (target.input, _declared_in_order(original.input, graph.inputs, local, True)),
            (target.output, _declared_in_order(original.output, graph.outputs, local, False)),
            (target.value_info, [v for v in original.value_info if v.name not in gone]),
        )
        for values, wanted in lists:
            for value in wanted:
                new = values.add()
                new.CopyFrom(value)
                if value.name in declared:
                    _update(new, declared, local)
        defaults = [c for c in local.new if self._is_input(c)]
        target.input.extend(declarations.new_value(c.name, declarations.of_tensor(c)) for c in defaults)
        listed = local.names | set(declared) | {t.name for t in (*graph.inputs, *graph.outputs)}
        for name, tensor in local.tensors.items():
            if isinstance(tensor, gs.Variable) and name not in listed and tensor.dtype is not None:
                target.value_info.append(declarations.new_value(name, declarations.of_tensor(tensor)))
        target.quantization_annotation.extend(a for a in original.quantization_annotation if a.tensor_name not in gone)


@dataclass
class _Reference:
    """A tensor that a graph refers to: itself, or through how many of its subgraphs."""

    tensor: gs.Tensor
    is_direct: bool = False
    n_subgraphs: int = 0


class _Local:
    """The constants and names of one graph: what the file had, and what the graph now makes of it.

    heirs: id of a proto of the file -> the constant that is written in its place.
    new: constants that belong here and have no such place. taken_up: does this graph hold such a new one of its subgraphs?
    constant_nodes: index in the file -> (the node, its constant, or None if nobody ever used it).
    """

    def __init__(
        self,
        original: GraphProto,
        protos: list[NodeProto],
        graph: gs.Graph,
        homes: dict[int, int],
        written: set[int],
        taken_up: Callable[[gs.Constant], bool],
    ) -> None:
        used = _used(graph)
        mine = [
            u.tensor
            for u in used.values()
            if isinstance(u.tensor, gs.Constant)
            and id(u.tensor) not in written
            and (_belongs(u, homes, id(original)) or (_home(u, homes) is None and taken_up(u.tensor)))
        ]
        places: list[tuple[str, Any]] = [(t.name, t) for t in original.initializer]
        places += [(s.values.name, s) for s in original.sparse_initializer]
        stand_ins = {i: p for i, p in enumerate(protos) if is_constant(p)}
        places += [(p.output[0], p) for p in stand_ins.values()]
        ids = {id(p) for _, p in places}

        self.heirs = {id(c.origin): c for c in mine if id(getattr(c, "origin", None)) in ids}
        at_home = {id(c) for c in self.heirs.values()}
        homeless = {c.name: c for c in mine if id(c) not in at_home}
        for name, proto in places:
            if name in homeless and id(proto) not in self.heirs:
                self.heirs[id(proto)] = homeless.pop(name)
        self.new = list(homeless.values())

        ever_used = _names_read(original)
        taken = {t.name for t in (*graph.inputs, *mine)}
        taken.update(t.name for node in graph.nodes for t in node.outputs)
        self.orphans = {n for n, _ in places if n not in ever_used and n not in taken}
        self.constant_nodes = {
            i: (p, self.heirs.get(id(p)))
            for i, p in stand_ins.items()
            if id(p) in self.heirs or p.output[0] in self.orphans
        }
        self.names = _names_defined(original)

        self.tensors: dict[str, gs.Tensor | None] = dict.fromkeys(self.orphans)
        for tensors in (graph.inputs, self.heirs.values(), self.new):
            self.tensors.update((t.name, t) for t in tensors)
        for node in graph.nodes:
            self.tensors.update((t.name, t) for t in node.outputs if t.name)


def _belongs(use: _Reference, homes: dict[int, int], here: int) -> bool:
    """Whether a constant that no outer graph holds is to be held by this one."""
    home = _home(use, homes)
    return home == here or use.is_direct or (home is None and use.n_subgraphs > 1)


def _home(use: _Reference, homes: dict[int, int]) -> int | None:
    """The id of the graph that the file has a constant in."""
    return homes.get(id(getattr(use.tensor, "origin", None)))


def _is_none(constant: gs.Constant) -> bool:
    return False


def _used(graph: gs.Graph) -> dict[int, _Reference]:
    """All tensors that a graph reads, by id, in order of first use; those of its subgraphs included."""
    used: dict[int, _Reference] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            used.setdefault(id(tensor), _Reference(tensor)).is_direct = True
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                for key, use in _used(value).items():
                    used.setdefault(key, _Reference(use.tensor)).n_subgraphs += 1
    for tensor in graph.outputs:
        used.setdefault(id(tensor), _Reference(tensor)).is_direct = True
    return used


def _reads(node: gs.Node) -> Iterator[gs.Tensor]:
    yield from node.inputs
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield from (use.tensor for use in _used(value).values())


def _names_read(graph: GraphProto) -> set[str]:
    """Names that a graph of the file reads, itself or in a subgraph that does not define them."""
    names = {v.name for v in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                names |= _names_read(attribute.g) - _names_defined(attribute.g)
    return names


def _names_defined(graph: GraphProto) -> set[str]:
    names = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    names.update(s.values.name for s in graph.sparse_initializer)
    names.update(name for node in graph.node for name in node.output)
    names.discard("")  # skipped outputs
    return names


def _homes(graph: GraphProto, into: dict[int, int], alive: list[Any]) -> None:
    """For every proto that a constant can come from, the id of its graph; `alive` keeps the ids from being re-used."""
    nodes = list(graph.node)
    for protos in (list(graph.initializer), list(graph.sparse_initializer), nodes):
        alive += protos
        into.update((id(p), id(graph)) for p in protos)
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                alive.append(attribute.g)
                _homes(attribute.g, into, alive)


def _namesake(node: gs.Node, by_output: dict[str, NodeProto]) -> NodeProto | None:
    """The file's node that a node without memory (a gs copy) stands for: same output, same operator."""
    proto = next((by_output[t.name] for t in node.outputs if t.name in by_output), None)
    if proto is not None and (proto.op_type, proto.domain) == (node.op, node.domain or ""):
        return proto
    return None


def _same_attributes(node: gs.Node, origin: NodeProto) -> bool:
    if len(node.attrs) != len(origin.attribute):
        return False
    return all(a.name in node.attrs and attributes.is_unchanged(a, node.attrs[a.name]) for a in origin.attribute)


def _declared_in_order(
    old: Sequence[ValueInfoProto], now: Sequence[gs.Tensor], local: _Local, are_inputs: bool
) -> list[ValueInfoProto]:
    """The file's declarations in the graph's order; inputs that are also constants are not in `now` but stay."""
    old = [v for v in old if v.name in local.tensors or not are_inputs]
    constants = [v for v in old if are_inputs and _is_default(v.name, local)]
    names = [t.name for t in now]
    if [v.name for v in old if not (are_inputs and _is_default(v.name, local))] == names:
        return list(old)
    by_name = {v.name: v for v in old}
    listed = [by_name.get(t.name) or declarations.new_value(t.name, declarations.of_tensor(t)) for t in now]
    return listed + constants


def _is_default(name: str, local: _Local) -> bool:
    return not isinstance(local.tensors.get(name), gs.Variable)


def _update(value: ValueInfoProto, declared: dict[str, Declared], local: _Local) -> None:
    """Patch one declaration if its tensor is no longer what the file declares."""
    tensor = local.tensors.get(value.name)
    if tensor is None or (isinstance(tensor, Constant) and tensor.is_unchanged):
        return
    now, before = declarations.of_tensor(tensor), declared[value.name]
    if isinstance(tensor, gs.Constant):
        now = replace(now, kind=before.kind)
    if now != before:
        declarations.patch(value, before, now)
