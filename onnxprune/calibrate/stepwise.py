"""Run a model a part at a time over many samples, keeping only what later parts read.

A repair needs the inputs of every layer as the layers before it, already repaired, make them. Running the whole model
for each layer would cost a square; `Stepwise` runs every node once:

    steps = Stepwise(model.beside(flat), samples)
    x = steps.values("/conv1/Conv_output_0")     # one array per sample; runs what is needed for it and no more
    steps.replace(node, {1: new_weight})         # before the node has run

Values that nobody reads any more are dropped; above `memory` bytes, arrays go to a temporary folder. Every sample runs along its own
branches (`model/routing.py`); in those that it does not take, a tensor has the value None.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.calibrate.recall import NOTHING, Recall
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.bodies import body_of, path_of
from onnxprune.model.branches import captured, shell, subgraphs
from onnxprune.model.constants import tensor_in
from onnxprune.model.interface import cut_feeds, interface_of
from onnxprune.model.loaded import Model
from onnxprune.model.routing import STRAIGHT, Route, Routing, key_of
from onnxprune.model.tensors import StoredSparseValues
from onnxprune.ops import failures, rule_for
from onnxprune.ops.base import Rule
from onnxprune.runtime import Session

MEMORY = 1 << 28
LARGE = 1 << 16
"""Bytes of a stored constant from which on it is read again each time: all of them take as much as the file."""


def read_by(node: NodeProto) -> set[str]:
    """Everything a node reads, captures of its subgraphs included."""
    names = {x for x in node.input if x}
    for _, sub in subgraphs(node):
        names |= captured(sub)
    return names


@dataclass(frozen=True)
class _Part:
    """Some nodes as a session, with what it is given and makes; None where none of the nodes runs."""

    session: Session | None
    given: list[str]
    outputs: list[str]

    def run(self, values: Mapping[str, Array | None], names: list[str]) -> list[Array | None]:
        """What of `names` it makes; None for the others."""
        if self.session is None:
            return [None] * len(names)
        given = {n: v for n in self.given if (v := values[n]) is not None}
        found = dict(zip(self.outputs, self.session.run(given, self.outputs), strict=True))
        return [found.get(n) for n in names]


class Stepwise:
    """See the module. `model` must be flat where it matters (`calibrate/routes.py`); it is left alone."""

    def __init__(
        self,
        model: Model,
        samples: list[Feeds],
        routing: Routing = STRAIGHT,
        memory: int = MEMORY,
        recall: Recall = NOTHING,
    ) -> None:
        proto, self.folder, self.routing = model.proto, model.folder, routing
        self.memory, self.recall = memory, recall
        self._shell = shell(proto)
        self.nodes = [_copy(n) for n in proto.graph.node]
        self.initializers = {t.name: t for t in proto.graph.initializer}
        for sparse in proto.graph.sparse_initializer:
            name, stored = sparse.values.name, StoredSparseValues(sparse, model.folder)
            self.initializers[name] = numpy_helper.from_array(stored.load(), name)
        self.reads = [read_by(n) for n in self.nodes]
        self.maker = {o: k for k, n in enumerate(self.nodes) for o in n.output if o}
        self._left: dict[str, int] = defaultdict(int)
        for reads in self.reads:
            for name in reads:
                self._left[name] += 1
        self._shared = {n for n, count in self._left.items() if count > 1} | {o.name for o in proto.graph.output}
        self._done = np.zeros(len(self.nodes), bool)
        ports = interface_of(proto)
        samples = [cut_feeds(ports, s) for s in samples] if ports else samples
        self._kept: dict[str, list[Array | Path | None]] = {
            name: [s[name] for s in samples]
            for name in (samples[0] if samples else {})
            if name not in self.initializers
        }
        self._pinned: set[str] = set(self._kept)
        self.count = len(samples)
        self._in_memory = 0
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._fixed = self._find_fixed()
        self._constants: dict[str, Array] = {}

    # -- constants

    def _find_fixed(self) -> set[str]:
        """Tensors that depend on no input and nothing random."""
        fixed = set(self.initializers)
        for node, reads in zip(self.nodes, self.reads, strict=True):
            if reads <= fixed and not rule_for(node.op_type, node.domain).random:
                fixed.update(o for o in node.output if o)
        return fixed

    def is_constant(self, name: str) -> bool:
        return name in self._fixed

    def is_plain(self, name: str) -> bool:
        """A constant that can be written: stored as the numbers it is, made of such by moving or rounding them, or decoded from codes."""
        return self._is_stored(name) or (name in self._fixed and self.encoded(name, self.constant(name)) is not None)

    def _is_stored(self, name: str) -> bool:
        if name in self.initializers:
            return True
        at = self.maker.get(name)
        if at is None or name not in self._fixed or rule_for(self.nodes[at].op_type, self.nodes[at].domain).coded:
            return False
        return all(self._is_stored(n) for n in self.reads[at])

    def encoded(self, name: str, value: Array) -> tuple[int, Array] | None:
        """The node that reads what a constant is decoded and moved from, and what it has to read there for the constant to become `value`.

        None where there is no such node, or where what it reads is not stored.
        """
        chain = self._from_storage(name)
        if not chain or not self._is_stored(self.nodes[chain[-1]].input[0]):
            return None
        coder = next((self.nodes[k] for k in chain if self._rule(k).rounds), None)
        for k in chain:
            node, rule = self.nodes[k], self._rule(k)
            if rule.rounds or (coder is not None and rule.coded):
                if coder is None or not self._decodes(node, coder):
                    return None
                continue  # what is rounded is stored as the numbers it is
            attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs = [self.constant(n) for n in node.input if n]
            assert rule.encode is not None
            found = failures.attempt(
                rule, "encode", failures.label(node), partial(rule.encode, attrs, value, inputs), None
            )
            if found is None:
                return None
            value = found
        return chain[-1], value.astype(self.constant(self.nodes[chain[-1]].input[0]).dtype)

    def as_read(self, name: str, value: Array) -> Array | None:
        """What a constant becomes once `value` is written where it is stored; None where it is not kept in codes."""
        found = self.encoded(name, value) if any(self._rule(k).coded for k in self._from_storage(name)) else None
        if found is None:
            return None
        node, stored = found
        old, trial = self.nodes[node].input[0], f"{name}__trial"
        self.initializers[trial] = numpy_helper.from_array(np.ascontiguousarray(stored), trial)
        self._fixed.add(trial)
        try:
            self._read(node, trial)
            return self._alone(name)
        finally:
            self._read(node, old)

    def _read(self, node: int, name: str) -> None:
        self.nodes[node].input[0] = name
        self.reads[node] = read_by(self.nodes[node])

    def _rule(self, node: int) -> Rule:
        return rule_for(self.nodes[node].op_type, self.nodes[node].domain)

    def _from_storage(self, name: str) -> list[int]:
        """Nodes that a constant passes from where it is stored, the last one first; none where other nodes read what lies between."""
        chain: list[int] = []
        at = self.maker.get(name) if name in self._fixed else None
        while at is not None and (self._rule(at).rounds or self._rule(at).encode is not None):
            chain.append(at)
            source = self.nodes[at].input[0]
            at = None if source in self._shared else self.maker.get(source)
        return chain

    def source(self, name: str) -> str:
        """Where a constant is stored: itself, or what it is decoded and moved from."""
        chain = self._from_storage(name)
        return self.nodes[chain[-1]].input[0] if chain else name

    def _decodes(self, decoder: NodeProto, coder: NodeProto) -> bool:
        """Does one node take the numbers that the other one rounds to codes: the same scales and zero points?"""
        own = [np.sort(self.constant(n).astype(np.float64), axis=None) for n in coder.input[1:] if n]

        def has(name: str) -> bool:
            value = np.sort(self.constant(name).astype(np.float64), axis=None)
            return any(np.array_equal(value, x) for x in own)

        return all(not n or n in coder.input or has(n) for n in decoder.input[1:])

    def constant(self, name: str) -> Array:
        """The value of a constant tensor."""
        if name in self._constants:
            return self._constants[name]
        stored = self.initializers.get(name)
        stored = tensor_in(self.nodes[self.maker[name]]) if stored is None else stored
        value = self._alone(name) if stored is None else numpy_helper.to_array(stored, base_dir=str(self.folder or ""))
        if stored is None or value.nbytes < LARGE:
            self._constants[name] = value
        return value

    def _alone(self, name: str) -> Array:
        """A constant tensor, computed."""
        found = next(self._run(self._ancestors(name, set()), [name], [{}]))[0]
        assert found is not None
        return found

    # -- values

    def values(self, name: str) -> Iterator[Array | None]:
        """A tensor's value for every sample, read as it is asked for. Runs what it needs and has not run."""
        self.advance([name])
        return map(self._load, self._kept[name])

    def advance(self, names: list[str]) -> None:
        """Run what `names` need; from now on they are kept until `release`."""
        needed: set[int] = set()
        for name in names:
            self._pinned.add(name)
            if name not in self._kept:
                needed |= self._ancestors(name, needed)
        if not needed:
            return
        ran = sorted(needed)
        self._done[ran] = True
        for k in ran:
            for name in self.reads[k]:
                self._left[name] -= 1
        outputs = [o for k in ran for o in self.nodes[k].output if o and (self._left[o] or o in self._pinned)]
        outputs = [o for o in outputs if o not in self._fixed or o in self._pinned]
        inputs = {n for k in ran for n in self.reads[k]}
        fed = [n for n in inputs if n in self._kept]
        feeds = ({n: self._load(self._kept[n][i]) for n in fed} for i in range(self.count))
        run = self.recall.runs((frozenset(ran), tuple(outputs)), lambda: self._run(set(ran), outputs, feeds))
        for i, results in enumerate(run):
            for k, name in enumerate(outputs):
                self._kept.setdefault(name, [None] * self.count)[i] = self._store(name, i, results[k])
        for name in inputs | set(outputs):
            self._drop(name)

    def readers(self) -> dict[str, list[int]]:
        """Nodes that read a tensor, by its name."""
        found: dict[str, list[int]] = {}
        for k, reads in enumerate(self.reads):
            for name in reads:
                found.setdefault(name, []).append(k)
        return found

    def reaching(self, node: int) -> list[int]:
        """Samples that come by a node."""
        if not self.routing.guards:
            return list(range(self.count))
        return [k for k, route in enumerate(self.routing.routes) if self.routing.passes(self.nodes[node], route)]

    def keep(self, names: Iterable[str]) -> None:
        """Hold on to these tensors once they are there, until `release`, however far the model runs."""
        self._pinned.update(names)

    def can(self, name: str) -> bool:
        """Can the tensor still be had?"""
        try:
            self._ancestors(name, set())
        except BadInputError:
            return False
        return name in self._kept or name in self.maker

    def release(self, name: str) -> None:
        """Let go of a tensor that `values` or `advance` kept."""
        self._pinned.discard(name)
        self._drop(name)

    def _drop(self, name: str) -> None:
        if not self._left[name] and name not in self._pinned and name in self._kept:
            for value in self._kept.pop(name):
                if isinstance(value, Path):
                    value.unlink(missing_ok=True)
                elif name in self.maker and isinstance(value, np.ndarray):
                    self._in_memory -= value.nbytes

    def _store(self, name: str, i: int, value: Array | None) -> Array | Path | None:
        if not isinstance(value, np.ndarray):  # a sequence, or not there
            return value
        if self._in_memory + value.nbytes <= self.memory or value.dtype == object:
            self._in_memory += value.nbytes
            return value
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="onnxprune-")
        path = (
            Path(self._temporary.name)
            / f"{self.maker[name]}-{list(self.nodes[self.maker[name]].output).index(name)}-{i}.npy"
        )
        np.save(path, value)
        return path

    def _load(self, value: Array | Path | None) -> Array | None:
        return np.load(value) if isinstance(value, Path) else value

    def _ancestors(self, name: str, known: set[int]) -> set[int]:
        """Nodes that have to run for a tensor: those that have not, and those that make constants."""
        found: set[int] = set()
        stack = [name]
        while stack:
            tensor = stack.pop()
            at = self.maker.get(tensor)
            if at is None or at in found or at in known or tensor in self._kept:
                continue
            if self._done[at] and tensor not in self._fixed:
                raise BadInputError(f"'{tensor}' was needed after it had been dropped; please report this model.")
            found.add(at)
            stack.extend(self.reads[at])
        return found

    def _run(
        self, which: set[int], outputs: list[str], feeds: Iterable[dict[str, Array | None]]
    ) -> Iterator[list[Array | None]]:
        """The outputs of some nodes, sample by sample; without samples (`feeds` is [{}]), those of all nodes alike.

        What is fed and what is given are emptied before the next sample, which takes as much again: loops hold on to their last values.
        """
        if not outputs:
            return
        more = set(which)  # makers of constants that these nodes read run again
        for k in which:
            for name in self.reads[k] & self._fixed:
                more |= self.before(name)
        parts: dict[tuple[tuple[str, bool], ...], _Part] = {}
        for i, values in enumerate(feeds):
            route = self.routing.routes[i] if self.routing.guards and values else None
            mark = () if route is None else tuple(sorted(route.items()))
            if mark not in parts:
                parts[mark] = self._part(sorted(more), route, outputs, values)
            results = parts[mark].run(values, outputs)
            values.clear()
            yield results
            results.clear()

    def _part(
        self, order: list[int], route: Route | None, outputs: list[str], fed: Mapping[str, Array | None]
    ) -> _Part:
        """Some nodes as a model of their own, for samples of one route. fed: what one of them feeds it."""
        first = {n: v for n, v in fed.items() if v is not None}
        proto = ModelProto()
        proto.CopyFrom(self._shell)
        graph = proto.graph
        graph.name = "part"
        for k in order:
            graph.node.extend([self.nodes[k]] if route is None else self.routing.nodes(self.nodes[k], route))
        reads = {n for node in graph.node for n in read_by(node)}
        made = {o for node in graph.node for o in node.output}
        shown = [n for n in outputs if n in made or n in self.initializers]
        if not shown:
            return _Part(None, [], [])
        graph.initializer.extend(self.initializers[n] for n in sorted(reads | set(shown)) if n in self.initializers)
        given = [n for n in first if n not in made]
        graph.input.extend(declared(name, first[name]) for name in given)
        for name in shown:
            graph.output.append(helper.make_empty_tensor_value_info(name))
        try:
            session = Session(Model(proto, self.folder), optimized=True, what="a part of the model")
        except BadInputError:  # Attention's shape inference divides the last size into heads
            del graph.input[:]
            graph.input.extend(declared(name, first[name], with_last=True) for name in given)
            session = Session(Model(proto, self.folder), optimized=True, what="a part of the model")
        return _Part(session, given, shown)

    def before(self, name: str, stop: Callable[[int], bool] = lambda node: False) -> set[int]:
        """All nodes that a tensor comes from; no further back than where `stop` says so, these included."""
        found: set[int] = set()
        stack = [name]
        while stack:
            at = self.maker.get(stack.pop())
            if at is not None and at not in found:
                found.add(at)
                if not stop(at):
                    stack.extend(self.reads[at])
        return found

    # -- changes

    def replace(self, node: int, values: dict[int, Array], within: str = "") -> None:
        """Give a node that has not run other constants at some of its inputs.

        within: key of a node in the body of this one, which gets them instead, there and in copies that watch it and have not run.
        """
        if self._done[node]:
            raise BadInputError(
                f"{self.nodes[node].op_type} '{self.nodes[node].name}' ran already; please report this model."
            )
        places = {node: self.nodes[node]} if not within else dict(self._copies(node, within))
        for i, value in values.items():
            name = f"{within or self.nodes[node].output[0]}__refit{i}"
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
            self._fixed.add(name)
            self._constants.pop(name, None)
            for place in places.values():
                while len(place.input) <= i:
                    place.input.append("")
                place.input[i] = name
        self._constants = {n: v for n, v in self._constants.items() if n in self.initializers}
        for k in places:
            self.reads[k] = read_by(self.nodes[k])

    def _copies(self, loop: int, within: str) -> Iterator[tuple[int, NodeProto]]:
        """The node of that key in the body of a loop, and in those of copies that have not run; with the positions of the loops."""
        path = path_of(key_of(self.nodes[loop]))
        for k, node in enumerate(self.nodes):
            if not self._done[k] and (k == loop or any(o.startswith(path) for o in node.output)):
                body = body_of(node)
                yield from ((k, n) for n in (body.node if body else ()) if path + key_of(n) == within)


def declared(name: str, value: Array | list[Array], with_last: bool = False) -> onnx.ValueInfoProto:
    """An input that takes the value: a tensor, or a sequence of them. with_last: of this size along the last axis."""
    first = value if isinstance(value, np.ndarray) else value[0] if value else np.empty(0, np.float32)
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    if isinstance(value, np.ndarray):
        dims = [None] * (value.ndim - 1) + [value.shape[-1] if with_last else None] if value.ndim else []
        return helper.make_tensor_value_info(name, kind, dims)
    return helper.make_tensor_sequence_value_info(name, kind, None)


def _copy(node: NodeProto) -> NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
