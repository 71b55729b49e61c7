"""What a model costs: multiply-accumulates and parameters, before and after a removal.

MACs are those of the operators whose rule gives them (convolutions, matrix products, recurrent layers), at the shapes of
the first observation; the body of a loop counts once. Parameters are the entries of floating-point and 8-bit constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import ops
from onnxprune.groups.analysis import Analysis, Shapes, kept_mask
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Maps, Shape, clusters
from onnxprune.ops import failures
from onnxprune.ops.base import CostContext, Rule


@dataclass(frozen=True)
class _Term:
    node: str
    rule: Rule
    attrs: dict[str, Any]
    tensors: tuple[tuple[Maps, Shape] | None, ...]
    inputs: int
    label: str

    def macs(self, sizes: tuple[Shape | None, ...]) -> int:
        """For these shapes of inputs and outputs; 0 where the rule fails."""
        assert self.rule.macs is not None
        context = CostContext(self.attrs, sizes[: self.inputs], sizes[self.inputs :])
        call = partial(self.rule.macs, context)
        return int(failures.attempt(self.rule, "macs", self.label, call, 0))


class CostModel:
    """Evaluates the cost of a removal (bool per class) without rewriting anything."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
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
            self.terms.append(_Term(node.key, rule, node.attrs, tuple(tensors), len(node.inputs), str(node)))
        self.constants = {key: c for key, c in analysis.view.constants.items() if _counts(c)}
        self.cuts: dict[str, list[Maps]] = {}
        whole: set[str] = set()
        for source, uses in analysis.readers.items():
            for reader in uses:
                found = analysis.uses.get(reader)
                if found is None:
                    whole.add(source)
                elif found[1] and not any(found[1] is m for m in self.cuts.get(source, [])):
                    self.cuts.setdefault(source, []).append(found[1])
        self.whole = whole

    def macs(self, removed: Bools | None = None) -> int:
        return int(sum(macs for _, macs in self._by_node(removed)))

    def _by_node(self, removed: Bools | None) -> Iterator[tuple[str, int]]:
        shapes = self._shapes(removed)
        for term in self.terms:
            sizes = tuple(None if t is None else shapes.of_maps(t[0], t[1]) for t in term.tensors)
            yield term.node, term.macs(sizes)

    @cached_property
    def node_macs(self) -> dict[str, int]:
        """MACs per node key, of nodes that have any."""
        return {node: macs for node, macs in self._by_node(None) if macs}

    def of_nodes(self, metric: str, gone: Set[str]) -> int:
        """What goes with whole nodes: their MACs, or the constants that only they read."""
        if metric == "macs":
            return sum(macs for node, macs in self.node_macs.items() if node in gone)
        total = 0
        for key, constant in (self.constants if metric == "params" else self.analysis.view.constants).items():
            uses = self.analysis.readers.get(key)
            if uses and all(node in gone for node, _ in uses):
                total += prod(tuple(constant.shape)) * (1 if metric == "params" else _bytes(constant))
        return total

    def measure(self, metric: str) -> Callable[[Bools | None], int]:
        """The cost that a target `macs`, `params` or `size` is about, as a function of what is removed."""
        return {"macs": self.macs, "params": self.params, "size": self.size}[metric]

    def size(self, removed: Bools | None = None) -> int:
        """Bytes of all constants."""
        return self._stored(removed, self.analysis.view.constants, _bytes)

    def params(self, removed: Bools | None = None) -> int:
        return self._stored(removed, self.constants, lambda constant: 1)

    def _stored(self, removed: Bools | None, constants: dict[str, Any], weight: Callable[[Any], int]) -> int:
        shapes = self._shapes(removed)
        total = 0
        for key, constant in constants.items():
            shape, each = tuple(constant.shape), weight(constant)
            ways = {} if removed is None else {self._mark(m, shape, shapes.gone): m for m in self.cuts.get(key, [])}
            if not ways:
                total += prod(shape) * each
                continue
            total += sum(prod(shapes.of_maps(m, shape)) for m in ways.values()) * each
        return int(total)

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
            amount = term.macs(sizes)
            seen: set[bytes] = set()
            for tensor in term.tensors:
                if tensor is not None:
                    add(float(amount), tensor[0], seen)
        return saving


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
