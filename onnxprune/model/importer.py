"""From a model to the graph that the other stages rewrite, and back, losing nothing.

    graph = import_graph(load("model.onnx"))     # a gs.Graph
    proto = export_model(graph, model.proto)     # equal to model.proto, bit for bit, if the graph was left alone

onnx-graphsurgeon is the rewriting graph, but its own import and export forget much: metadata, doc strings, denotations,
types other than tensors, 4-bit data, and they copy what an If branch captures into the branch. So the graph is built
here, every object remembers the proto it came from, and export starts from that proto and changes only what differs.

What the graph looks like:
- `node.attrs`: int, float, str, lists of them; a subgraph is a gs.Graph, a tensor a gs.Constant, a sparse tensor or a
  type its proto. `node.domain` is None where the file has none.
- a skipped input or output is a tensor of name "" (`is_empty()`), at its place, also at the end.
- constants (`constants.Constant`, a gs.Constant) load on `.values`, read-only, and are not kept; `.shape` and
  `.dtype` are free. New values come by assignment, `constant.values = array`, or as a new gs.Constant.
- a `Constant` node with a tensor, a number or a list of numbers (`value`, `value_float(s)`, `value_int(s)`) is no
  node: its output tensor is a gs.Constant. It is written back as a node, at its place. Those with
  `value_string(s)` and `sparse_value` stay nodes.
- an initializer that is also a graph input (a default value) is a gs.Constant and not in `graph.inputs`.
- `graph.constants`: those that the file defines in this graph, whoever reads them.
- a name that a subgraph does not define itself is the tensor *object* of the nearest graph around it that does.
- `variable.shape` is None or a tuple of int, str (symbolic) or None (unknown, also where the file says -1); types
  other than tensors have shape None. Where it is changed, the declarations follow.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, NodeProto

from onnxprune.model import attributes
from onnxprune.model.constants import from_node, from_sparse, from_tensor, is_constant
from onnxprune.model.declarations import Declared, declarations
from onnxprune.model.exporter import export_model as export_model
from onnxprune.model.loaded import LoadedModel

Scope = dict[str, gs.Tensor]


class Variable(gs.Variable):  # type: ignore[misc]
    """A gs.Variable whose copy keeps its type (gs.Graph.copy makes everything a plain tensor otherwise)."""

    def copy(self) -> "Variable":
        return Variable(self.name, self.dtype, self.shape, self.type)


def import_graph(model: LoadedModel) -> gs.Graph:
    """A fresh gs.Graph of the model; the model is not modified and no weight is read."""
    proto = model.proto
    shared = {
        "opset": next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None),
        "import_domains": list(proto.opset_import),
        "producer_name": proto.producer_name,
        "producer_version": proto.producer_version,
    }
    graph = _graph(proto.graph, [], model.folder, shared)
    graph.ir_version = proto.ir_version
    return graph


def _graph(proto: GraphProto, outer: list[Scope], folder: Path | None, shared: dict[str, Any]) -> gs.Graph:
    scope: Scope = {}
    nodes = list(proto.node)
    constant_nodes = _define(scope, proto, nodes, folder)
    scopes = [*outer, scope]
    graph = gs.Graph(
        nodes=[_node(node, scopes, folder, shared) for node in nodes if id(node) not in constant_nodes],
        inputs=[scope[v.name] for v in proto.input if not isinstance(scope[v.name], gs.Constant)],
        outputs=[_find(v.name, scopes) for v in proto.output],
        name=proto.name,
        doc_string=proto.doc_string,
        **shared,
    )
    graph.constants = tuple(t for t in scope.values() if isinstance(t, gs.Constant))
    return graph


def _define(scope: Scope, proto: GraphProto, nodes: list[NodeProto], folder: Path | None) -> set[int]:
    """Put every tensor that this graph defines into `scope`; the ids of the nodes that are constants."""
    declared = declarations(proto)
    for tensor in proto.initializer:
        scope[tensor.name] = from_tensor(tensor, folder)
    for sparse in proto.sparse_initializer:
        scope[sparse.values.name] = from_sparse(sparse, folder)
    for value in proto.input:
        if value.name not in scope:
            scope[value.name] = _variable(value.name, declared)
    constant_nodes = set()
    for node in nodes:
        if is_constant(node):
            scope[node.output[0]] = from_node(node, folder)
            constant_nodes.add(id(node))
            continue
        for name in node.output:
            if name:
                scope[name] = _variable(name, declared)
    return constant_nodes


def _variable(name: str, declared: dict[str, Declared]) -> Variable:
    info = declared.get(name)
    if info is None:
        return Variable(name)
    return Variable(name, dtype=info.dtype, shape=info.shape, type=info.kind)


def _find(name: str, scopes: list[Scope]) -> gs.Tensor:
    if not name:
        return gs.Variable.empty()
    for scope in reversed(scopes):
        if name in scope:
            return scope[name]
    return scopes[-1].setdefault(name, Variable(name))  # `load` refuses such a model


def _node(proto: NodeProto, scopes: list[Scope], folder: Path | None, shared: dict[str, Any]) -> gs.Node:
    attrs: OrderedDict[str, Any] = OrderedDict()
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.GRAPH and not attribute.ref_attr_name:
            attrs[attribute.name] = _graph(attribute.g, scopes, folder, shared)
        else:
            attrs[attribute.name] = attributes.decode(attribute, folder)
    node = gs.Node(
        op=proto.op_type,
        name=proto.name,
        attrs=attrs,
        inputs=[_find(name, scopes) for name in proto.input],
        outputs=[_find(name, scopes[-1:]) for name in proto.output],
        domain=proto.domain if proto.HasField("domain") else None,
    )
    node.origin = proto
    return node
