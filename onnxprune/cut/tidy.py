"""The last step after a bypass: nodes without purpose go.

Identities, and nodes that certainly give their first input back: a Reshape to the shape that its input has, a Transpose that leaves
every axis, a Pad by nothing, a Concat of one, a Cast to the type that is there. What does is said by the operators' rules
(`Rule.idle`); certain is what follows from the graph's declared inputs, its constants and ONNX's shape inference, not what was
observed. Inputs and outputs of the model stay, and so does an Identity that only gives an output its name.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx
import onnx.shape_inference
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune import ops
from onnxprune.cut.bypass import sweep
from onnxprune.groups.observation import Array
from onnxprune.model.branches import captured, rename, subgraphs
from onnxprune.model.constants import tensor_in
from onnxprune.model.loaded import Model
from onnxprune.ops import failures
from onnxprune.ops.base import Dims, IdleContext

SMALL = 1 << 16  # bytes of a constant whose values may matter (shapes, axes, amounts)


def tidy(model: Model) -> ModelProto:
    """A copy without nodes that give their input back or that no output needs."""
    copy = ModelProto()
    copy.CopyFrom(model.proto)
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.proto.opset_import}
    for _ in range(10):
        before = len(_nodes(copy.graph))
        _Tidying(opsets, model.folder, *_inferred(copy)).graph(copy.graph, {})
        sweep(copy.graph)
        if len(_nodes(copy.graph)) == before:
            break
    return copy


def _nodes(graph: GraphProto) -> list[NodeProto]:
    return [*graph.node, *(x for n in graph.node for _, sub in subgraphs(n) for x in _nodes(sub))]


def _inferred(proto: ModelProto) -> tuple[dict[str, Dims], dict[str, int]]:
    """Sizes (numbers or symbols) of all axes, and element types, of tensors at the top for which they follow from the inputs."""
    bare = ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for tensor in bare.graph.initializer:
        if tensor.ByteSize() > SMALL:  # its shape is all that is needed
            short = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            short.data_location = TensorProto.EXTERNAL
            short.external_data.add(key="location", value="none")
            tensor.CopyFrom(short)
    for output in bare.graph.output:  # what the file claims of them is not used
        kind = output.type.tensor_type
        if output.type.HasField("tensor_type"):
            kind.ClearField("shape")
    try:
        known = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # it raises what it likes; nothing is certain then
        known = bare
    shapes: dict[str, Dims] = {t.name: tuple(t.dims) for t in known.graph.initializer}
    types: dict[str, int] = {t.name: t.data_type for t in known.graph.initializer}
    for value in (*known.graph.input, *known.graph.value_info, *known.graph.output):
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                shapes[value.name] = tuple(
                    d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims
                )
    return shapes, types


class _Tidying:
    def __init__(
        self, opsets: dict[str, int], folder: Path | None, shapes: dict[str, Dims], types: dict[str, int]
    ) -> None:
        self.opsets, self.folder, self.shapes, self.types = opsets, folder, shapes, types

    def graph(self, graph: GraphProto, outer: dict[str, TensorProto], top: bool = True) -> None:
        """Let the readers of every idle node read its input; in place. The node itself is then dead."""
        constants = outer | {t.name: t for t in graph.initializer}
        constants |= {n.output[0]: t for n in graph.node if (t := tensor_in(n)) is not None}
        for value in graph.input:
            if value.name in constants and value.name not in outer:
                del constants[value.name]  # a default, which may be overridden
        kept = {o.name for o in graph.output}
        instead: dict[str, str] = {}
        for node in graph.node:
            if instead:
                rename(node, lambda name: instead.get(name, name))
            for _, sub in subgraphs(node):
                self.graph(sub, constants, top=False)
            if not self._is_idle(node, constants, graph, top):
                continue
            if node.output[0] not in kept:
                instead[node.output[0]] = node.input[0]

    def _is_idle(self, node: NodeProto, constants: dict[str, TensorProto], graph: GraphProto, top: bool) -> bool:
        domain = "" if node.domain == "ai.onnx" else node.domain
        rule = ops.rule_for(node.op_type, node.domain)
        idle = rule.idle
        if idle is None or not node.input or not node.input[0] or not node.output or not node.output[0]:
            return False
        others = {o for o in node.output[1:] if o}
        if others and others & _read(graph):
            return False

        def value(i: int) -> Array | None:
            tensor = constants.get(node.input[i]) if i < len(node.input) else None
            return None if tensor is None else numpy_helper.to_array(tensor, base_dir=str(self.folder or ""))

        x, y = node.input[0], node.output[0]
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        context = IdleContext(
            attrs,
            tuple(bool(x) for x in node.input),
            value,
            self.shapes.get(x) if top else None,
            self.shapes.get(y) if top else None,
            self.types.get(x) if top else None,
            self.opsets.get(domain, 1),
        )
        return failures.attempt(rule, "idle", failures.label(node), partial(idle, context), False)


def _read(graph: GraphProto) -> set[str]:
    found = {o.name for o in graph.output}
    for node in graph.node:
        found.update(node.input)
        for _, sub in subgraphs(node):
            found |= captured(sub)
    return found
