"""A model in which every name is a key: the branch of an If that calibration inputs take stands in its place.

Nodes and tensors get the keys of `model/graph.py` (`y.then_branch//conv1`), so that what is learned about them here
can be looked up in an analysis and written back into the original structure. Loops, scans and undecided Ifs stay nodes.
"""

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


def conditions(proto: ModelProto) -> list[str]:
    """Conditions of the Ifs that are not inside a subgraph."""
    return [n.input[0] for n in proto.graph.node if n.op_type == "If" and n.domain in ("", "ai.onnx")]


def flatten(proto: ModelProto, taken: dict[str, bool]) -> ModelProto:
    """A copy in which Ifs at the top whose condition is in `taken` are replaced by the branch taken.

    Apply again for Ifs inside that branch: its nodes are at the top then, under their keys.
    """
    flat = shell(proto)
    flat.metadata_props.extend(proto.metadata_props)
    graph = flat.graph
    graph.name = proto.graph.name
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.initializer.extend(proto.graph.initializer)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    for node in proto.graph.node:
        branch = None
        if node.op_type == "If" and node.domain in ("", "ai.onnx") and node.input[0] in taken:
            name = "then_branch" if taken[node.input[0]] else "else_branch"
            branch = next((g for a, g in subgraphs(node) if a == name), None)
        if branch is None:
            graph.node.append(node)
            continue
        first = next(o for o in node.output if o)
        _paste(graph, branch, f"{first}.{name}{SEPARATOR}", node)
    return flat


def _paste(graph: GraphProto, branch: GraphProto, path: str, holder: NodeProto) -> None:
    local = {t.name for t in branch.initializer} | {t.values.name for t in branch.sparse_initializer}
    local |= {o for n in branch.node for o in n.output if o}
    names = {n: path + n for n in local}
    for tensor in branch.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = names[tensor.name]
    for sparse in branch.sparse_initializer:
        graph.sparse_initializer.add().CopyFrom(sparse)
        graph.sparse_initializer[-1].values.name = names[sparse.values.name]
    for node in branch.node:
        graph.node.add().CopyFrom(node)
        rename(graph.node[-1], lambda n: names.get(n, n))
    for inner, outer in zip(branch.output, holder.output, strict=False):
        if outer:
            graph.node.append(helper.make_node("Identity", [names.get(inner.name, inner.name)], [outer]))


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
