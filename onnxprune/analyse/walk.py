"""What can be removed from a graph: walk it once with index maps, then solve.

The walk is in graph order. Every node's rule sees the maps of its inputs and gives those of its outputs, and leaves
ties, rows and pins in the unit table. The model is observed in ONNX Runtime beforehand, so all shapes are concrete.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from itertools import chain

import numpy as np

from onnxprune import ops
from onnxprune.analyse.dependence import fixed_tensors, of_every_step
from onnxprune.analyse.freed import NOTHING, Freed, admit, offer, release, tie_pair
from onnxprune.analyse.guard import guarded
from onnxprune.analyse.repeats import Repeats, Sizes
from onnxprune.clock import Share, unshared
from onnxprune.groups.analysis import Analysis, Use
from onnxprune.groups.grouping import solve
from onnxprune.groups.maps import Facet, Maps, Shape, per_axis, simplify, squeezed
from onnxprune.groups.observation import Array, Observation
from onnxprune.groups.units import Pin, UnitTable
from onnxprune.model.element_types import kinds
from onnxprune.model.graph import Graph, Node, View, name_of, view
from onnxprune.model.importer import import_graph
from onnxprune.model.loaded import LoadedModel
from onnxprune.ops import failures
from onnxprune.ops.base import FREE_REMEDY, MapContext, Parts, Rule

Observer = Callable[[set[str], set[str]], Observation]


def analyse(
    model: LoadedModel,
    observer: Observer,
    include_inexact: bool = False,
    exclude: Callable[[str], bool] | None = None,
    include: Callable[[str], bool] | None = None,
    free: Freed = NOTHING,
    share: Share = unshared,
) -> Analysis:
    """Index maps, pins and groups of a model. `observer(wanted, typed)` runs it (see `runtime.Probe`).

    exclude: names of nodes or tensors whose units the user wants left alone; include: leave alone what has no weight
    whose node or tensor matches. free: inputs and outputs that may shrink. share: told how much is done.
    """
    graph = view(import_graph(model), {o.domain: o.version for o in model.proto.opset_import})
    nodes = list(graph.graph.walk())
    wanted = {n.inputs[i] for n in nodes for i in rule(n).params if i < len(n.inputs)} - set(graph.constants)
    typed = {n.outputs[0] for n in nodes if rule(n).typed}
    observation = of_every_step(observer(wanted, typed), graph.graph)
    share(0.5)
    walk = _Walk(graph, observation, exclude, include, free, {})
    walk.whole()
    while walk.repeats.missed:
        walk = _Walk(graph, observation, exclude, include, free, walk.repeats.known)
        walk.whole()
    share(0.8)
    fixed = fixed_tensors(graph)
    activations = [f for key, maps in walk.state.items() if key not in fixed for f in maps]
    computed = [f for key, maps in walk.state.items() if key in fixed for f in maps]
    constants = [*computed, *(f for _, maps in walk.uses.values() for f in maps)]
    rounded = np.concatenate([np.empty(0, np.int64), *walk.rounded])
    included = None if include is None else np.concatenate([np.empty(0, np.int64), *walk.included])
    solution = solve(walk.units, activations, constants, rounded, include_inexact, included, name=walk.name)
    solution = guarded(solution, [*activations, *constants, *walk.units.boxes])
    return Analysis(
        model=model,
        view=graph,
        observation=observation,
        feeds=observation.feeds,
        solution=solution,
        maps=walk.state,
        uses=walk.uses,
        skipped=frozenset(walk.skipped),
        readers=walk.readers(),
        sources=walk.lazy,
        unknown=tuple(dict.fromkeys(walk.unknown)),
        crashed=tuple(dict.fromkeys(walk.crashed)),
    )


def rule(node: Node) -> Rule:
    return ops.rule_for(node.op, node.domain)


class _Walk:
    """State of one walk: maps by tensor, those of its parts by sequence, constants by use."""

    def __init__(
        self,
        view: View,
        observation: Observation,
        exclude: Callable[[str], bool] | None,
        include: Callable[[str], bool] | None,
        free: Freed,
        repeated: dict[Sizes, int],
    ) -> None:
        self.view = view
        self.free = free
        self.observation = observation
        self.exclude = exclude
        self.include = include
        self.included: list[Facet] = []
        self.held = frozenset(view.graph.inputs) - frozenset(free.inputs)
        self.units = UnitTable()
        self.state: dict[str, Maps] = {}
        self.repeats = Repeats(observation, self.units, self.state, repeated)
        self.parts: dict[str, Parts] = {}
        self.uses: dict[Use, tuple[str, Maps]] = {}
        self.lazy: dict[str, str] = {key: key for key in view.constants}
        self.shapes: dict[str, Shape] = dict(observation.shapes)
        self.shapes |= {key: tuple(c.shape) for key, c in view.constants.items()}
        self.index_like: set[str] = {
            key for key, c in view.constants.items() if np.dtype(_dtype(c)).kind in "iub" and np.prod(c.shape) <= 64
        }
        self.no_units: set[str] = {
            key for key, c in view.constants.items() if np.dtype(_dtype(c)).name in ("int32", "int64", "bool", "object")
        }
        self.values: dict[str, Array | None] = {}
        self.skipped: set[str] = set()
        self.rounded: list[Facet] = []
        self.unknown: list[str] = []
        self.crashed: list[str] = []

    def value(self, key: str) -> Array | None:
        """A constant's value, or what both feeds agreed on."""
        if key not in self.values:
            source = self.lazy.get(key)
            if source is not None:
                self.values[key] = np.asarray(self.view.constants[source].values)
            else:
                same = self.observation.is_static_value(key)
                self.values[key] = self.observation.values[key] if same else None
        return self.values[key]

    def whole(self) -> None:
        """Walk the model, and settle what may become of its inputs and outputs."""
        dynamic = self.observation.is_dynamic
        inputs = admit(self.units, self.free, self.shapes, kinds(self.view) if self.free.inputs else {}, dynamic)
        self.state |= inputs
        for node in self.view.graph.nodes:
            self.node(node)
        for key in self.view.graph.outputs:
            if key in self.free.outputs and not self._inside(key):
                release(self.units, key, self.state.get(key, ()), dynamic)
                continue
            pin = Pin(key, f"graph output '{key}' keeps its shape", FREE_REMEDY.format(key))
            for facet in (*self.state.get(key, ()), *self._inside(key)):
                self.units.pin(facet.ravel(), pin)
        for before, after in self.free.pairs:
            if before in inputs and after in self.shapes:
                maps = inputs[before], self.state.get(after, ())
                tie_pair(self.units, (before, after), maps, (self.shapes[before], self.shapes[after]), dynamic)
        if inputs:
            offer(self.units, inputs, [f for _, maps in self.uses.values() for f in maps])

    def graph(self, graph: Graph) -> list[tuple[Maps, Shape | None]] | None:
        for node in graph.nodes:
            self.node(node)
        if any(k not in self.shapes and k not in self.parts for k in graph.outputs):
            for key in graph.outputs:
                pin = Pin(key, f"'{key}' leaves a subgraph whose outputs were not all observed")
                for facet in (*self.state.get(key, ()), *self._inside(key)):
                    self.units.pin(facet.ravel(), pin)
            return None
        return [(self._given(graph, k, key), self.shapes.get(key)) for k, key in enumerate(graph.outputs)]

    def _given(self, graph: Graph, k: int, key: str) -> Maps:
        """What a subgraph gives as its output `k`; a constant gets units of its own."""
        source = self.lazy.get(key)
        if source is None or source in self.no_units:
            return self.state.get(key, ())
        use = (f"{graph.path}output", k)
        self.uses[use] = (source, per_axis(self.shapes[key], lambda n: self.units.issue(n, f"output '{key}'")))
        return self.uses[use][1]

    def _inside(self, key: str) -> list[Facet]:
        """What lies in a sequence."""
        return [f for maps, _ in self.parts.get(key, ()) for f in maps]

    def subgraph(
        self, graph: Graph, inputs: dict[str, Maps], parts: dict[str, Parts]
    ) -> list[tuple[Maps, Shape | None]] | None:
        self.state |= inputs
        self.parts |= parts
        return self.graph(graph)

    def share(self, graphs: list[Graph], pin: Pin) -> None:
        """Tie what these subgraphs, of which a run takes one, read of the same constants: the first use in each, the second, …"""
        reads: list[dict[str, list[Maps]]] = []
        for graph in graphs:
            mine: dict[str, list[Maps]] = defaultdict(list)
            for node in graph.walk():
                for i, key in enumerate(node.inputs):
                    source = self.lazy.get(key)
                    is_alias = rule(node).alias and i == 0
                    if source is not None and source not in self.no_units and not is_alias:
                        mine[source].append(self.uses.get((node.key, i), (source, ()))[1])
            reads.append(mine)
        for source in reads[0]:
            each = [mine[source] for mine in reads if source in mine]
            in_order = len({len(x) for x in each}) == 1
            for first, *others in zip(*each, strict=True) if in_order else [tuple(chain.from_iterable(each))]:
                for other in others:
                    self._tie_alike(first, other, pin)

    def _tie_alike(self, first: Maps, second: Maps, pin: Pin) -> None:
        """Two index maps of one constant: facets along the same axes are tied, others stay."""
        left = list(second)
        for facet in first:
            partner = next((f for f in left if f.shape == facet.shape), None)
            if partner is None:
                self.units.pin(facet.ravel(), pin)
            else:
                self.units.tie(facet, partner, pin)
                left = [f for f in left if f is not partner]
        for facet in left:
            self.units.pin(facet.ravel(), pin)

    def node(self, node: Node) -> None:
        found = rule(node)
        if found is ops.UNKNOWN:
            self.unknown.append(str(node))
        if found.alias and node.inputs[0] in self.lazy:
            source = self.lazy[node.inputs[0]]
            self.lazy[node.outputs[0]] = source
            self.shapes[node.outputs[0]] = self.shapes[source]
            if source in self.index_like:
                self.index_like.add(node.outputs[0])
            if source in self.no_units:
                self.no_units.add(node.outputs[0])
            return
        if found.adjust is not None and found.repeats is None:
            self.repeats.hold(node)
        if self._computes_shapes(node, found):
            self.skipped.add(node.key)
            return
        if self._is_unseen(node, found) and not node.subgraphs:
            found = ops.UNSEEN if found.sequences is None else ops.UNFOLLOWED
        domain = "" if node.domain == "ai.onnx" else node.domain
        context = MapContext(
            node,
            shapes=self.shapes,
            lazy=self.lazy,
            state=self.state,
            parts=self.parts,
            values=self.value,
            units=self.units,
            opset=self.view.opsets.get(domain, 1),
            walk=self.subgraph,
            share=self.share,
            indices=self.no_units,
            is_dynamic=self.observation.is_dynamic,
            per_sample=self.repeats.per_sample,
            entries=self.observation.entries,
            held=self.held,
        )
        if found.sequences is None:
            reason = "takes a sequence of tensors as a whole, and does not follow what is in it"
            context.pin([f for key in node.inputs for f in self._inside(key)], reason)
        results = self._results(found, context)
        self.parts |= {node.outputs[k]: parts for k, parts in context.built.items()}
        for i, maps in context.given.items():
            self.uses[node.key, i] = (self.lazy[node.inputs[i]], maps)
            if found.rounded:
                self.rounded += [f.ravel()[f.ravel() >= 0] for f in maps]
        self.state |= results
        self._user_pins(context)

    def _is_unseen(self, node: Node, found: Rule) -> bool:
        """Is there a tensor without a shape, or a sequence whose parts are not known?"""
        known = found.sequences or ()
        read = [k for k in node.inputs if k and (found.sequences is None or k not in self.parts)]
        made = [k for i, k in enumerate(node.outputs) if k and i not in known]
        return any(k not in self.shapes and k not in self.index_like for k in (*read, *made))

    def _results(self, found: Rule, context: MapContext) -> dict[str, Maps]:
        """Maps of the outputs, by tensor; where the rule fails, all that the node touches stays."""
        node, issued = context.node, self.units.count
        try:
            results = found.maps(context)
            for i, maps in context.given.items():
                self._check_fit(f"input {i}", tuple(self.shapes[node.inputs[i]]), maps)
            for maps, shape in (part for parts in context.built.values() for part in parts):
                self._check_fit("a part of a sequence", shape, maps)
            return {
                key: self._checked(context, key, simplify(maps))
                for key, maps in zip(node.outputs, results, strict=False)
                if key and maps
            }
        except Exception as error:
            if failures.is_strict():
                raise
            text = failures.sentence(found, "maps", str(node), error)
            self.crashed.append(text)
            failures.pin_everything(context, text, issued)
            return {}

    def _check_fit(self, what: str, shape: Shape, maps: Maps) -> None:
        for facet in maps:
            if facet.ndim != len(shape) or any(n not in (1, s) for n, s in zip(facet.shape, shape, strict=True)):
                raise ValueError(f"{what} got a facet of shape {facet.shape} for a tensor of shape {shape}")

    def name(self, facet: Facet) -> str:
        """A tensor that has these units, by the node that makes it, or reads it where it is a constant; for messages."""
        facet = squeezed(facet)
        found = self._places[facet.shape, facet.flat[0], facet.flat[-1]] if facet.size else []
        return next((name for other, name in found if np.array_equal(facet, other)), "")

    @cached_property
    def _places(self) -> dict[tuple[object, ...], list[tuple[Facet, str]]]:
        """Every tensor's maps and name, by shape and ends of the map."""
        nodes = {n.key: str(n) for n in self.view.graph.walk()}
        makers = {key: str(n) for n in self.view.graph.walk() for key in n.outputs if key}
        named = [(makers.get(key, f"'{name_of(key)}'"), maps) for key, maps in self.state.items()]
        named += [(f"input {i} of {nodes.get(key, key)}", maps) for (key, i), (_, maps) in self.uses.items()]
        places: dict[tuple[object, ...], list[tuple[Facet, str]]] = defaultdict(list)
        for name, maps in named:
            for facet in (squeezed(f) for f in maps if f.size):
                places[facet.shape, facet.flat[0], facet.flat[-1]].append((facet, name))
        return places

    def readers(self) -> dict[str, set[Use]]:
        """Per constant, all (node, input) that read it; a graph output that is a constant counts as a reader."""
        readers: dict[str, set[Use]] = defaultdict(set)
        for node in self.view.graph.walk():
            if rule(node).alias and node.inputs[0] in self.lazy:
                continue
            for i, key in enumerate(node.inputs):
                if key in self.lazy:
                    readers[self.lazy[key]].add((node.key, i))
        for path, graph in self.view.gs_graphs.items():
            for k, tensor in enumerate(graph.outputs):
                key = self.view.keys.get(id(tensor), "")
                if key in self.lazy:
                    readers[self.lazy[key]].add((f"{path}output", k))
        return readers

    def _computes_shapes(self, node: Node, found: Rule) -> bool:
        """Integer arithmetic on shapes and small index constants, which carries no units."""
        if found.carries_shape:
            self.index_like.update(node.outputs)
            return True
        if node.subgraphs or not node.inputs or found is ops.UNKNOWN:
            return False
        if all(not k or k in self.index_like for k in node.inputs) and any(node.inputs):
            rank_one = all(len(self.shapes.get(k, ())) <= 1 for k in node.outputs if k)
            if rank_one:
                self.index_like.update(node.outputs)
                return True
        return False

    def _checked(self, context: MapContext, key: str, maps: Maps) -> Maps:
        """Pin what would have to shrink along a dynamic axis."""
        shape = self.shapes[key]
        good = []
        self._check_fit(f"output '{key}'", shape, maps)
        for facet in maps:
            if facet.size == 1:
                context.pin([facet], f"leaves it as the only position of '{key}'")
                continue
            facet = self.repeats.checked(context, key, facet)
            if facet.size > 1:
                good.append(facet)
        return tuple(good)

    def _user_pins(self, context: MapContext) -> None:
        node = context.node
        if self.include is not None:
            mine = self.include(node.name) or any(self.include(name_of(k)) for k in node.outputs)
            for i, maps in context.given.items():
                if mine or self.include(name_of(node.inputs[i])) or self.include(name_of(self.lazy[node.inputs[i]])):
                    self.included += [f[f >= 0] for f in maps]
        if self.exclude is None:
            return
        if self.exclude(node.name):
            for maps in (*context.given.values(), *(self.state.get(k, ()) for k in node.outputs)):
                context.pin(list(maps), "is excluded", "change --include / --exclude")
        for i, maps in context.given.items():
            if self.exclude(name_of(node.inputs[i])):
                context.pin(list(maps), f"uses '{node.inputs[i]}', which is excluded", "change --include / --exclude")
        for key in node.outputs:
            if key and self.exclude(name_of(key)):
                context.pin(
                    list(self.state.get(key, ())), f"gives '{key}', which is excluded", "change --include / --exclude"
                )


def _dtype(constant: object) -> np.dtype[np.generic]:
    try:
        return np.dtype(constant.dtype)  # type: ignore[attr-defined]
    except TypeError:
        return np.dtype(np.float32)
