"""What a model's tensors are in a run: shapes, some values, types."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds, Observation
from onnxprune.model.branches import SEPARATOR, captured, shell, show_shapes, subgraphs
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.runtime import bodies
from onnxprune.runtime.session import Session


class Probe:
    """A model in ONNX Runtime that tells the shape of every tensor and the value of the `wanted` ones (by key).

    Shapes are read by `Shape` nodes inside the graph, so that no activation leaves the runtime. Subgraphs are run
    as models of their own, on the values that they capture. Feeds that were tried already are not run again.
    """

    def __init__(self, model: LoadedModel, wanted: set[str], typed: set[str]) -> None:
        self.model, self.wanted, self.typed = model, wanted, typed
        if not model.proto.graph.output:
            raise BadInputError("The model has no outputs, so there is nothing to keep; give a model that has some.")
        try:
            self._top = _Probed(model, model.proto.graph, _Fed(), {}, "", wanted, typed)
            self._top.session  # noqa: B018 (made here, so that what it cannot load is said here)
        except BadInputError:
            Session(model)  # says it in the model's own words, if it is the model's fault
            raise

    def run(self, feeds: Feeds) -> list[Array]:
        """Run the model; raises `BadInputError` where it does not accept the feeds."""
        return self._top.run(feeds)

    def observation(self, feeds: tuple[Feeds, Feeds]) -> Observation:
        """What both feeds show."""
        both = [feeds[0]] if feeds[1] is feeds[0] else list(feeds)
        seen = self._top.observe(both)
        return Observation(seen[0][0], seen[-1][0], *_compact(seen[0][1], seen[-1][1]), seen[0][2], feeds)


def types_of(model: LoadedModel, feeds: tuple[Feeds, Feeds], keys: set[str]) -> dict[str, Any]:
    """ONNX Runtime's names for the types of tensors, such as "tensor(float)". Only subgraphs need a run, for what they are fed."""
    if not any(True for node in model.proto.graph.node for _ in subgraphs(node)):
        return _Probed(model, model.proto.graph, _Fed(), {}, "", set(), keys).dtypes
    return Probe(model, set(), keys).observation(feeds).dtypes


def _output_types(model: Model) -> dict[str, str]:
    return Session(model, what=_PROBED).output_types


_PROBED = "the model with its intermediate results as outputs"
MAX_CHANGING = 1024
"""Elements of a value that may be kept though the feeds gave different ones: shapes and sizes have few, and tables are of no use then."""


def _compact(first: Feeds, second: Feeds) -> tuple[Feeds, Feeds]:
    """The values of both feeds, equal ones stored once; of others only small ones."""
    left, right = dict(first), dict(second)
    for key, value in first.items():
        other = second.get(key)
        if other is not None and value.dtype == other.dtype and np.array_equal(value, other):
            right[key] = value
        else:
            for values in (left, right):
                if key in values and values[key].size > MAX_CHANGING:
                    del values[key]
    return left, right


Seen = tuple[dict[str, tuple[int, ...]], dict[str, Array], dict[str, Any]]


@dataclass(frozen=True)
class _Fed:
    """What a subgraph gets, inputs and captured tensors, by name; nothing for the model itself.

    values: of the first feed and the first step, for their types. kinds: ONNX Runtime's types of the sequences among them, as an
    empty one has none.
    """

    values: Feeds | None = None
    kinds: dict[str, str] = field(default_factory=dict)


class _Probed:
    """One graph of the model with its shapes and wanted values as outputs."""

    def __init__(
        self,
        model: LoadedModel,
        graph: GraphProto,
        fed: _Fed,
        outer: dict[str, TensorProto],
        path: str,
        wanted: set[str],
        typed: set[str],
    ) -> None:
        self.model, self.graph, self.path, self.wanted, self.typed = model, graph, path, wanted, typed
        self.captured = captured(graph)
        self.fed = fed
        self.initializers = dict(outer) | {t.name: t for t in graph.initializer}
        self.done: list[tuple[Feeds, list[Array]]] = []
        proto = ModelProto()
        proto.CopyFrom(shell(model.proto))
        proto.graph.CopyFrom(graph)
        del proto.graph.value_info[:]
        for name in sorted(self.captured & set(outer)):
            proto.graph.initializer.append(outer[name])
        if fed.values is not None:
            proto.graph.name = proto.graph.name or "subgraph"
            del proto.graph.input[:]
            proto.graph.input.extend(_declared(name, value, fed.kinds.get(name)) for name, value in fed.values.items())
        needed: set[str] = set()
        for node in graph.node:
            for _, sub in subgraphs(node):
                needed |= captured(sub) | set(node.input)
        given = {name for name, value in (fed.values or {}).items() if not _is_tensor(value)}
        sequences = _sequences(model.proto, graph, given)
        self.produced = [o for node in graph.node for o in node.output if o and o not in sequences]
        carried = [o for node in graph.node for o in node.output if o in sequences & needed]
        self.values = [o for o in self.produced if o in needed or path + o in wanted] + carried
        dtyped = [o for o in self.produced if path + o in typed and o not in self.values]
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in self.values + dtyped)
        self.dtypes = {path + n: t for n, t in _output_types(model.beside(proto)).items()} if dtyped else {}
        del proto.graph.output[len(self.values) :]
        self.outputs = [*self.values, *show_shapes(proto.graph, self.produced)]
        self._proto = proto

    @cached_property
    def session(self) -> Session:
        """With the shapes and the wanted values as outputs, and nothing else, as ONNX Runtime keeps every output until a run ends."""
        session = Session(self.model.beside(self._proto), shapes_first=True, what=_PROBED)
        self.dtypes |= {self.path + n: session.output_types[n] for n in self.values}
        del self._proto
        return session

    def run(self, feeds: Feeds) -> list[Array]:
        for known, results in self.done:
            if known is feeds:
                return results
        results = self.session.run(feeds, self.outputs)
        self.done = [*self.done[:1], (feeds, results)]
        return results

    def observe(self, both: list[Feeds]) -> list[Seen]:
        """Shapes, wanted values and types, for each of the feeds."""
        path = self.path
        constants = {path + t.name: tuple(t.dims) for t in self.graph.initializer}
        seen: list[Seen] = []
        known: list[Feeds] = []
        for feeds in both:
            results = self.run(feeds)
            sizes = results[len(self.values) :]
            shapes = {path + n: tuple(int(d) for d in s) for n, s in zip(self.produced, sizes, strict=True)}
            fed = {n: v for n, v in feeds.items() if n not in self.captured and _is_tensor(v)}
            shapes |= {path + n: v.shape for n, v in fed.items()} | constants
            found = dict(zip(self.values, results, strict=False))
            seen.append((shapes, {path + n: v for n, v in found.items() if _is_tensor(v)}, self.dtypes))
            known.append(found | feeds)
        for node in self.graph.node:
            first = next((o for o in node.output if o), "")
            for name, sub in subgraphs(node):
                itself = bodies.feeds_itself(node, sub)
                inner = [
                    {n: v[n] for n in captured(sub) if n in v}
                    | ({} if itself else _body_feeds(node, sub, v, self.initializers))
                    for v in known
                ]
                kinds = self.fed.kinds | {n: self.dtypes[path + n] for n in self.values}
                kinds |= {i.name: kinds.get(outer, "") for i, outer in zip(sub.input, node.input, strict=False)}
                more = self._inside(sub, inner, f"{path}{first}.{name}{SEPARATOR}", kinds, itself)
                for mine, theirs in zip(seen, more, strict=False):
                    mine[0].update(theirs[0])
                    mine[1].update(theirs[1])
                    mine[2].update(theirs[2])
        return seen

    def _inside(
        self, sub: GraphProto, inner: list[Feeds], path: str, kinds: dict[str, str], itself: bool
    ) -> list[Seen]:
        """The same of a subgraph; nothing where it does not run on these inputs: its rules pin. itself: the operator feeds it."""
        if itself:
            return self._fed_by_itself(sub, inner, path, kinds)
        names = {v.name for v in sub.input} | captured(sub)
        inner = [{n: v for n, v in feeds.items() if n in names} for feeds in inner]
        try:
            fed = _Fed(inner[0], kinds)
            return _Probed(self.model, sub, fed, self.initializers, path, self.wanted, self.typed).observe(inner)
        except BadInputError:
            return []

    def _fed_by_itself(self, sub: GraphProto, inner: list[Feeds], path: str, kinds: dict[str, str]) -> list[Seen]:
        """The same of one whose operator feeds it, in two sizes that it takes."""
        tries = bodies.trials(sub)
        if not tries:
            return []
        others = {n: v for n, v in inner[0].items() if n in captured(sub)}
        try:
            fed = _Fed(others | bodies.made(sub, tries[0]), kinds)
            probed = _Probed(self.model, sub, fed, self.initializers, path, self.wanted, self.typed)
            both = list(bodies.accepted(sub, others, probed.run))
            seen = probed.observe(both) if both else []
        except BadInputError:
            return []
        return [*seen, *seen[-1:]][: len(inner)]


def _is_tensor(value: object) -> bool:
    """Else it is a sequence, which ONNX Runtime takes and gives as a list."""
    return isinstance(value, np.ndarray)


def _declared(name: str, value: Array, kind: str | None) -> onnx.ValueInfoProto:
    """An input for this value; kind: ONNX Runtime's type, such as "seq(tensor(float))"."""
    if _is_tensor(value):
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
    element = (kind or "seq(tensor(float))").removeprefix("seq(tensor(").rstrip(")")
    return helper.make_tensor_sequence_value_info(name, TensorProto.DataType.Value(element.upper()), None)


def _body_feeds(node: onnx.NodeProto, body: GraphProto, known: Feeds, initializers: dict[str, TensorProto]) -> Feeds:
    """What a loop body is fed in its first iteration; {} for a body without inputs (If)."""

    def value(name: str) -> Array | None:
        if name in known:
            return known[name]
        return numpy_helper.to_array(initializers[name]) if name in initializers else None

    if not body.input:
        return {}
    outer = [value(name) for name in node.input]
    count = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), None)
    if count is None:  # Loop: iteration number, condition, then the carried values
        start: list[Array | None] = [np.array(0, np.int64), np.array(True), *outer[2:]]
    else:  # Scan: states, then one slice of each scanned input
        axes = next((list(a.ints) for a in node.attribute if a.name == "scan_input_axes"), [0] * count)
        states = len(outer) - count
        scanned = [None if v is None else np.take(v, 0, axis=x) for v, x in zip(outer[states:], axes, strict=True)]
        start = outer[:states] + scanned
    return {i.name: v for i, v in zip(body.input, start, strict=False) if v is not None}


def _sequences(proto: ModelProto, graph: GraphProto, given: set[str]) -> set[str]:
    """Outputs that are sequences or optionals, of which no Shape can be taken.

    An output that may be either (Identity) is one if an input is. given: inputs of the graph that are some.
    """
    found = set(given)
    for node in graph.node:
        version = next((o.version for o in proto.opset_import if o.domain == node.domain), 1)
        key = (node.op_type, version, node.domain)
        if key not in _CONTAINERS:
            _CONTAINERS[key] = _containers(*key)
        always, sometimes = _CONTAINERS[key]
        if always or (sometimes and any(i in found for i in node.input)):
            found.update(node.output)
    return found


def _containers(op: str, version: int, domain: str) -> tuple[bool, bool]:
    """Are an operator's outputs always, or sometimes, something else than tensors?"""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return False, False
    types = {c.type_param_str: list(c.allowed_type_strs) for c in schema.type_constraints}
    allowed = [t for o in schema.outputs for t in types.get(o.type_str, [o.type_str])]
    tensors = [t.startswith(("tensor(", "sparse_tensor(")) for t in allowed]
    return not any(tensors), not all(tensors)


_CONTAINERS: dict[tuple[str, int, str], tuple[bool, bool]] = {}
