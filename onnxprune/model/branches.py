"""Graphs within nodes: the branches of an If, the bodies of loops, and what they read from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

SEPARATOR = "//"


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Attribute name and graph of every subgraph of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def captured(graph: GraphProto) -> set[str]:
    """Names that a graph and its subgraphs read from outside."""
    inside = (
        {i.name for i in graph.input}
        | {t.name for t in graph.initializer}
        | {t.values.name for t in graph.sparse_initializer}
    )
    read: set[str] = {o.name for o in graph.output}
    for node in graph.node:
        read.update(node.input)
        for _, sub in subgraphs(node):
            read |= captured(sub)
        inside.update(node.output)
    return read - inside - {""}


def opset_of(proto: ModelProto) -> int:
    """Version of ONNX's own operators."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def shell(proto: ModelProto) -> ModelProto:
    """The model without its graph."""
    empty = ModelProto(ir_version=proto.ir_version)
    empty.opset_import.extend(proto.opset_import)
    empty.functions.extend(proto.functions)
    return empty


def showing(proto: ModelProto, names: Iterable[str]) -> ModelProto:
    """The model with these tensors as outputs, beside its own; a copy where it has to be one."""
    known = {o.name for o in proto.graph.output}
    more = [n for n in dict.fromkeys(names) if n not in known]
    if not more:
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in more)
    return copy


def leading_to(needed: set[str], graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes that the tensors `needed` follow from, last one first, and those without outputs. What a node reads, captures of its subgraphs
    included, joins `needed` when the next node is asked for.
    """
    for node in reversed(graph.node):
        if not node.output or needed.intersection(node.output):
            yield node
            needed.update(node.input)
            for _, sub in subgraphs(node):
                needed |= captured(sub)


def making(proto: ModelProto, names: Iterable[str]) -> ModelProto:
    """The part of the model that these tensors follow from, with them as its only outputs."""
    wanted = list(dict.fromkeys(names))
    needed = set(wanted)
    nodes = list(leading_to(needed, proto.graph))
    part = shell(proto)
    part.graph.name = proto.graph.name
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in proto.graph.initializer if t.name in needed)
    part.graph.sparse_initializer.extend(t for t in proto.graph.sparse_initializer if t.values.name in needed)
    part.graph.input.extend(i for i in proto.graph.input if i.name in needed)
    known = {v.name: v for v in (*proto.graph.output, *proto.graph.value_info)}
    part.graph.value_info.extend(v for v in proto.graph.value_info if v.name in needed and v.name not in wanted)
    part.graph.output.extend(known.get(n) or helper.make_empty_tensor_value_info(n) for n in wanted)
    return part


def every_graph(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all below it, outer ones first."""
    graphs = [graph]
    for each in graphs:
        yield each
        graphs += [sub for node in each.node for _, sub in subgraphs(node)]


def show_shapes(graph: GraphProto, names: Sequence[str]) -> list[str]:
    """Make the shapes of these tensors outputs of the graph; the outputs' names."""
    shown = [f"onnxprune_shape_{k}" for k in range(len(names))]
    for name, output in zip(names, shown, strict=True):
        graph.node.append(helper.make_node("Shape", [name], [output]))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.INT64, None))
    return shown


def copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def rename(node: NodeProto, name: Callable[[str], str]) -> None:
    """Rename what a node reads and writes, captures of its subgraphs included."""
    node.input[:] = [name(x) if x else x for x in node.input]
    node.output[:] = [name(x) if x else x for x in node.output]
    for _, sub in subgraphs(node):
        outer = captured(sub)
        for inner in sub.node:
            rename(inner, lambda n, outer=outer: name(n) if n in outer else n)  # type: ignore[misc]
        for value in sub.output:
            if value.name in outer:
                value.name = name(value.name)
