"""A graph put back as it was after a cut."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.model.graph import View


class Snapshot:
    """What a cut may change in a graph: its nodes, their attributes and tensors, and the tensors' values, shapes and links."""

    def __init__(self, graph: View) -> None:
        nodes = [n.gs_node for n in graph.graph.walk()]
        ends = [t for n in nodes for t in (*n.inputs, *n.outputs)]  # also the empty ones, which have no key
        tensors = {id(t): t for t in (*graph.tensors.values(), *ends)}.values()
        self.nodes = [(g, list(g.nodes), list(g.outputs)) for g in graph.gs_graphs.values()]
        self.attrs = [(n.attrs, list(n.attrs.items())) for n in nodes]
        self.links = [(x, list(x)) for end in (*nodes, *tensors) for x in (end.inputs, end.outputs)]
        self.values = [(t, t._values) for t in tensors if isinstance(t, gs.Constant)]
        self.shapes = [(t, t.shape) for t in tensors if not isinstance(t, gs.Constant)]

    def restore(self) -> None:
        for graph, nodes, outputs in self.nodes:
            graph.nodes, graph.outputs = list(nodes), list(outputs)
        for attrs, items in self.attrs:
            attrs.clear()
            attrs.update(items)
        for link, ends in self.links:
            list.__setitem__(link, slice(None), ends)  # both sides are put back, so neither may tell the other
        for constant, values in self.values:
            constant._values = values
        for variable, shape in self.shapes:
            variable.shape = shape
