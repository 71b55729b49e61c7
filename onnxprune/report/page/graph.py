"""The graph of a model as a picture to walk in: laid out here by fast-sugiyama, drawn by the page on a canvas.

A node has a level from 0 (nothing) to 5 (all or most) for its colour, or `HELD` or `NONE`; what a level means is said by the legend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from onnxprune.report.drawing import Graph, GraphNode
from onnxprune.report.page.parts import Section, notes, rendered
from onnxprune.report.page.text import amount, short
from onnxprune.words import counted

COLUMN, ROW = 132, 54  # pixels from node to node
SPACING = 72.0  # what the layout puts between nodes
HELD, NONE = -1, -2
MOST_NODES = 6000  # that are laid out and drawn
MOST_POINTS = 60_000  # of edges that are drawn along their bends; with more, they are straight
MISSING = "The graph is drawn where fast-sugiyama is installed: pip install fast-sugiyama. The groups are listed below all the same."


@dataclass(frozen=True)
class GroupCard:
    """What is said of a group when it is chosen: (name, value) pairs, and lists of texts by their headings."""

    facts: tuple[tuple[str, str], ...] = ()
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Look:
    """How a graph is shown.

    levels: by node. legend: what the levels from 0 to 5 mean, in words, and HELD and NONE where there are any. cards: by group id.
    facts: by node, further (name, value) pairs, such as its time. labels: by node, what its box says after the operator.
    """

    levels: Sequence[int]
    legend: Mapping[int, str]
    cards: Mapping[str, GroupCard] = field(default_factory=dict)
    facts: Sequence[tuple[tuple[str, str], ...]] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Placed:
    """positions: x and y of each node's middle, in pixels. edges: x and y in turn, from the node above to the one below."""

    positions: list[tuple[int, int]]
    edges: list[list[int]]


def placed(graph: Graph) -> Placed:
    """Where nodes and edges lie. Raises `ImportError` where fast-sugiyama is not installed."""
    from fast_sugiyama import from_edges

    pairs = [(source, k) for k, node in enumerate(graph.nodes) for source in node.reads if source != k]
    where: dict[int, tuple[float, float]] = {}
    routes: dict[int, list[int]] = {}
    offset, count = 0.0, len(graph.nodes)
    layouts = from_edges(pairs, vertex_spacing=SPACING, dummy_vertices=True) if pairs else ()
    for positions, width, _, edges in layouts:
        left = min(x for _, (x, _) in positions)
        top = max(y for _, (_, y) in positions)
        for node, (x, y) in positions:
            where[int(node)] = ((x - left) / SPACING * COLUMN + offset, (top - y) / SPACING * ROW)
        for a, b in edges or ():
            routes.setdefault(int(a), []).append(int(b))
        offset += (width / SPACING + 1) * COLUMN
    alone = [k for k in range(count) if k not in where]
    for place, k in enumerate(alone):
        where[k] = (offset + place % 12 * COLUMN, place // 12 * ROW)
    points = [(round(where[k][0]), round(where[k][1])) for k in range(count)]
    return Placed(points, _edges(pairs, where, routes, count))


def _edges(
    pairs: Sequence[tuple[int, int]],
    where: Mapping[int, tuple[float, float]],
    routes: Mapping[int, list[int]],
    count: int,
) -> list[list[int]]:
    """Each edge along the bends that the layout gave it; straight where it gave none, or all of them would be too many."""
    if len(where) > MOST_POINTS:
        routes = {}
    found = []
    for a, b in pairs:
        way = _way(a, b, routes, count)
        found.append([round(c) for k in way for c in where[k]])
    return found


def _way(a: int, b: int, routes: Mapping[int, list[int]], count: int) -> list[int]:
    """From a to b over the bends, which are numbered from `count` on."""
    for first in routes.get(a, ()):
        way = [a, first]
        while way[-1] >= count and way[-1] in routes:
            way.append(routes[way[-1]][0])
        if way[-1] == b:
            return way
    return [a, b]


def graph_section(graph: Graph, look: Look, title: str, lead: str) -> Section:
    """The picture with its search, its buttons and what is said of the chosen node or group."""
    if len(graph.nodes) > MOST_NODES:
        body = notes([f"{len(graph.nodes):,} nodes are more than a page can draw; the groups are listed below."])
        return Section("graph", title, body, menu="Graph")
    try:
        layout = placed(graph)
    except ImportError:
        return Section("graph", title, notes([MISSING]), menu="Graph")
    hidden = f" Not drawn: {counted(graph.hidden, 'node')} of shapes alone." if graph.hidden else ""
    body = rendered("graph.html", data=_data(graph, look, layout), legend=look.legend, count=len(graph.nodes))
    return Section("graph", title, body, lead + hidden, "Graph")


def _data(graph: Graph, look: Look, layout: Placed) -> dict[str, Any]:
    """What the page's script reads. Names are shortened; the template escapes them."""
    ids = list(dict.fromkeys(g for n in graph.nodes for g in (*n.makes, *n.takes)))
    index = {g: k for k, g in enumerate(ids)}
    nodes = []
    for k, (node, (x, y)) in enumerate(zip(graph.nodes, layout.positions, strict=True)):
        nodes.append(
            [
                x,
                y,
                look.levels[k],
                short(node.op, 60),
                look.labels[k] if look.labels else _width(node),
                short(node.name or node.key, 120),
                [index[g] for g in node.makes],
                [index[g] for g in node.takes],
                [*_facts(node), *(look.facts[k] if look.facts else ())],
                int(node.state == "gone"),
            ]
        )
    cards = {g: look.cards.get(g, GroupCard()) for g in ids}
    groups = [
        {
            "id": short(g, 40),
            "facts": [[short(a), short(b, 400)] for a, b in card.facts],
            "lists": [[head, [short(t) for t in texts]] for head, texts in card.lists],
        }
        for g, card in cards.items()
    ]
    return {"nodes": nodes, "edges": layout.edges, "groups": groups}


def _width(node: GraphNode) -> str:
    if node.state == "gone":
        return "gone"
    if node.width is None:
        return ""
    before, after = node.width
    return f"{before}→{after}" if after != before else str(before)


def _facts(node: GraphNode) -> list[tuple[str, str]]:
    found = []
    if node.name:
        found.append(("output", short(node.key, 120)))
    if node.width is not None:
        before, after = node.width
        found.append(("width", f"{before:,} → {after:,}" if after != before else f"{before:,}"))
    if node.macs is not None:
        before, after = node.macs
        found.append(("MACs", f"{amount(before)} → {amount(after)}" if after != before else amount(before)))
    if node.state == "gone":
        found.append(("state", "gone with its layer"))
    return found


def level_of(share: float) -> int:
    """The level of a share from 0 to 1: 0 is nothing, 1 up to a quarter, … 5 is all."""
    if share <= 0:
        return 0
    return 5 if share >= 1 else min(4, ceil(4 * share))
