"""Random numbers in a graph, made the same in every copy of it.

A runtime draws by a node's place in the file, so that a model in which a node was added or removed draws others. With a `seed` each,
which follows from the name of what it gives, the same nodes draw the same. But a session goes on drawing where its last run stopped, so
that every run would need a new session, which takes seconds for a large model. So a table of numbers takes the place of a node, where
one can (`drawn`); in memory only.

A node draws for one position after the other. Where positions are cut, it goes on drawing for all of them, under its name with `WHOLE`
behind it, so that those that stay get the numbers that they got before.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from onnxprune.model.branches import SEPARATOR, copied, every_graph, opset_of
from onnxprune.model.schema import schema_of

Array = NDArray[Any]
CAST_LIKE = 15  # the opset since which a type can be taken from another tensor
TABLE = 65_521  # numbers of a table; prime, so that no axis repeats in step with it
WHOLE = "__whole"  # behind the name of what is drawn for more positions than are left
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
            inside = name.rpartition(SEPARATOR)[2]  # the same in a branch that was put in place of its If
            own, _, _ = inside.partition(WHOLE)
            seed = zlib.crc32(own.encode()) % SEEDS
            node.attribute.append(helper.make_attribute("seed", float(seed) if kind == AttributeProto.FLOAT else seed))
    return copy


def drawn(proto: ModelProto) -> ModelProto:
    """`seeded`, with numbers drawn here in place of the nodes that draw, where opset and types allow it.

    The k-th number of such a node's output is the (k mod `TABLE`)-th of its table; it is the same in every run.
    """
    if not draws(proto):
        return proto
    copy = seeded(proto)
    version = opset_of(copy)
    for graph in every_graph(copy.graph):
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes += (_table(node) if version >= CAST_LIKE and node.domain in ("", "ai.onnx") else None) or [node]
        if len(nodes) > len(graph.node):
            kept = [copied(n) for n in nodes]
            del graph.node[:]
            graph.node.extend(kept)
    return copy


def _table(node: NodeProto) -> list[NodeProto] | None:
    """Nodes that give numbers of a table; None for what is not a random tensor as large as an input.

    Normal and uniform numbers; `Bernoulli` compares uniform ones with its input.
    """
    if node.op_type not in ("RandomNormalLike", "RandomUniformLike", "Bernoulli"):
        return None
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    x, y = node.input[0], node.output[0]
    rng = np.random.default_rng(int(attrs["seed"]) & 0xFFFFFFFF)
    if node.op_type == "RandomNormalLike":
        values = rng.normal(attrs.get("mean", 0.0), attrs.get("scale", 1.0), TABLE)
    elif node.op_type == "RandomUniformLike":
        values = rng.uniform(attrs.get("low", 0.0), attrs.get("high", 1.0), TABLE)
    else:
        values = rng.uniform(size=TABLE)

    def made(op: str, inputs: list[str], name: str, **more: object) -> NodeProto:
        return helper.make_node(op, inputs, [name if name == y else f"{y} {name}"], **more)

    def constant(name: str, value: Array) -> NodeProto:
        return made("Constant", [], name, value=numpy_helper.from_array(value, name))

    def of(name: str) -> str:
        return f"{y} {name}"

    kind = attrs.get("dtype")
    nodes = [
        constant("drawn", values.astype(np.float32)),
        constant("many", np.array(TABLE, np.int64)),
        constant("zero", np.array(0, np.int64)),
        constant("one", np.array(1, np.int64)),
        made("Shape", [x], "shape"),
        made("Size", [x], "size"),
        made("Range", [of("zero"), of("size"), of("one")], "places"),
        made("Mod", [of("places"), of("many")], "rows"),
        made("Gather", [of("drawn"), of("rows")], "flat"),
        made("Reshape", [of("flat"), of("shape")], "numbers"),
    ]
    last = of("numbers")
    if node.op_type == "Bernoulli":
        nodes += [made("CastLike", [last, x], "alike"), made("Less", [of("alike"), x], "below")]
        last = of("below")
    nodes.append(made("CastLike", [last, x], y) if kind is None else made("Cast", [last], y, to=int(kind)))
    return nodes


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
