"""Branches in place of the Ifs that hold them, where inputs may take different ones.

    y = If(c) <then_branch: a = F(x), else_branch: b = G(x)>

    y.then_branch//a = F(x);   y.else_branch//b = G(x);   y = If(c) <then_branch: y.then_branch//a, else_branch: y.else_branch//b>

Where all inputs take one branch, only that one is there, and an Identity in place of the If. Where both are taken, the If is left to
join them, and each input is to run along its own *route*: without the nodes of branches that it does not take. Nodes and tensors get
the keys of `model/graph.py`, so that what is learned about them here can be looked up in an analysis and written back into the original
structure. Loops, scans and Ifs that no route says anything of stay nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, helper

from onnxprune.model.branches import SEPARATOR, rename, shell, subgraphs

Route = Mapping[str, bool]
"""By key of an If, whether its condition holds."""
BRANCHES = {True: "then_branch", False: "else_branch"}


@dataclass(frozen=True)
class Routing:
    """Which nodes of a flat model run for which sample.

    guards: by key of a node that lies within a branch, the route that leads there.
    joins: keys of the Ifs that are left to choose between the outputs of two branches.
    routes: per sample, which way each If went that it came by.
    """

    guards: Mapping[str, Route]
    joins: frozenset[str]
    routes: tuple[Route, ...]

    def passes(self, node: NodeProto, route: Route) -> bool:
        """Does the node run along a route?"""
        return all(route.get(key) == way for key, way in self.guards.get(key_of(node), {}).items())

    def excludes(self, one: NodeProto, other: NodeProto) -> bool:
        """Do two nodes lie in different branches of one If?"""
        theirs = self.guards.get(key_of(other), {})
        return any(theirs.get(key, way) != way for key, way in self.guards.get(key_of(one), {}).items())

    def nodes(self, node: NodeProto, route: Route) -> Iterator[NodeProto]:
        """What runs in place of a node along a route: itself, nothing, or Identities for an If that joins branches."""
        if not self.passes(node, route):
            return
        if key_of(node) not in self.joins:
            yield node
            return
        graph = _branch(node, route[key_of(node)])
        assert graph is not None
        for inner, outer in zip(graph.node, node.output, strict=True):
            if outer:
                yield helper.make_node("Identity", [inner.input[0]], [outer])

    def along(self, proto: ModelProto, route: Route) -> ModelProto:
        """The flat model for samples of one route, without what is not there: nodes, what reads these, and outputs."""
        if not self.guards:
            return proto
        model = _like(proto)
        gone: set[str] = set()
        for node in proto.graph.node:
            kept = [] if key_of(node) not in self.joins and gone.intersection(node.input) else self.nodes(node, route)
            before = len(model.graph.node)
            model.graph.node.extend(kept)
            if len(model.graph.node) == before:
                gone.update(o for o in node.output if o)
        model.graph.output.extend(o for o in proto.graph.output if o.name not in gone)
        return model

    def untaken(self) -> Iterator[tuple[str, str]]:
        """Keys of Ifs of which all samples take one branch, with the name of the other."""
        for key in dict.fromkeys(key for route in self.routes for key in route):
            ways = {route[key] for route in self.routes if key in route}
            if len(ways) == 1:
                yield key, BRANCHES[not ways.pop()]


STRAIGHT = Routing({}, frozenset(), ())


def key_of(node: NodeProto) -> str:
    """That of its first output."""
    return next((o for o in node.output if o), "")


def ifs(proto: ModelProto) -> list[NodeProto]:
    """The Ifs that are not inside a subgraph."""
    return [n for n in proto.graph.node if n.op_type == "If" and n.domain in ("", "ai.onnx")]


def flatten(proto: ModelProto, routes: Sequence[Route]) -> tuple[ModelProto, Routing]:
    """A copy in which the branches that are taken stand in place of their Ifs, those within branches too. routes: per sample."""
    guards: dict[str, Route] = {}
    done: set[str] = set()
    joins: set[str] = set()
    while True:
        taken: dict[str, list[bool]] = {}
        for node in ifs(proto):
            key = key_of(node)
            ways = sorted({route[key] for route in routes if key in route}, reverse=True)
            if ways and key not in done and all(_branch(node, way) is not None for way in ways):
                taken[key] = ways
        if not taken:
            return proto, Routing(guards if joins else {}, frozenset(joins), tuple(routes))
        done |= taken.keys()
        joins |= {key for key, ways in taken.items() if len(ways) > 1}
        proto = _opened(proto, taken, guards)


def _opened(proto: ModelProto, taken: Mapping[str, Iterable[bool]], guards: dict[str, Route]) -> ModelProto:
    flat = _like(proto)
    graph = flat.graph
    graph.output.extend(proto.graph.output)
    for node in proto.graph.node:
        key = key_of(node)
        if key not in taken:
            graph.node.append(node)
            continue
        join = NodeProto(op_type="If", name=node.name, input=node.input, output=node.output)
        for way in taken[key]:
            branch = _branch(node, way)
            assert branch is not None
            path = f"{key}.{BRANCHES[way]}{SEPARATOR}"
            first = len(graph.node)
            given = _paste(graph, branch, path)
            guard = {**guards.get(key, {}), key: way}
            guards.update((key_of(n), guard) for n in list(graph.node)[first:])
            ends = [helper.make_node("Identity", [x], [f"{path}{SEPARATOR}{k}"]) for k, x in enumerate(given)]
            outputs = [helper.make_empty_tensor_value_info(n.output[0]) for n in ends]
            join.attribute.append(helper.make_attribute(BRANCHES[way], helper.make_graph(ends, path, [], outputs)))
        if len(join.attribute) > 1:
            graph.node.append(join)
        else:
            ends = list(join.attribute[0].g.node)
            graph.node.extend(
                helper.make_node("Identity", list(n.input), [o]) for n, o in zip(ends, node.output, strict=False) if o
            )
    return flat


def _like(proto: ModelProto) -> ModelProto:
    """The model without its nodes and outputs."""
    flat = shell(proto)
    flat.metadata_props.extend(proto.metadata_props)
    graph = flat.graph
    graph.name = proto.graph.name
    graph.input.extend(proto.graph.input)
    graph.initializer.extend(proto.graph.initializer)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    return flat


def _branch(node: NodeProto, way: bool) -> GraphProto | None:
    return next((g for a, g in subgraphs(node) if a == BRANCHES[way]), None)


def _paste(graph: GraphProto, branch: GraphProto, path: str) -> list[str]:
    """Put the nodes and constants of a branch into a graph, under their keys; those of its outputs."""
    local = {t.name for t in branch.initializer} | {t.values.name for t in branch.sparse_initializer}
    local |= {o for n in branch.node for o in n.output if o}
    names = {n: path + n for n in local}
    for tensor in branch.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = names[tensor.name]
    for sparse in branch.sparse_initializer:
        graph.sparse_initializer.add().CopyFrom(sparse)
        graph.sparse_initializer[-1].values.name = names[sparse.values.name]
    for node in branch.node:
        graph.node.add().CopyFrom(node)
        rename(graph.node[-1], lambda n: names.get(n, n))
    return [names.get(o.name, o.name) for o in branch.output]
