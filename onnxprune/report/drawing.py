"""The graph as it can be drawn, and what was measured of each group, as typed values: the pictures of a report are made from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import numpy as np

from onnxprune.choose.costs import CostModel
from onnxprune.choose.layers import Choice
from onnxprune.choose.subject import Subject
from onnxprune.cut.plan import Pair, Plan, owners
from onnxprune.groups.analysis import Analysis, NotABoxError, Shapes
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Maps, varying
from onnxprune.groups.units import Ids
from onnxprune.model.graph import Node
from onnxprune.ops.linear import Floats

POINTS = 9  # of a curve, at most
WEIGHTS = 200  # of a group that are listed, at most


@dataclass(frozen=True)
class GraphNode:
    """One node of the original.

    key: name of its first output.
    op: its operator.
    name: of the node; left out where it is the key.
    reads: numbers of the nodes that it reads from, by their place in the list, from 0.
    makes: ids of the groups whose units its outputs have.
    takes: ids of the groups whose units it reads only.
    width: how many positions its first output has along the axes that units lie on; left out where there are none.
    macs: multiply-accumulates of a run; left out where it has none.
    state: `gone` where the result lacks it, as a layer was removed.
    """

    key: str
    op: str
    name: str | None = None
    reads: tuple[int, ...] = ()
    makes: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    width: Pair[int] | None = None
    macs: Pair[int] | None = None
    state: Literal["gone"] | None = None


@dataclass(frozen=True)
class Sliced:
    """A weight that gets smaller.

    tensor: its name.
    axis: the axis that gets shorter, from 0.
    group: id of the group whose units lie there.
    """

    tensor: str
    axis: int
    group: str


@dataclass(frozen=True)
class Graph:
    """The original as it can be drawn.

    nodes: in the order of the file, those of branches and loops before the node that holds them.
    hidden: how many nodes are left out, as they only compute shapes.
    held: by id of a group that can lose nothing, the first reason.
    weights: what gets smaller; of a group with very many weights, the first.
    """

    nodes: tuple[GraphNode, ...]
    hidden: int
    held: dict[str, str]
    weights: tuple[Sliced, ...] = ()


class CurvePoint(NamedTuple):
    """How much the whole model suffers from a removal; in JSON, an array of two."""

    removed: int
    damage: float


@dataclass(frozen=True)
class Curve:
    """What was measured of one group that was cut alone, each time with its readers fitted to what is left.

    group: its id.
    points: units removed, and the divergence from the original; between the widths that were measured it follows the error of the fits.
    """

    group: str
    points: tuple[CurvePoint, ...]


def graph_of(
    analysis: Analysis,
    removed: Bools | None = None,
    plan: Plan | None = None,
    left: Subject | None = None,
) -> Graph:
    """analysis: of the original. removed, plan: what was removed, if anything.

    left: what removal was decided on, where bypasses had taken layers of the original before; its groups are shown.
    """
    now = analysis if left is None else left.bare
    gone = np.zeros(now.solution.count, bool) if removed is None else removed
    drawn = _Drawn(now, gone)
    before = CostModel(analysis).node_macs
    after = before if removed is None else CostModel(now).per_node("macs", removed)
    absent = frozenset() if plan is None else frozenset(plan.nodes_removed)
    shown = [n for n in analysis.view.graph.walk() if n.key not in analysis.skipped]
    places = {output: k for k, n in enumerate(shown) for output in n.outputs if output}
    nodes = []
    for node in shown:
        is_gone = node.key in absent
        macs = before.get(node.key)
        left_macs = 0 if is_gone else int(after.get(node.key, 0))
        nodes.append(
            GraphNode(
                key=node.key,
                op=node.op if not node.domain else f"{node.domain}::{node.op}",
                name=node.name if node.name not in ("", node.key) else None,
                reads=tuple(_reads(node, places)),
                macs=Pair(int(macs), left_macs) if macs else None,
                state="gone" if is_gone else None,
                makes=drawn.makes(node),
                takes=drawn.takes(node),
                width=drawn.width(node),
            )
        )
    return Graph(
        nodes=tuple(nodes),
        hidden=sum(1 for _ in analysis.view.graph.walk()) - len(shown),
        held={g.id: g.pins[0].reason for g in now.groups if not g.removable and g.pins},
        weights=() if plan is None else tuple(_weights(plan)),
    )


class _Drawn:
    """What groups and widths the nodes of an analysed model have. gone: by class."""

    def __init__(self, analysis: Analysis, gone: Bools) -> None:
        self.analysis = analysis
        by_class = owners(analysis, np.ones(analysis.solution.count, bool))
        self.owner: Ids = np.append(by_class, -1)[analysis.solution.classes]
        self.shapes = Shapes(analysis, analysis.solution.of_units(gone))
        self.known: dict[int, tuple[Maps, tuple[str, ...]]] = {}

    def makes(self, node: Node) -> tuple[str, ...]:
        """Groups whose units its outputs have."""
        return tuple(dict.fromkeys(g for key in node.outputs for g in self._groups(self.analysis.maps.get(key, ()))))

    def takes(self, node: Node) -> tuple[str, ...]:
        """Those whose units it reads only."""
        made = self.makes(node)
        return tuple(dict.fromkeys(g for maps in self._read(node) for g in self._groups(maps) if g not in made))

    def _read(self, node: Node) -> Iterator[Maps]:
        for i, key in enumerate(node.inputs):
            use = self.analysis.uses.get((node.key, i))
            yield use[1] if use else self.analysis.maps.get(key, ())

    def _groups(self, maps: Maps) -> tuple[str, ...]:
        found = self.known.get(id(maps))
        if found is None or found[0] is not maps:
            ids = {int(g) for facet in maps for g in np.unique(self.owner[facet]) if g >= 0}
            found = (maps, tuple(self.analysis.groups[g].id for g in sorted(ids)))
            self.known[id(maps)] = found
        return found[1]

    def width(self, node: Node) -> Pair[int] | None:
        """Positions of its first output along the axes that units lie on."""
        key = next(iter(node.outputs), "")
        maps = self.analysis.maps.get(key, ())
        axes = sorted({a for facet in maps if (self.owner[facet] >= 0).any() for a in varying(facet)})
        if not axes:
            return None
        try:
            old, new = self.shapes.old(key), self.shapes.new(key)
        except (KeyError, NotABoxError):
            return None
        return Pair(prod(old[a] for a in axes), prod(new[a] for a in axes))


def _reads(node: Node, places: Mapping[str, int]) -> Iterator[int]:
    """Nodes whose outputs this one reads; of a branch or loop, those that give its results."""
    inside = (key for sub in node.subgraphs.values() for key in sub.outputs)
    yield from dict.fromkeys(places[key] for key in (*node.inputs, *inside) if key in places)


def _weights(plan: Plan) -> Iterator[Sliced]:
    for group in plan.groups:
        weights = dict.fromkeys((m.tensor, m.axis) for m in group.members if m.node is not None)
        yield from (Sliced(tensor, axis, group.id) for tensor, axis in list(weights)[:WEIGHTS])


def curves_of(choice: Choice) -> tuple[Curve, ...]:
    """The curves by which widths were decided; empty where they were decided without."""
    return tuple(Curve(group, tuple(_points(damage))) for group, damage in (choice.damages or {}).items())


def _points(damage: Floats) -> Iterator[CurvePoint]:
    last = len(damage) - 1
    for k in sorted({round(x) for x in np.linspace(0, last, min(POINTS, last + 1))}):
        yield CurvePoint(k, float(f"{damage[k]:.4g}"))
