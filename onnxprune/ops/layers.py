"""The layers of a flat model that are linear in constant weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from onnx import ModelProto, NodeProto, helper

from onnxprune.groups.maps import Shape
from onnxprune.groups.observation import Array
from onnxprune.ops import failures, rule_for
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import LinearContext, Product


def find_layers(
    proto: ModelProto,
    shape: Callable[[str], Shape | None],
    is_constant: Callable[[str], bool],
    constant: Callable[[str], Array],
) -> list[LinearLayer]:
    """All layers in graph order. `shape(key)` may be unknown (None): such a node is no layer. constant: values of those that are one."""
    readers: dict[str, list[tuple[int, int]]] = {}
    for k, node in enumerate(proto.graph.node):
        for i, name in enumerate(node.input):
            readers.setdefault(name, []).append((k, i))
    outputs = {o.name for o in proto.graph.output}
    layers = []
    for k, node in enumerate(proto.graph.node):
        rule = rule_for(node.op_type, node.domain)
        if rule.linear is None:
            continue
        shapes = tuple(shape(n) if n else None for n in node.input)
        if any(s is None for s, n in zip(shapes, node.input, strict=True) if n) or shape(node.output[0]) is None:
            continue
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        fixed = tuple(bool(n) and is_constant(n) for n in node.input)
        context = LinearContext(attrs, shapes, fixed, _values(node, fixed, constant))
        found = failures.attempt(rule, "linear", failures.label(node), partial(rule.linear, context), None)
        if found is None:
            continue
        at = found.b
        bias = node.input[at] if at is not None and at < len(node.input) else ""
        is_last = not (isinstance(found, Product) and found.left)  # the axis of outputs, which the added bias runs over
        adder = _adder(proto, node, readers, outputs, shape, is_constant) if at is None and is_last else None
        if adder is not None:
            bias = proto.graph.node[adder[0]].input[adder[1]]
        y = node.output[0]
        layers.append(LinearLayer(k, y, found, node.input[found.x], node.input[found.w], bias, y, adder))
    return layers


def _values(
    node: NodeProto, fixed: tuple[bool, ...], constant: Callable[[str], Array]
) -> Callable[[int], Array | None]:
    return lambda i: constant(node.input[i]) if i < len(fixed) and fixed[i] else None


def _adder(
    proto: ModelProto,
    node: NodeProto,
    readers: dict[str, list[tuple[int, int]]],
    outputs: set[str],
    shape: Callable[[str], Shape | None],
    is_constant: Callable[[str], bool],
) -> tuple[int, int] | None:
    """The Add of a constant over the last axis that is all that reads the node's output."""
    y = node.output[0]
    if y in outputs or len(readers.get(y, [])) != 1:
        return None
    k, i = readers[y][0]
    add = proto.graph.node[k]
    if not rule_for(add.op_type, add.domain).adds:
        return None
    other = add.input[1 - i]
    size, whole = shape(other), shape(y)
    if not is_constant(other) or size is None or whole is None or len(size) > len(whole):
        return None
    is_last = len(size) > 0 and size[-1] == whole[-1] and all(n == 1 for n in size[:-1])
    return (k, 1 - i) if is_last else None
