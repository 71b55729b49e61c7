"""Carry out a removal: slice every constant by its map, let attributes and shape parameters follow, drop what died.

Works on an import of the original, which is left alone. Operators are not known here: their rules' `adjust` say what changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import NodeProto

from onnxprune import ops
from onnxprune.cut.node_edit import NodeEdit
from onnxprune.cut.ports import ports
from onnxprune.cut.snapshot import Snapshot
from onnxprune.groups.analysis import Analysis, Shapes, compress, kept_mask
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import clusters
from onnxprune.groups.observation import Array
from onnxprune.model.exporter import node_writer
from onnxprune.model.graph import Node, View, view
from onnxprune.model.importer import export_model, import_graph
from onnxprune.model.interface import Interface, marked
from onnxprune.ops import failures


def rewrite(analysis: Analysis, removed: Bools) -> onnx.ModelProto:
    """The model without the classes marked in `removed` (bool per class, closed under rows); told its ports, where its interface
    changes (`model/interface.py`).
    """
    return Rewriter(analysis)(removed)


class Rewriter:
    """Cuts one model any number of times: the graph is imported once, and put back as it was after each cut.

    Called with the classes to remove (bool per class, closed under rows), it gives the model without them.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.graph = import_graph(analysis.model)
        self.view = view(self.graph, analysis.view.opsets)
        self._original = Snapshot(self.view)

    def __call__(self, removed: Bools) -> onnx.ModelProto:
        try:
            found = ports(self.analysis, removed)
            surgery = _Surgery(self.analysis, self.view, self.analysis.solution.of_units(removed), found)
            surgery.slice_constants()
            surgery.adjust_nodes()
            surgery.update_shapes()
            surgery.finish()
            model = export_model(self.graph, self.analysis.model.proto)
            return marked(model, found)
        finally:
            self._original.restore()

    def part(self, removed: Bools, nodes: Collection[str]) -> Part:
        """Some nodes (by key) as they are after a removal, in the order of the graph, with those that the cut puts around them."""
        try:
            surgery = _Surgery(self.analysis, self.view, self.analysis.solution.of_units(removed), ())
            surgery.slice_constants(nodes)
            surgery.adjust_nodes(nodes)
            found: list[gs.Node] = []
            for key, node in surgery.nodes.items():
                if key in nodes:
                    own = node.gs_node
                    found += [*surgery.before.get(id(own), ()), own, *surgery.after.get(id(own), ())]
            constants = {
                t.name: np.asarray(t.values) for n in found for t in n.inputs if isinstance(t, gs.Constant) and t.name
            }
            return Part([self._write(n) for n in found], constants)
        finally:
            self._original.restore()

    @cached_property
    def _write(self) -> Callable[[gs.Node], NodeProto]:
        return node_writer(self.analysis.model.proto)


@dataclass(frozen=True)
class Part:
    """nodes: in the order of the graph. constants: what they read, by name."""

    nodes: list[NodeProto]
    constants: dict[str, Array]


class _Surgery:
    def __init__(self, analysis: Analysis, graph: View, gone: Bools, found: Interface) -> None:
        self.analysis = analysis
        self.ports = found
        self.view = graph
        self.gone = gone
        self.shapes = Shapes(analysis, gone)
        self.nodes = {n.key: n for n in graph.graph.walk()}
        self.aliases = analysis.sources
        self.readers = _readers(graph)
        self.before: dict[int, list[gs.Node]] = defaultdict(list)
        self.after: dict[int, list[gs.Node]] = defaultdict(list)
        self.dead_already = _dead(graph)
        self.is_sized = all(_is_sized(t) for t in graph.gs_graphs[""].inputs)
        self.names: set[str] = {t.name for t in graph.tensors.values()}

    # -- constants

    def slice_constants(self, only: Container[str] | None = None) -> None:
        """Slice per use; one constant stays one as long as all of its uses are cut alike. only: keys of the nodes to do it for."""
        cuts: dict[str, dict[tuple[Any, ...], list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
        for (node, i), (source, maps) in self.analysis.uses.items():
            if only is not None and node not in only:
                continue
            if any(self.gone[f].any() for f in maps):
                shape = self.shapes.old(source)
                masks = [(axes, kept_mask(facets, axes, shape, self.gone)) for axes, facets in clusters(maps)]
                marks = tuple(sorted((axes, mask.tobytes()) for axes, mask in masks if not mask.all()))
                cuts[source][marks].append((node, i))
        for source, ways in cuts.items():
            constant = self.view.constants[source]
            values = np.asarray(constant.values)
            cut = {use for uses in ways.values() for use in uses}
            everyone = len(ways) == 1 and self.analysis.view_uses(source) == cut
            for marks in ways:
                node, i = ways[marks][0]
                array = compress(values, self.analysis.uses[node, i][1], self.gone)
                if everyone:
                    constant.values = array
                    continue
                new = gs.Constant(self.fresh_name(constant.name), array)
                for use_node, use_i in ways[marks]:
                    self._ends(use_node)[use_i] = new

    def _ends(self, use: str) -> list[gs.Tensor]:
        """What reads constants: the inputs of a node, or the outputs of a subgraph."""
        ends: list[gs.Tensor] = (
            self.nodes[use].gs_node.inputs
            if use in self.nodes
            else self.view.gs_graphs[use.removesuffix("output")].outputs
        )
        return ends

    def fresh_name(self, base: str) -> str:
        k = 0
        while (name := f"{base}_pruned{k or ''}") in self.names:
            k += 1
        self.names.add(name)
        return name

    # -- nodes

    def adjust_nodes(self, only: Container[str] | None = None) -> None:
        for node in self.view.graph.walk() if only is None else (n for k, n in self.nodes.items() if k in only):
            rule = ops.rule_for(node.op, node.domain)
            if rule.adjust is None or (node.key in self.analysis.skipped and not rule.carries_shape):
                continue
            edit = NodeEdit(self, node)
            if edit.changes():
                failures.must(rule, "adjust", str(node), partial(rule.adjust, edit))

    def update_shapes(self) -> None:
        """Declared shapes follow; so does a name that an input or output gives to an axis which gets shorter."""
        symbols = {
            self.view.tensors[p.tensor].shape[p.axis]
            for p in self.ports
            if len(self.view.tensors[p.tensor].shape or ()) > p.axis
        } - {None}
        for key in self.analysis.maps:
            tensor = self.view.tensors.get(key)
            if not isinstance(tensor, gs.Variable) or tensor.shape is None:
                continue
            old, new = self.shapes.old(key), self.shapes.new(key)
            if old != new and len(tensor.shape) == len(old):
                tensor.shape = tuple(
                    n if o != n and (isinstance(d, int) or d in symbols) else d
                    for d, o, n in zip(tensor.shape, old, new, strict=True)
                )

    def finish(self) -> None:
        for graph in self.view.gs_graphs.values():
            if any(id(n) in self.before or id(n) in self.after for n in graph.nodes):
                graph.nodes = [
                    x for n in graph.nodes for x in (*self.before.get(id(n), ()), n, *self.after.get(id(n), ()))
                ]
        remove_dead(self.view, self.dead_already)


def _readers(graph: View) -> dict[str, list[tuple[Node, int]]]:
    readers: dict[str, list[tuple[Node, int]]] = defaultdict(list)
    for node in graph.graph.walk():
        for i, key in enumerate(node.inputs):
            if key:
                readers[key].append((node, i))
    return readers


def _dead(graph: View) -> set[int]:
    """Nodes that nothing reads in the original: they are the file's own, and stay."""
    outputs = {id(t) for g in graph.gs_graphs.values() for t in g.outputs}
    return {
        id(n.gs_node) for n in graph.graph.walk() if not any(id(t) in outputs or t.outputs for t in n.gs_node.outputs)
    }


def remove_dead(graph: View, keep: set[int]) -> None:
    """Remove nodes that nobody reads any more."""
    captured = _captured_ids(graph)
    for sub in graph.gs_graphs.values():
        outputs = {id(t) for t in sub.outputs}
        again = True
        while again:
            alive = [
                n
                for n in sub.nodes
                if id(n) in keep
                or not n.outputs
                or any(id(t) in outputs or id(t) in captured or len(t.outputs) for t in n.outputs)
            ]
            again = len(alive) < len(sub.nodes)
            if again:
                gone = {id(n) for n in sub.nodes} - {id(n) for n in alive}
                for n in list(sub.nodes):
                    if id(n) in gone:
                        n.inputs.clear()
                sub.nodes = alive


def _is_sized(tensor: gs.Tensor) -> bool:
    """Is every size of an input declared, so that no other can be observed?"""
    return tensor.shape is not None and all(isinstance(n, int) and n >= 0 for n in tensor.shape)


def _captured_ids(graph: View) -> set[int]:
    """Outputs of subgraphs that are tensors of an outer graph."""
    return {id(t) for g in graph.gs_graphs.values() for t in g.outputs}
