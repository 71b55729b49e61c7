"""Products of 8-bit numbers that come out the same on every processor.

Where sums of two products saturate (`runtime/saturation.py`), what a model with signed weights gives depends on which products stand
side by side, and so changes when positions leave. The same weights, and their zero points, 128 higher are unsigned and mean the same:

    x (w - z) = x ((w + 128) - (z + 128))

In memory only, for a comparison; the file stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto, helper

from onnxprune import ops, runtime
from onnxprune.model.branches import every_graph

MIDDLE = 128


def exact_products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with unsigned weights where this processor's kernels saturate with signed ones; else the model itself."""
    return unsigned(proto) if saturates_here(proto) else proto


def saturates_here(proto: onnx.ModelProto) -> bool:
    """Does the model multiply by signed 8-bit weights, on a processor whose kernels saturate then?"""
    return has_signed(proto) and runtime.saturates()


def has_signed(proto: onnx.ModelProto) -> bool:
    """Are unsigned activations multiplied by signed 8-bit weights?"""
    types = _types(proto)
    return any(True for g in every_graph(proto.graph) for n in g.node for _ in _signed(n, types))


def unsigned(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no unsigned activations are multiplied by signed 8-bit weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    types = _types(copy)
    for k, graph in reversed(
        list(enumerate(every_graph(copy.graph)))
    ):  # inner ones first, as nodes of outer ones are copied
        nodes: list[NodeProto] = []
        made: set[str] = set()
        for node in graph.node:
            for i in [i for places in _signed(node, types) for i in places]:
                node.input.extend([""] * (i + 1 - len(node.input)))
                name, own = node.input[i], f"{node.input[i] or 'nothing'} unsigned {k}"
                if own not in made:
                    made.add(own)
                    nodes += _raised(name, own)
                node.input[i] = own
            nodes.append(node)
        if made:
            kept = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
            del graph.node[:]
            graph.node.extend(kept)
    return copy


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element types of constants."""
    types: dict[str, int] = {}
    for graph in every_graph(proto.graph):
        types |= {t.name: t.data_type for t in graph.initializer}
        for node in graph.node:
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                types[node.output[0]] = value.data_type
    return types


def _signed(node: NodeProto, types: dict[str, int]) -> Iterator[tuple[int, int]]:
    """Where a node reads signed weights that it multiplies by unsigned activations, and their zero point."""

    def is_signed(i: int | None) -> bool:
        return i is not None and i < len(node.input) and types.get(node.input[i]) == TensorProto.INT8

    eight_bit = ops.rule_for(node.op_type, node.domain).eight_bit
    for weight, zero, other in eight_bit(node.op_type) if eight_bit else ():
        if (is_signed(weight) or is_signed(zero)) and not is_signed(other):
            yield weight, zero


def _raised(name: str, own: str) -> list[NodeProto]:
    """Nodes that give a tensor, or a zero point that is not there, 128 higher and unsigned."""
    middle = helper.make_tensor(f"{own} middle", TensorProto.INT32, [], [MIDDLE])
    constant = helper.make_node("Constant", [], [middle.name], value=middle)
    if not name:
        return [constant, helper.make_node("Cast", [middle.name], [own], to=TensorProto.UINT8)]
    return [
        constant,
        helper.make_node("Cast", [name], [f"{own} wide"], to=TensorProto.INT32),
        helper.make_node("Add", [f"{own} wide", middle.name], [f"{own} sum"]),
        helper.make_node("Cast", [f"{own} sum"], [own], to=TensorProto.UINT8),
    ]
