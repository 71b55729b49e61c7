"""The layers of a flat model that are linear in constant weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from onnx import ModelProto, NodeProto, helper

from onnxprune.groups.maps import Shape
from onnxprune.groups.observation import Array
from onnxprune.model.bodies import body_of, can_watch, path_of
from onnxprune.model.constants import tensor_in
from onnxprune.model.routing import key_of
from onnxprune.ops import failures, rule_for
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import LinearContext, Product


def find_layers(
    proto: ModelProto,
    shape: Callable[[str], Shape | None],
    is_constant: Callable[[str], bool],
    constant: Callable[[str], Array],
) -> list[LinearLayer]:
    """All layers in graph order, those in bodies of loops (`model/bodies.py`) before what comes behind the loop.

    `shape(key)` may be unknown (None): such a node is no layer. constant: values of those that are one.
    """
    ask = _Asked(shape, is_constant, constant)
    outputs = {o.name for o in proto.graph.output}
    stored = {t.name for t in proto.graph.initializer}
    stored |= {n.output[0] for n in proto.graph.node if tensor_in(n) is not None}
    top = _Part([*proto.graph.node], outputs, lambda name: name)
    layers: list[LinearLayer] = []
    for k, node in enumerate(proto.graph.node):
        body = body_of(node)
        if body is not None and can_watch(proto, node):
            path = path_of(key_of(node))
            local = {v.name for v in body.input} | {o for n in body.node for o in n.output if o}
            key = partial(_key, path, local)
            within = _Part([*body.node], {o.name for o in body.output}, key)
            inner = _Asked(shape, lambda name: name in stored and is_constant(name), constant)
            found = [_layer(k, n, within, inner, key_of(node)) for n in within.nodes]
            layers += [x for x in found if x is not None and x.x.startswith(path) and not x.linear.is_rounded]
        layer = _layer(k, node, top, ask)
        layers += [] if layer is None else [layer]
    return layers


def _key(path: str, local: set[str], name: str) -> str:
    return path + name if name in local else name


@dataclass(frozen=True)
class _Asked:
    """What is known of tensors, by key."""

    shape: Callable[[str], Shape | None]
    is_constant: Callable[[str], bool]
    constant: Callable[[str], Array]


class _Part:
    """The nodes of a graph. outputs: names of what it gives; key: of a tensor, by its name here."""

    def __init__(self, nodes: list[NodeProto], outputs: set[str], key: Callable[[str], str]) -> None:
        self.nodes, self.outputs, self.key = nodes, outputs, key
        self.readers: dict[str, list[tuple[int, int]]] = {}
        for k, node in enumerate(nodes):
            for i, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((k, i))

    def keys(self, node: NodeProto) -> Iterator[str]:
        """Of a node's inputs."""
        return (self.key(n) if n else "" for n in node.input)


def _layer(position: int, node: NodeProto, part: _Part, ask: _Asked, loop: str = "") -> LinearLayer | None:
    rule = rule_for(node.op_type, node.domain)
    if rule.linear is None:
        return None
    read, y = [*part.keys(node)], part.key(node.output[0])
    shapes = tuple(ask.shape(n) if n else None for n in read)
    if any(s is None for s, n in zip(shapes, read, strict=True) if n) or ask.shape(y) is None:
        return None
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    fixed = tuple(bool(n) and ask.is_constant(n) for n in read)
    context = LinearContext(attrs, shapes, fixed, _values(read, fixed, ask.constant))
    found = failures.attempt(rule, "linear", failures.label(node), partial(rule.linear, context), None)
    if found is None:
        return None
    at = found.b
    bias = read[at] if at is not None and at < len(read) else ""
    is_last = not (isinstance(found, Product) and found.left)  # the axis of outputs, which the added bias runs over
    adder = _adder(node, part, ask) if at is None and is_last else None
    if adder is not None:
        add, i = adder
        bias = part.key(add.input[i])
    by = None if adder is None else (part.key(key_of(adder[0])), adder[1])
    return LinearLayer(position, y, found, read[found.x], read[found.w], bias, y, by, loop)


def _values(
    read: list[str], fixed: tuple[bool, ...], constant: Callable[[str], Array]
) -> Callable[[int], Array | None]:
    return lambda i: constant(read[i]) if i < len(fixed) and fixed[i] else None


def _adder(node: NodeProto, part: _Part, ask: _Asked) -> tuple[NodeProto, int] | None:
    """The Add of a constant over the last axis that is all that reads the node's output."""
    y = node.output[0]
    if y in part.outputs or len(part.readers.get(y, [])) != 1:
        return None
    k, i = part.readers[y][0]
    add = part.nodes[k]
    if not rule_for(add.op_type, add.domain).adds:
        return None
    other = part.key(add.input[1 - i])
    size, whole = ask.shape(other), ask.shape(part.key(y))
    if not ask.is_constant(other) or size is None or whole is None or len(size) > len(whole):
        return None
    is_last = len(size) > 0 and size[-1] == whole[-1] and all(n == 1 for n in size[:-1])
    return (add, 1 - i) if is_last else None
