"""A model in pieces whose times add up: each a layer that multiplies, with what ONNX Runtime fuses into it or runs behind it.

    Conv -> BatchNormalization -> Relu -> Add(skip) -> Relu        one piece: one or two kernels
    MatMul -> Add -> Transpose -> Softmax                          one piece
    Concat of many branches, Resize of an input                    pieces of their own

A piece's time depends on the sizes that groups give its tensors. Groups that change the same axes of it count as one *coordinate*, whose
value is the size of such an axis: for a convolution, the channels that it reads and those that it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.choose.keep_axes import keep_axes
from onnxprune.groups.analysis import Analysis, Shapes
from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group
from onnxprune.groups.maps import Maps, Shape
from onnxprune.groups.units import Ids
from onnxprune.model.graph import Graph, Node, name_of

COORDINATES = 3
"""Of a piece, at most, before what follows begins another."""

NODES = 24
"""Of a piece, at most, that no layer with weights begins."""

Counts = Mapping[int, int]
"""By the place of a group in `Sizes.groups`, how many of its steps go; groups that are not named lose nothing."""


class Axis(NamedTuple):
    """An axis of one of a piece's tensors: of an activation, or of a constant where `node` reads it as its `input`-th."""

    tensor: str
    axis: int
    node: str = ""
    input: int = -1


@dataclass(frozen=True)
class Coordinate:
    """groups: their places, which all change the same axes of a piece. axis: one of these, which few other groups change.
    size: of that axis in the original.
    """

    groups: tuple[int, ...]
    axis: Axis
    size: int


@dataclass(frozen=True)
class Piece:
    """nodes: keys of its nodes, in the order of the graph. helpers: of those that compute sizes for them.

    layer: key of the one that multiplies, "" where there is none. runs: how often it runs in one run of the model (steps of a loop).
    work: multiply-accumulates; traffic: elements of the activations that it reads and writes, in the original.
    """

    nodes: tuple[str, ...]
    helpers: tuple[str, ...]
    layer: str
    runs: int
    work: int
    traffic: int
    coordinates: tuple[Coordinate, ...] = ()


class Sizes:
    """What a number of steps of each group makes of the sizes of tensors."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.groups = [g for g in analysis.groups if g.removable]
        self._flat = np.zeros(analysis.solution.count)
        self._known: dict[tuple[tuple[int, int], ...], Bools] = {}

    def removed(self, counts: Counts) -> Bools:
        """Some classes that go with these counts: sizes do not depend on which."""
        key = tuple(sorted((k, n) for k, n in counts.items() if n))
        if key not in self._known:
            if len(self._known) > 256:
                self._known.clear()
            taken = [ids for k, n in key for ids in _first_steps(self.groups[k], n)]
            self._known[key] = keep_axes(self.analysis, taken, self._flat)
        return self._known[key]

    def shapes(self, removed: Bools) -> Shapes:
        return Shapes(self.analysis, self.analysis.solution.of_units(removed))


def _first_steps(group: Group, number: int) -> list[Ids]:
    """The classes of so many steps, which those do not matter."""
    free = [b[f] for b, f in zip(group.blocks, group.free, strict=True)]
    return [
        np.unique(np.concatenate([b[j * t : (j + 1) * t].ravel() for b, t in zip(free, group.per_step, strict=True)]))
        for j in range(number)
    ]


def pieces_of(analysis: Analysis, macs: Mapping[str, int]) -> list[Piece]:
    """All nodes that take time, in pieces. macs: by node key."""
    return _Partition(analysis, macs).pieces()


@dataclass
class _Draft:
    layer: str
    scope: str
    nodes: list[Node] = field(default_factory=list)
    touched: dict[int, frozenset[Axis]] = field(default_factory=dict)


class _Partition:
    def __init__(self, analysis: Analysis, macs: Mapping[str, int]) -> None:
        self.analysis, self.macs, self.sizes = analysis, macs, Sizes(analysis)
        self.nodes = {n.key: n for n in analysis.view.graph.walk()}
        self.maker = {o: n for n in self.nodes.values() for o in n.outputs if o}
        self.seen = analysis.observation.shapes
        self._runs = _runs(analysis.view.graph, self.seen)
        self._units = self._by_unit()
        self._known: dict[int, tuple[Maps, Ids]] = {}
        self._all_gone: dict[int, Shapes] = {}

    def pieces(self) -> list[Piece]:
        drafts: list[_Draft] = []
        place: dict[str, int] = {}  # of the piece that makes a tensor
        for node in self.nodes.values():
            if not self._takes_time(node):
                continue
            touched = self._touched(node)
            found = max((place[x] for x in node.inputs if x in place), default=-1)
            scope = node.key[: len(node.key) - len(name_of(node.key))]
            is_layer = self.macs.get(node.key, 0) > 0
            if is_layer or found < 0 or not self._fits(drafts[found], touched, scope):
                drafts.append(_Draft(node.key if is_layer else "", scope))
                found = len(drafts) - 1
            draft = drafts[found]
            draft.nodes.append(node)
            draft.touched = _joined(draft.touched, touched)
            place.update((o, found) for o in node.outputs if o)
        return [self._piece(d) for d in drafts]

    def _takes_time(self, node: Node) -> bool:
        if node.subgraphs or node.key in self.analysis.skipped or not any(o in self.seen for o in node.outputs):
            return False
        constant = self.analysis.sources
        return any(x and x not in constant and x not in self.analysis.view.constants for x in node.inputs)

    def _fits(self, draft: _Draft, touched: Mapping[int, frozenset[Axis]], scope: str) -> bool:
        if draft.scope != scope or len(draft.nodes) >= NODES:
            return False
        return len(set(_joined(draft.touched, touched).values())) <= COORDINATES

    def _piece(self, draft: _Draft) -> Piece:
        keys = tuple(n.key for n in draft.nodes)
        tensors = {x for n in draft.nodes for x in (*n.inputs, *n.outputs) if x in self.seen and x in self.maker}
        return Piece(
            keys,
            tuple(self._helpers(draft.nodes)),
            draft.layer,
            self._runs.get(draft.scope, 1),
            self.macs.get(draft.layer, 0),
            sum(prod(self.seen[x]) for x in tensors),
            tuple(self._coordinates(draft.touched)),
        )

    def _helpers(self, nodes: Iterable[Node]) -> list[str]:
        """Nodes that compute sizes which these read, and sizes for those; keys in the order of the graph."""
        found: set[str] = set()
        stack = [x for n in nodes for x in n.inputs]
        while stack:
            node = self.maker.get(stack.pop())
            if node is not None and node.key in self.analysis.skipped and node.key not in found and not node.subgraphs:
                found.add(node.key)
                stack.extend(node.inputs)
        return [key for key in self.nodes if key in found]

    # -- what groups change

    def _by_unit(self) -> NDArray[np.int32]:
        """Which groups make each unit go: `[units, most]`, filled up with -1."""
        of: list[list[Ids]] = [[], []]
        for k, group in enumerate(self.sizes.groups):
            gone = np.flatnonzero(self.analysis.solution.of_units(self.sizes.removed({k: group.removable})))
            of[0].append(gone)
            of[1].append(np.full(gone.size, k))
        units, groups = (np.concatenate([*x, np.zeros(0, np.int64)]).astype(np.int64) for x in of)
        order = np.argsort(units, kind="stable")
        units, groups = units[order], groups[order]
        place = np.arange(units.size) - np.searchsorted(units, units)
        found = np.full((self.analysis.solution.classes.size, int(place.max(initial=0)) + 1), -1, np.int32)
        found[units, place] = groups
        return found

    def _touching(self, maps: Maps) -> Ids:
        if id(maps) not in self._known:
            found = np.unique(np.concatenate([self._units[f.ravel()].ravel() for f in maps]))
            self._known[id(maps)] = (maps, found[found >= 0])
        return self._known[id(maps)][1]

    def _touched(self, node: Node) -> dict[int, frozenset[Axis]]:
        """By group, the axes of the node's tensors that get shorter with it."""
        found: dict[int, set[Axis]] = {}
        for tensor, i, maps, shape in tensors_of(self.analysis, node):
            if not maps:
                continue
            for k in self._touching(maps).tolist():
                shapes = self._shapes(k)
                for axis, (a, b) in enumerate(zip(shape, shapes.of_maps(maps, shape), strict=True)):
                    if a != b:
                        at = Axis(tensor, axis) if i < 0 else Axis(tensor, axis, node.key, i)
                        found.setdefault(k, set()).add(at)
        return {k: frozenset(axes) for k, axes in found.items()}

    def _shapes(self, k: int) -> Shapes:
        """With all that group k can lose gone."""
        if k not in self._all_gone:
            self._all_gone[k] = self.sizes.shapes(self.sizes.removed({k: self.sizes.groups[k].removable}))
        return self._all_gone[k]

    def _coordinates(self, touched: Mapping[int, frozenset[Axis]]) -> Iterable[Coordinate]:
        same: dict[frozenset[Axis], list[int]] = {}
        for k, axes in sorted(touched.items()):
            same.setdefault(axes, []).append(k)
        for axes, groups in same.items():
            shared = {a: sum(a in others for others in same) for a in axes}
            axis = min(axes, key=lambda a: (shared[a], a.input >= 0, a))
            size = Shapes(self.analysis, np.zeros(self.analysis.solution.classes.size, bool)).old(axis.tensor)[
                axis.axis
            ]
            yield Coordinate(tuple(groups), axis, size)


def _joined(a: Mapping[int, frozenset[Axis]], b: Mapping[int, frozenset[Axis]]) -> dict[int, frozenset[Axis]]:
    return {k: a.get(k, frozenset()) | b.get(k, frozenset()) for k in (*a, *(x for x in b if x not in a))}


def tensors_of(analysis: Analysis, node: Node) -> Iterable[tuple[str, int, Maps, Shape]]:
    """(key, input or -1 for an activation, map, shape in the original) of all that a node reads and makes, as far as it was observed."""
    seen, constants = analysis.observation.shapes, analysis.view.constants
    for i, key in enumerate((*node.inputs, *node.outputs)):
        use = analysis.uses.get((node.key, i)) if i < len(node.inputs) else None
        if use is not None:
            source = use[0]
            shape = seen.get(source) or (tuple(constants[source].shape) if source in constants else None)
            if shape is not None:
                yield source, i, use[1], shape
        elif key in seen:
            yield key, -1, analysis.maps.get(key, ()), seen[key]


def _runs(graph: Graph, seen: Mapping[str, Shape]) -> dict[str, int]:
    """How often the nodes of each subgraph run in one run of the model: as often as its holder stacks what it gives."""
    found: dict[str, int] = {}

    def look(graph: Graph, times: int) -> None:
        found[graph.path] = times
        for node in graph.nodes:
            for sub in node.subgraphs.values():
                steps = 1
                for out, inner in zip(reversed(node.outputs), reversed(sub.outputs), strict=False):
                    outer, own = seen.get(out), seen.get(inner)
                    if outer is not None and own is not None and len(outer) == len(own) + 1 and outer[1:] == own:
                        steps = max(1, outer[0])
                look(sub, times * steps)

    look(graph, 1)
    return found
