"""Bodies of loops in a flat model: what their layers read and give in every step.

    y, … = Loop(n, c, h) <body: a = MatMul(s, W), …>

Nothing outside sees `a`. In a *watched* model a copy of the loop stands behind it, which does the same and collects what is wanted:

    y.body//a//gives, … = Loop(n, c, h, []) <body: a = MatMul(s, W), …, append a>

A Loop collects a sequence, as the size of a tensor may change from step to step; a Scan stacks them. Constants of bodies are
kept outside, under their keys, so that copies share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.model.branches import SEPARATOR, copied, opset_of, rename, subgraphs
from onnxprune.model.constants import tensor_in
from onnxprune.model.routing import Routing, key_of

OPSETS = {"Loop": 13, "Scan": 9}
"""From which on a copy can collect: a Loop carries sequences, a Scan has no axis of the batch."""


@dataclass(frozen=True)
class Watch:
    """A tensor of the body of `loop` (its key), to be collected as `output`: its values, or their shapes.

    kind: its element type.
    """

    loop: str
    tensor: str
    output: str
    kind: int = TensorProto.FLOAT
    is_shape: bool = False


def path_of(loop: str) -> str:
    """Of what lies in the body of a loop: its keys begin with it."""
    return f"{loop}.body{SEPARATOR}"


def body_of(node: NodeProto) -> GraphProto | None:
    """The body of a loop; None of other nodes."""
    if node.op_type not in OPSETS or node.domain not in ("", "ai.onnx"):
        return None
    return next((g for name, g in subgraphs(node) if name == "body"), None)


def can_watch(proto: ModelProto, node: NodeProto) -> bool:
    """Is it a loop whose steps can be seen?"""
    version = opset_of(proto)
    return body_of(node) is not None and version >= OPSETS[node.op_type]


def open_bodies(proto: ModelProto) -> ModelProto:
    """The flat model with the constants of its loops' bodies outside, under their keys. A copy where there are any."""
    if not any(can_watch(proto, n) for n in proto.graph.node):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        body = body_of(node) if can_watch(copy, node) else None
        if body is not None:
            _take_out(body, path_of(key_of(node)), copy.graph)
    return copy


def _take_out(body: GraphProto, path: str, outer: GraphProto) -> None:
    stored = {t.name: t for t in body.initializer}
    stored |= {n.output[0]: t for n in body.node if (t := tensor_in(n)) is not None}
    given = {o.name for o in body.output}
    moved = {name: path + name for name in stored if name not in given}
    for name, key in moved.items():
        outer.initializer.add().CopyFrom(stored[name])
        outer.initializer[-1].name = key
    left = [t for t in body.initializer if t.name not in moved]
    nodes = [n for n in body.node if not (n.output and n.output[0] in moved)]
    for node in nodes:
        rename(node, lambda n: moved.get(n, n))
    kept, initializers = [copied(n) for n in nodes], [TensorProto.FromString(t.SerializeToString()) for t in left]
    del body.node[:], body.initializer[:]
    body.node.extend(kept)
    body.initializer.extend(initializers)


def watching(proto: ModelProto, watches: Iterable[Watch]) -> ModelProto:
    """The flat model with a copy of a loop for each of the watches; those of one loop and output prefix are not joined."""
    wanted = list(watches)
    if not wanted:
        return proto
    loops = {key_of(n): n for n in proto.graph.node if body_of(n) is not None}
    copy = ModelProto()
    copy.CopyFrom(proto)
    for k, watch in enumerate(wanted):
        copy.graph.node.extend(_watcher(loops[watch.loop], watch, f"onnxprune_watch_{k}"))
    return copy


def guarded(routing: Routing, watches: Iterable[Watch]) -> Routing:
    """The routes of a watched model: a copy runs where its loop does."""
    guards: dict[str, Mapping[str, bool]] = dict(routing.guards)
    for k, watch in enumerate(watches):
        if watch.loop in routing.guards:
            guards[f"onnxprune_watch_{k}_0"] = routing.guards[watch.loop]
            guards[f"onnxprune_watch_{k}"] = routing.guards[watch.loop]
    return replace(routing, guards=guards)


def _watcher(loop: NodeProto, watch: Watch, name: str) -> list[NodeProto]:
    """Nodes that make `watch.output`."""
    node = copied(loop)
    body = body_of(node)
    assert body is not None
    is_loop = loop.op_type == "Loop"
    carried = len(loop.input) - 2 if is_loop else len(loop.input) - _count(loop)
    del body.output[carried + is_loop :]
    del node.output[:]
    node.output.extend(f"{name}_{k}" for k in range(max(carried, 1)) if carried)
    shown = f"{name}_shown"
    body.node.append(helper.make_node("Shape" if watch.is_shape else "Identity", [watch.tensor], [shown]))
    kind = TensorProto.INT64 if watch.is_shape else watch.kind
    if not is_loop:
        for attribute in [a for a in node.attribute if a.name.startswith("scan_output")]:
            node.attribute.remove(attribute)
        body.output.append(helper.make_tensor_value_info(shown, kind, None))
        node.output.append(watch.output)
        return [node]
    before, after = f"{name}_before", f"{name}_after"
    body.input.append(helper.make_tensor_sequence_value_info(before, kind, None))
    body.node.append(helper.make_node("SequenceInsert", [before, shown], [after]))
    body.output.append(helper.make_tensor_sequence_value_info(after, kind, None))
    node.input.append(name)
    node.output.append(watch.output)
    return [helper.make_node("SequenceEmpty", [], [name], dtype=kind), node]


def _count(scan: NodeProto) -> int:
    return int(next(a.i for a in scan.attribute if a.name == "num_scan_inputs"))
