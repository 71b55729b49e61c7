"""Random numbers in a graph, made the same in every copy of it.

A runtime draws by a node's place in the file, so that a model in which a node was added or removed draws others. With a `seed` each, which
follows from the name of what it gives, the same nodes draw the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from onnxprune.model.branches import every_graph
from onnxprune.model.schema import schema_of

SEEDS = 1 << 23  # mostly stored as a float, which holds whole numbers up to here


def draws(proto: ModelProto) -> bool:
    """Does a node draw random numbers?"""
    return any(True for _ in _drawing(proto))


def seeded(proto: ModelProto) -> ModelProto:
    """A copy in which every node that draws has a seed of its own, kept where it has one; the model itself where none draws."""
    if not draws(proto):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    for node, kind in _drawing(copy):
        if not any(a.name == "seed" for a in node.attribute):
            name = next((o for o in node.output if o), "")
            seed = zlib.crc32(name.encode()) % SEEDS
            node.attribute.append(helper.make_attribute("seed", float(seed) if kind == AttributeProto.FLOAT else seed))
    return copy


def _drawing(proto: ModelProto) -> Iterator[tuple[NodeProto, int]]:
    """Nodes, and the types of their seeds."""
    versions = {o.domain: o.version for o in proto.opset_import}
    graphs = list(every_graph(proto.graph))
    for graph in graphs:
        for node in graph.node:
            schema = schema_of(node.op_type, node.domain, versions.get(node.domain, versions.get("", 1)))
            if schema is not None and "seed" in schema.types and not _is_off(node, schema.switch, graphs):
                yield node, schema.types["seed"]


def _is_off(node: NodeProto, switch: int | None, graphs: list[GraphProto]) -> bool:
    """Does the node draw in training only, and is it a constant of the graph that this is none?"""
    if switch is None:
        return False
    name = node.input[switch] if switch < len(node.input) else ""
    if not name:
        return True
    for graph in graphs:
        for tensor in graph.initializer:
            if tensor.name == name:
                return not numpy_helper.to_array(tensor).any()
        for other in graph.node:
            if name in other.output:
                value = next((a.t for a in other.attribute if a.name == "value"), None)
                return other.op_type == "Constant" and value is not None and not numpy_helper.to_array(value).any()
    return False
