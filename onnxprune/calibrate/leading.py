"""Sizes that values decide, with weights behind them: a voice whose predicted durations set the number of frames.

A pruned model that predicts a duration of 2.1 where the original predicts 1.9 makes another number of frames, and no frame is comparable
with its like any more. The values become whole numbers somewhere (a Ceil, a comparison, an ArgMax); the *decision* is what comes out
there. While models are compared and fitted the original leads: it makes the decisions for both, so that all sizes are equal and row k
is row k, and what a decision was made from is compared beside the outputs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import ModelProto, NodeProto, helper

from onnxprune.calibrate.stepwise import read_by
from onnxprune.groups.observation import Feeds
from onnxprune.model.branches import making
from onnxprune.model.loaded import Model
from onnxprune.ops import rule_for
from onnxprune.runtime import Session


@dataclass(frozen=True)
class Decision:
    """tensor: its values decide the size of what `node` gives, and are made from `sources`, which are no whole numbers."""

    tensor: str
    node: str
    sources: tuple[str, ...]


@dataclass
class Leader:
    """The model whose decisions the others take, and what it decided so far."""

    model: Model
    tensors: tuple[str, ...]
    _seen: dict[int, tuple[Feeds, Feeds]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, object]:
        """For another process: what it decided was found by where the feeds lay in this one."""
        return {"model": self.model, "tensors": self.tensors, "_seen": {}}

    @cached_property
    def _part(self) -> ModelProto:
        return making(self.model.proto, self.tensors)

    @cached_property
    def _session(self) -> Session:
        return Session(self.model.beside(self._part), optimized=True, what="the part of the model that decides sizes")

    def fed(self, feeds: Feeds) -> Feeds:
        """The feeds with the leader's decisions on them."""
        if not self.tensors:
            return feeds
        if id(feeds) not in self._seen:
            given = {i.name: feeds[i.name] for i in self._part.graph.input if i.name in feeds}
            values = self._session.run(given, self.tensors)
            self._seen[id(feeds)] = feeds, dict(zip(self.tensors, (v.copy() for v in values), strict=True))
        return feeds | self._seen[id(feeds)][1]

    def led(self, proto: ModelProto) -> ModelProto:
        """A model that takes these decisions as inputs, its nodes in the same order; as it is where it makes none of them."""
        copy = ModelProto()
        copy.CopyFrom(proto)
        kinds = {t.name: t for t in self._declared()} if self.tensors else {}
        for node in copy.graph.node:
            for k, name in enumerate(node.output):
                if name in kinds:
                    node.output[k] = f"{name} of its own"
                    copy.graph.input.append(kinds.pop(name))
        if len(kinds) == len(self.tensors):
            return proto
        copy.graph.input.extend(kinds.values())  # a model without one of them is fed it all the same
        return copy

    def _declared(self) -> Iterable[onnx.ValueInfoProto]:
        for name in self.tensors:
            named = self._session.output_types[name].removeprefix("tensor(").removesuffix(")")
            yield helper.make_tensor_value_info(name, onnx.TensorProto.DataType.Value(named.upper()), None)


def decisions(nodes: Sequence[NodeProto], values: Container[str]) -> list[Decision]:
    """What decides the sizes that depend on values. values: tensors that depend on the inputs' values."""
    maker = {o: node for node in nodes for o in node.output if o}
    real = _real(nodes, values)
    found: list[Decision] = []
    for node in nodes:
        own = rule_for(node.op_type, node.domain)
        if own.carries_shape:
            continue
        label = f"{node.op_type} '{node.name or node.output[0]}'"
        stack = [n for i, n in enumerate(node.input) if n in values and own.decides_size(i)]
        if own.sized_by is None:
            sources = tuple(n for n in stack if n in real)
            stack = [n for n in stack if n not in real]
            if sources and _is_whole(node):
                found += [Decision(o, label, sources) for o in node.output if o]
                continue
        seen: set[str] = set()
        while stack:
            name = stack.pop()
            made = maker.get(name)
            if name in seen or made is None or name not in values:
                continue
            seen.add(name)
            rule = rule_for(made.op_type, made.domain)
            sources = tuple(n for n in made.input if n in real)
            if name in real:
                found.append(Decision(name, label, (name,)))
            elif sources and not rule.carries_shape:
                found.append(Decision(name, label, sources))
            elif not rule.carries_shape:
                stack += sorted(read_by(made))
    return list(dict.fromkeys(found))


def _real(nodes: Sequence[NodeProto], values: Container[str]) -> set[str]:
    """Tensors of numbers that a pruned model may have a little different: they follow from weights, and nothing rounded them."""
    real: set[str] = set()
    for node in nodes:
        rule = rule_for(node.op_type, node.domain)
        if rule.carries_shape or _is_whole(node):
            continue
        reads = read_by(node)
        is_table = any(i > 0 for i in rule.picks) and node.input[0] not in values
        is_weighted = rule.linear is not None or is_table
        if reads & real or (is_weighted and any(n in values for n in reads)):
            real.update(o for o in node.output if o)
    return real


def _is_whole(node: NodeProto) -> bool:
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return rule_for(node.op_type, node.domain).is_whole(attrs)


def has_weights_behind(nodes: Sequence[NodeProto], values: Container[str], sized: Container[str]) -> bool:
    """Does a layer with weights read something whose size depends on values?"""
    return any(
        rule_for(node.op_type, node.domain).linear is not None
        and any(n in sized for n in node.input)
        and any(n and n not in values for n in node.input)
        for node in nodes
    )
