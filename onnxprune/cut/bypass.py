"""Layers and nodes that go: everything that reads a tensor gets another one instead, and what only made the first is dropped.

    Conv -> Relu -> Conv -> Add(skip)        Bypass("add", "skip"): the residual branch is gone
    x -> LayerNorm -> y                      Bypass("y", "x"): the norm is gone
    y of layer 7, y of layer 5               Bypass(y7, y5): two whole layers are gone

Nothing is said of operators: any tensor may stand in for one that is computed from it, has the same shape and the same type of
floats. In the rewritten model `Identity(by)` makes `tensor`, so that every name of the original that is left keeps its meaning;
`cut/tidy.py` takes the Identity away at the end. Several bypasses go together in any order: each points back in the order of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onnx import GraphProto, ModelProto, helper

from onnxprune.errors import BadInputError, quoted
from onnxprune.groups.analysis import Analysis
from onnxprune.model.branches import SEPARATOR, leading_to, subgraphs
from onnxprune.model.element_types import kinds
from onnxprune.model.graph import Graph, Node, name_of

FLOATS = {"float", "double", "float16", "bfloat16"}


@dataclass(frozen=True)
class Bypass:
    """Everything that reads one tensor gets an earlier one instead. Both are keys (`model/graph.py`).

    tensor: the one that nothing reads any more.
    by: the earlier one.
    """

    tensor: str
    by: str


# ---------------------------------------------------------------- in a model


def bypassed(proto: ModelProto, bypasses: Iterable[Bypass]) -> ModelProto:
    """A copy in which an Identity of `by` makes every bypassed tensor, without what nothing needs any more."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    wanted = {b.tensor: b.by for b in bypasses}
    if wanted:
        _replace(copy.graph, "", wanted)
        sweep(copy.graph)
    return copy


def _replace(graph: GraphProto, path: str, wanted: Mapping[str, str]) -> None:
    for node, key in keyed(graph, path):
        name = next((o for o in node.output if o and path + o in wanted), None)
        if name is not None:
            node.CopyFrom(helper.make_node("Identity", [name_of(wanted[path + name])], [name], name=node.name))
            continue
        for attribute, sub in subgraphs(node):
            _replace(sub, f"{key}.{attribute}{SEPARATOR}", wanted)


def keyed(graph: GraphProto, path: str = "") -> list[tuple[Any, str]]:
    """The nodes of one graph with their keys."""
    return [(n, path + next((o for o in n.output if o), f"#{k}")) for k, n in enumerate(graph.node)]


def node_keys(graph: GraphProto, path: str = "") -> Iterator[str]:
    """Keys of all nodes, those of subgraphs included."""
    for node, key in keyed(graph, path):
        yield key
        for attribute, sub in subgraphs(node):
            yield from node_keys(sub, f"{key}.{attribute}{SEPARATOR}")


def sweep(graph: GraphProto) -> None:
    """Drop, in place, the nodes that no output of the graph needs, constants that nobody reads, and what was said of them."""
    needed = {o.name for o in graph.output}
    alive = []
    for node in leading_to(needed, graph):
        for _, sub in subgraphs(node):
            sweep(sub)
        alive.append(node)
    if len(alive) < len(graph.node):
        kept = [type(n)() for n in alive]
        for new, node in zip(kept, reversed(alive), strict=True):
            new.CopyFrom(node)
        del graph.node[:]
        graph.node.extend(kept)
    needed |= {i.name for i in graph.input}
    _keep(graph.initializer, [t.name in needed for t in graph.initializer])
    _keep(graph.sparse_initializer, [t.values.name in needed for t in graph.sparse_initializer])
    made = needed | {o for n in graph.node for o in n.output}
    _keep(graph.value_info, [v.name in made for v in graph.value_info])
    _keep(graph.quantization_annotation, [q.tensor_name in made for q in graph.quantization_annotation])


def _keep(field: Any, kept: list[bool]) -> None:
    for k in reversed(range(len(kept))):
        if not kept[k]:
            del field[k]


# ---------------------------------------------------------------- in an analysis


class Links:
    """Who makes and who reads each tensor, over all scopes; what dies with a bypass, and which ones are legal."""

    def __init__(self, analysis: Analysis) -> None:
        view = analysis.view
        self.analysis = analysis
        self.nodes = {n.key: n for n in view.graph.walk()}
        self.maker = {o: n for n in self.nodes.values() for o in n.outputs if o}
        self.reads = {key: _reads(node) for key, node in self.nodes.items()}
        self.outputs = _outputs(view.graph)

    @cached_property
    def types(self) -> dict[str, str]:
        return kinds(self.analysis.view)

    @cached_property
    def used(self) -> set[str]:
        return set().union(self.outputs, *self.reads.values())

    def alive(self, bypasses: Iterable[Bypass] = ()) -> set[str]:
        """Keys of the nodes that the model's outputs need; a bypassed tensor needs nothing but what it is replaced by."""
        wanted = {b.tensor: b.by for b in bypasses}
        found: set[str] = set()
        stack = list(self.analysis.view.graph.outputs)
        while stack:
            tensor = stack.pop()
            if tensor in wanted:
                stack.append(wanted[tensor])
                continue
            node = self.maker.get(tensor)
            if node is None or node.key in found:
                continue
            found.add(node.key)
            stack.extend(node.inputs)
            for graph in node.subgraphs.values():
                stack.extend(graph.outputs)
        return found

    @cached_property
    def whole(self) -> set[str]:
        return self.alive()

    def gone(self, bypasses: Iterable[Bypass]) -> frozenset[str]:
        """Keys of the nodes that a set of bypasses leaves without purpose, those it replaces included."""
        return frozenset(self.whole - self.alive(bypasses))

    @cached_property
    def _readers(self) -> Counter[str]:
        """How many nodes (or outputs of the model) read each tensor; a node reads the outputs of its subgraphs."""
        counts = Counter(x for node in self.nodes.values() if node.key in self.whole for x in _own_reads(node))
        counts.update(self.analysis.view.graph.outputs)
        return counts

    def gone_with(self, bypass: Bypass) -> frozenset[str]:
        """`gone` of a single one, looking no further than what dies."""
        first = self.maker[bypass.tensor]
        if first.key not in self.whole:
            return frozenset()
        left: dict[str, int] = {bypass.by: self._readers[bypass.by] + 1}
        found = {first.key}
        stack = [first]
        while stack:
            for name in _own_reads(stack.pop()):
                left[name] = left.get(name, self._readers[name]) - 1
                node = self.maker.get(name)
                if node is None or left[name] or node.key in found:
                    continue
                if not any(left.get(o, self._readers[o]) for o in node.outputs if o):
                    found.add(node.key)
                    stack.append(node)
        return frozenset(found)

    def ancestors(self, tensor: str) -> set[str]:
        """All tensors that a tensor is computed from."""
        found: set[str] = set()
        stack = [tensor]
        while stack:
            node = self.maker.get(stack.pop())
            for name in self.reads[node.key] if node is not None else ():
                if name not in found:
                    found.add(name)
                    stack.append(name)
        return found

    def refusal(self, bypass: Bypass) -> str | None:
        """Why a bypass is not possible, as the end of a sentence; None where it is. Whether `by` comes before is not looked at."""
        tensor, by = bypass.tensor, bypass.by
        node = self.maker.get(tensor)
        if node is None:
            return "no node makes it"
        if by not in self.analysis.view.tensors or by in self.analysis.view.constants:
            return f"{quoted(by)} is no activation of the model"
        if not scope(tensor).startswith(scope(by)):
            return f"{quoted(by)} lies in another branch"
        if any(o in self.used for o in node.outputs if o and o != tensor):
            return "its node has other outputs that are read"
        seen = self.analysis.observation
        for shapes in (seen.shapes, seen.other_shapes):
            if tensor not in shapes or by not in shapes:
                return "it was not observed (a branch not taken, or no tensor)"
            if shapes[tensor] != shapes[by]:
                return f"{quoted(by)} has shape {list(shapes[by])}, not {list(shapes[tensor])}"
        if self.types.get(tensor) not in FLOATS or self.types.get(tensor) != self.types.get(by):
            return f"it and {quoted(by)} are not floats of one type"
        return None


def checked(analysis: Analysis, bypasses: Sequence[Bypass], what: str = "the plan") -> None:
    """Raise `BadInputError` where a bypass from outside is none: nothing in a plan is trusted."""
    links = Links(analysis)
    twice = len({b.tensor for b in bypasses}) < len(bypasses)
    if twice:
        raise BadInputError(f"{what} bypasses a tensor twice; it was edited or made by another version.")
    for bypass in bypasses:
        reason = links.refusal(bypass)
        if reason is None and bypass.by not in links.ancestors(bypass.tensor):
            reason = f"it is not computed from {quoted(bypass.by)}"
        if reason is not None:
            raise BadInputError(f"{what} bypasses {quoted(bypass.tensor)}, but {reason}; apply it to its own model.")


def scope(key: str) -> str:
    """The path of the graph that a tensor lives in: "" at the top."""
    return key[: len(key) - len(name_of(key))]


def _reads(node: Node) -> set[str]:
    """What a node reads, what its subgraphs capture included."""
    found = {x for x in node.inputs if x}
    for graph in node.subgraphs.values():
        found |= {x for x in graph.outputs if x}
        for inner in graph.nodes:
            found |= _reads(inner)
    return found


def _own_reads(node: Node) -> set[str]:
    """What a node reads itself, and what its subgraphs give it."""
    return {x for x in (*node.inputs, *(o for g in node.subgraphs.values() for o in g.outputs)) if x}


def _outputs(graph: Graph) -> set[str]:
    found = set(graph.outputs)
    for node in graph.walk():
        for sub in node.subgraphs.values():
            found |= set(sub.outputs)
    return found
