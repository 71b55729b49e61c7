"""A graph as a list of steps, names resolved once: every tensor has a key (`model/graph.py`), inside branches too.

program = compile(model)           # steps in order, constants by key, what each constant may become
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper

from onnxprune.groups.observation import Array
from onnxprune.model import attributes
from onnxprune.model.branches import SEPARATOR, captured, subgraphs
from onnxprune.model.constants import from_node, is_constant
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.tensors import StoredSparseValues, read, sparse_of
from onnxprune.training.functions import function_of
from onnxprune.training.functions.base import Function


@dataclass(frozen=True)
class Step:
    """One node. inputs: keys ("" where skipped), captured ones of its subgraphs in `captured`, by the name they have inside."""

    node: NodeProto
    key: str
    function: Function | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    opset: int
    captured: dict[str, str] = field(default_factory=dict)
    branches: dict[str, Body] = field(default_factory=dict)

    @property
    def op(self) -> str:
        return str(self.node.op_type)

    @property
    def reads(self) -> tuple[str, ...]:
        """Inputs and what its subgraphs capture; "" where an input is skipped."""
        return (*self.inputs, *self.captured.values())


@dataclass(frozen=True)
class Body:
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """constants: by key. origins: the initializer or Constant node each was read from, for those that can be written back."""

    model: LoadedModel
    body: Body
    inputs: tuple[str, ...]
    constants: dict[str, Array]
    origins: dict[str, TensorProto | SparseTensorProto]

    def walk(self) -> list[Step]:
        """Every step, those of branches after their If."""
        return list(_walk(self.body))


def _walk(body: Body) -> list[Step]:
    found = []
    for step in body.steps:
        found.append(step)
        for branch in step.branches.values():
            found += _walk(branch)
    return found


def compile(model: LoadedModel) -> Program:
    """Nothing of the model is run; external data is read."""
    compiler = _Compiler(model)
    graph = model.proto.graph
    body = compiler.body(graph, "", {})
    inputs = tuple(v.name for v in graph.input if v.name not in compiler.constants)
    return Program(model, body, inputs, compiler.constants, compiler.origins)


class _Compiler:
    def __init__(self, model: LoadedModel) -> None:
        self.folder: Path | None = model.folder
        self.opsets = {o.domain: int(o.version) for o in model.proto.opset_import}
        self.constants: dict[str, Array] = {}
        self.origins: dict[str, TensorProto | SparseTensorProto] = {}

    def body(self, graph: GraphProto, path: str, outer: dict[str, str]) -> Body:
        scope = dict(outer)
        for value in graph.input:
            scope[value.name] = path + value.name
        for tensor in graph.initializer:
            key = scope[tensor.name] = path + tensor.name
            self.constants[key], self.origins[key] = read(tensor, self.folder), tensor
        for sparse in graph.sparse_initializer:
            key = scope[sparse.values.name] = path + sparse.values.name
            self.constants[key], self.origins[key] = StoredSparseValues(sparse, self.folder).load(), sparse
        steps = []
        for k, node in enumerate(graph.node):
            if is_constant(node):
                self._constant(node, path, scope)
                continue
            steps.append(self._step(node, path, scope, f"#{k}"))
        return Body(tuple(steps), tuple(scope.get(o.name, path + o.name) for o in graph.output))

    def _constant(self, node: NodeProto, path: str, scope: dict[str, str]) -> None:
        key = scope[node.output[0]] = path + node.output[0]
        self.constants[key] = np.asarray(from_node(node, self.folder).values)
        if node.attribute[0].name == "value":
            self.origins[key] = node.attribute[0].t

    def _step(self, node: NodeProto, path: str, scope: dict[str, str], fallback: str) -> Step:
        inputs = tuple(scope.get(n, path + n) if n else "" for n in node.input)
        inside = {n: scope.get(n, path + n) for _, sub in subgraphs(node) for n in sorted(captured(sub))}
        key = path + next((o for o in node.output if o), fallback)
        branches = {}
        if node.op_type == "If" and node.domain in ("", "ai.onnx"):
            branches = {name: self.body(sub, f"{key}.{name}{SEPARATOR}", scope) for name, sub in subgraphs(node)}
        for name in node.output:
            if name:
                scope[name] = path + name
        outputs = tuple(path + n if n else "" for n in node.output)
        while outputs and not outputs[-1]:
            outputs = outputs[:-1]
        opset = self.opsets.get(node.domain, self.opsets.get("ai.onnx" if node.domain == "" else "", 1))
        function = function_of(node.op_type, node.domain)
        attrs = {a.name: self._attribute(a) for a in node.attribute}
        return Step(node, key, function, inputs, outputs, attrs, opset, inside, branches)

    def _attribute(self, attribute: AttributeProto) -> Any:
        if attribute.type == AttributeProto.TENSOR:
            return read(attribute.t, self.folder)
        if attribute.type == AttributeProto.GRAPH:
            return None
        value = attributes.decode(attribute, self.folder)
        return value.decode() if isinstance(value, bytes) else value


def uses(program: Program) -> dict[str, list[tuple[Step, int]]]:
    """Who reads each key, as which input; -1 where a subgraph captures it."""
    found: dict[str, list[tuple[Step, int]]] = {}
    for step in program.walk():
        for i, key in enumerate(step.inputs):
            found.setdefault(key, []).append((step, i))
        for key in () if step.branches else step.captured.values():
            found.setdefault(key, []).append((step, -1))
    return found


def written(program: Program, values: dict[str, Array]) -> ModelProto:
    """A copy of the model in which these constants have other values; types, names and everything else stay.

    values: float arrays by key, of the shapes that the constants have.
    """
    copy = ModelProto()
    copy.CopyFrom(program.model.proto)
    again = _Compiler(program.model)
    again.body(copy.graph, "", {})
    for key, value in values.items():
        tensor, old = again.origins[key], program.constants[key]
        if isinstance(tensor, SparseTensorProto):
            tensor.CopyFrom(sparse_of(tensor.values.name, value.astype(old.dtype)))
            continue
        fresh = numpy_helper.from_array(np.ascontiguousarray(value).astype(old.dtype), tensor.name)
        for data in (
            "raw_data",
            "float_data",
            "double_data",
            "int32_data",
            "int64_data",
            "uint64_data",
            "external_data",
        ):
            tensor.ClearField(data)
        tensor.ClearField("data_location")
        tensor.raw_data = fresh.raw_data
    return copy
