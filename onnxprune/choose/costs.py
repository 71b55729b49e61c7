"""What a model costs: multiply-accumulates, parameters and time, before and after a removal.

MACs are those of the operators whose rule gives them (convolutions, matrix products, recurrent layers), at the shapes of
the first observation; the body of a loop counts once. Parameters are the entries of floating-point and 8-bit constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import ops
from onnxprune.choose.cost import Cost
from onnxprune.choose.timer import Timer
from onnxprune.choose.timetable import Timetable
from onnxprune.choose.widths import stops
from onnxprune.groups.analysis import Analysis, Shapes, kept_mask
from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group
from onnxprune.groups.maps import Maps, Shape, clusters
from onnxprune.ops import failures
from onnxprune.ops.base import CostContext, Rule

UNITS = {"macs": "MACs", "params": "parameters", "size": "bytes"}
LATENCY = "latency"


@dataclass(frozen=True)
class _Term:
    node: str
    rule: Rule
    attrs: dict[str, Any]
    tensors: tuple[tuple[Maps, Shape] | None, ...]
    inputs: int
    label: str
    found: _Found

    def macs(self, shapes: Shapes) -> int:
        """At these shapes of its inputs and outputs; 0 where the rule fails."""
        return self.at(tuple(None if t is None else shapes.of_maps(t[0], t[1]) for t in self.tensors))

    def at(self, sizes: tuple[Shape | None, ...]) -> int:
        assert self.rule.macs is not None
        context = CostContext(self.attrs, sizes[: self.inputs], sizes[self.inputs :])
        return int(failures.attempt(self.rule, "macs", self.label, partial(self.rule.macs, context), 0))


class _Found:
    """Results by which units of some maps go: from one removal to the next, most of a model stays as it is."""

    KEPT = 4096

    def __init__(self, maps: Iterable[Maps]) -> None:
        every = [facet.ravel() for m in maps for facet in m]
        self.units = np.unique(np.concatenate(every)) if every else np.zeros(0, np.int64)
        self.known: dict[bytes, int] = {}

    def get(self, shapes: Shapes, find: Callable[[Shapes], int]) -> int:
        mark = np.packbits(shapes.gone[self.units]).tobytes()
        if mark not in self.known:
            if len(self.known) >= self.KEPT:
                self.known.clear()
            self.known[mark] = find(shapes)
        return self.known[mark]


class CostModel:
    """Evaluates the cost of a removal (bool per class) without rewriting anything.

    timer: measures what pieces of the model take, where a target is a time (`choose/timetable.py`).
    """

    def __init__(self, analysis: Analysis, timer: Timer | None = None) -> None:
        self.analysis, self.timer = analysis, timer
        self.terms: list[_Term] = []
        shapes = Shapes(analysis, np.zeros(analysis.solution.classes.size, bool))
        for node in analysis.view.graph.walk():
            rule = ops.rule_for(node.op, node.domain)
            if rule.macs is None:
                continue
            tensors: list[tuple[Maps, Shape] | None] = []
            for i, key in enumerate((*node.inputs, *node.outputs)):
                use = analysis.uses.get((node.key, i)) if i < len(node.inputs) else None
                try:
                    if use:
                        tensors.append((use[1], shapes.old(use[0])))
                    elif key:
                        tensors.append((analysis.maps.get(key, ()), shapes.old(analysis.sources.get(key, key))))
                    else:
                        tensors.append(None)
                except KeyError:
                    tensors.append(None)
            known = _Found(t[0] for t in tensors if t is not None)
            self.terms.append(_Term(node.key, rule, node.attrs, tuple(tensors), len(node.inputs), str(node), known))
        self.constants = {key: c for key, c in analysis.view.constants.items() if _counts(c)}
        self.cuts: dict[str, list[Maps]] = {}
        for source, uses in analysis.readers.items():
            for reader in uses:
                found = analysis.uses.get(reader)
                if found is not None and found[1] and not any(found[1] is m for m in self.cuts.get(source, [])):
                    self.cuts.setdefault(source, []).append(found[1])
        self.stored = {key: _Found(ways) for key, ways in self.cuts.items()}

    def __reduce__(self) -> tuple[type[CostModel], tuple[Analysis]]:
        """For another process, which times nothing."""
        return CostModel, (self.analysis,)

    def of(self, metric: str) -> Cost:
        """The cost that a target is about: `macs`, `params`, `size`, or `latency` where there is a timer."""
        if metric == LATENCY:
            return TimeCost(self.times)
        return _Own(self, metric, UNITS[metric])

    @cached_property
    def times(self) -> Timetable:
        """The times of the model's pieces, measured when they are first asked for."""
        if self.timer is None:
            raise ValueError("A time needs a timer: CostModel(analysis, timer).")
        found = Timetable(self.analysis, self.node_macs, self.timer)
        found.measure(self.timer.share)
        return found

    def macs(self, removed: Bools | None = None) -> int:
        return int(sum(macs for _, macs in self._by_node(removed)))

    def _by_node(self, removed: Bools | None) -> Iterator[tuple[str, int]]:
        shapes = self._shapes(removed)
        for term in self.terms:
            yield term.node, term.found.get(shapes, term.macs)

    @cached_property
    def node_macs(self) -> dict[str, int]:
        """MACs per node key, of nodes that have any."""
        return {node: macs for node, macs in self._by_node(None) if macs}

    def of_nodes(self, metric: str, gone: Set[str]) -> float:
        """What goes with whole nodes: their MACs, the constants that only they read, or their time."""
        if metric == LATENCY:
            return self.times.timer.fit.alpha * self.times.of_nodes(gone)
        if metric == "macs":
            return sum(macs for node, macs in self.node_macs.items() if node in gone)
        total = 0
        for key, constant in (self.constants if metric == "params" else self.analysis.view.constants).items():
            uses = self.analysis.readers.get(key)
            if uses and all(node in gone for node, _ in uses):
                total += prod(tuple(constant.shape)) * (1 if metric == "params" else _bytes(constant))
        return total

    def size(self, removed: Bools | None = None) -> int:
        """Bytes of all constants."""
        return self._stored(removed, self.analysis.view.constants, _bytes)

    def params(self, removed: Bools | None = None) -> int:
        return self._stored(removed, self.constants, lambda constant: 1)

    def _stored(self, removed: Bools | None, constants: dict[str, Any], weight: Callable[[Any], int]) -> int:
        return sum(entries * weight(constants[key]) for key, entries in self._entries(removed, constants))

    def _entries(self, removed: Bools | None, constants: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
        """Entries of each constant after a removal, those of all the ways together that its readers cut it in."""
        shapes = self._shapes(removed)
        for key, constant in constants.items():
            shape = tuple(constant.shape)
            if removed is None or key not in self.cuts:
                yield key, prod(shape)
                continue

            def entries(shapes: Shapes, key: str = key, shape: Shape = shape) -> int:
                ways = {self._mark(m, shape, shapes.gone): m for m in self.cuts[key]}
                return sum(prod(shapes.of_maps(m, shape)) for m in ways.values())

            yield key, self.stored[key].get(shapes, entries)

    def per_node(self, metric: str, removed: Bools | None = None) -> dict[str, float]:
        """Shares of a cost by node key. A constant that several nodes read is shared equally; one that none reads counts nowhere."""
        if metric == "macs":
            return {node: float(macs) for node, macs in self._by_node(removed) if macs}
        constants = self.constants if metric == "params" else self.analysis.view.constants
        found: dict[str, float] = {}
        for key, entries in self._entries(removed, constants):
            nodes = list(dict.fromkeys(node for node, _ in self.analysis.readers.get(key, ())))
            for node in nodes:
                amount = entries * (1 if metric == "params" else _bytes(constants[key])) / len(nodes)
                found[node] = found.get(node, 0.0) + amount
        return found

    def _mark(self, maps: Maps, shape: Shape, gone: Bools) -> tuple[object, ...]:
        return tuple((axes, kept_mask(f, axes, shape, gone).tobytes()) for axes, f in clusters(maps))

    def _shapes(self, removed: Bools | None) -> Shapes:
        solution = self.analysis.solution
        gone = np.zeros(solution.classes.size, bool) if removed is None else solution.of_units(removed)
        return Shapes(self.analysis, gone)

    def saving(self, metric: str) -> NDArray[np.float64]:
        """First-order saving of removing each class: its share of every axis that it occupies."""
        classes, count = self.analysis.solution.classes, self.analysis.solution.count
        saving = np.zeros(count)

        def add(amount: float, maps: Maps, seen: set[bytes]) -> None:
            for facet in maps:
                found = classes[facet].ravel()
                mark = np.unique(found).tobytes()
                if mark in seen:
                    continue
                seen.add(mark)
                known = found[found >= 0]
                saving[:] += amount / found.size * np.bincount(known, minlength=count)

        if metric != "macs":
            for key, ways in self.cuts.items():
                if key in self.constants:
                    size = prod(self.constants[key].shape)
                    for maps in ways[:1]:
                        for facet in maps:
                            add(size, (facet,), set())
            return saving
        for term in self.terms:
            sizes = tuple(None if t is None else t[1] for t in term.tensors)
            amount = term.at(sizes)
            seen: set[bytes] = set()
            for tensor in term.tensors:
                if tensor is not None:
                    add(float(amount), tensor[0], seen)
        return saving


@dataclass(frozen=True)
class _Own:
    """MACs, parameters or bytes as a `Cost`."""

    model: CostModel
    name: str
    unit: str

    def total(self, removed: Bools | None = None) -> float:
        model = self.model
        return float({"macs": model.macs, "params": model.params, "size": model.size}[self.name](removed))

    def per_node(self, removed: Bools | None = None) -> Mapping[str, float]:
        return self.model.per_node(self.name, removed)

    def per_class(self) -> NDArray[np.float64]:
        return self.model.saving(self.name)


@dataclass(frozen=True)
class TimeCost:
    """Milliseconds of a run, from measured times of the model's pieces, as a `Cost`."""

    table: Timetable
    name = LATENCY
    unit = "ms"

    def total(self, removed: Bools | None = None) -> float:
        return max(0.0, self.table.timer.fit(self.table.total(removed)))

    def per_node(self, removed: Bools | None = None) -> Mapping[str, float]:
        alpha = self.table.timer.fit.alpha
        return {p.layer or p.nodes[0]: alpha * ms for p, ms in self.table.per_piece(removed)}

    def per_class(self) -> NDArray[np.float64]:
        """By half of each group: steps of kernels make the first units save nothing, or much."""
        saving = np.zeros(self.table.analysis.solution.count)
        whole = self.total()
        for k, group in enumerate(self.table.sizes.groups):
            half = max(1, group.removable // 2)
            removed = self.table.sizes.removed({k: half})
            saving[group.classes] += (whole - self.total(removed)) / max(1, int(removed[group.classes].sum()))
        return saving

    def widths(self, group: Group, floor: float) -> tuple[int, ...]:
        return stops(group, floor)


def _bytes(constant: Any) -> int:
    try:
        return int(np.dtype(constant.dtype).itemsize)
    except TypeError:
        return 1


def _counts(constant: Any) -> bool:
    try:
        dtype = np.dtype(constant.dtype)
    except TypeError:
        return True
    return dtype.kind == "f" or dtype.name in ("int8", "uint8", "bfloat16") or dtype.kind == "V"
