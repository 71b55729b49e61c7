"""Carry out a removal: slice every constant by its map, let attributes and shape parameters follow, drop what died.

Works on an import of the original, which is left alone. Operators are not known here: their rules' `adjust` say what changes.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune import ops
from onnxprune.cut.ports import ports
from onnxprune.cut.snapshot import Snapshot
from onnxprune.groups.analysis import Analysis, Shapes, compress, kept_mask, settle
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Maps, Shape, clusters
from onnxprune.groups.observation import Array
from onnxprune.model.draws import WHOLE
from onnxprune.model.graph import Node, View, name_of, view
from onnxprune.model.importer import export_model, import_graph
from onnxprune.model.interface import Interface, marked
from onnxprune.ops import failures
from onnxprune.ops.base import Edit


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

    def slice_constants(self) -> None:
        """Slice per use; one constant stays one as long as all of its uses are cut alike."""
        cuts: dict[str, dict[tuple[Any, ...], list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
        for (node, i), (source, maps) in self.analysis.uses.items():
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

    def adjust_nodes(self) -> None:
        for node in self.view.graph.walk():
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


class NodeEdit(Edit):
    """One node under adjustment."""

    def __init__(self, surgery: _Surgery, node: Node) -> None:
        self.surgery = surgery
        self.node = node
        self.attrs = node.gs_node.attrs
        domain = "" if node.domain == "ai.onnx" else node.domain
        self.opset = surgery.view.opsets.get(domain, 1)

    def changes(self) -> bool:
        shapes = self.surgery.shapes
        inputs = any(self.has(i) and self.old(i) != self.new(i) for i in range(len(self.node.inputs)))
        return inputs or any(
            k and k in shapes.analysis.maps and shapes.old(k) != shapes.new(k) for k in self.node.outputs
        )

    def has(self, i: int) -> bool:
        return i < len(self.node.inputs) and self.node.inputs[i] != ""

    def _key(self, i: int) -> str:
        key = self.node.inputs[i]
        return self.surgery.aliases.get(key, key)

    def _maps(self, i: int) -> Maps:
        analysis = self.surgery.analysis
        use = analysis.uses.get((self.node.key, i))
        return use[1] if use else analysis.maps.get(self.node.inputs[i], ())

    def old(self, i: int) -> Shape:
        try:
            return self.surgery.shapes.old(self._key(i))
        except KeyError:  # an unobserved index tensor
            return ()

    def new(self, i: int) -> Shape:
        return self.surgery.shapes.of_maps(self._maps(i), self.old(i))

    def old_out(self, k: int = 0) -> Shape:
        return self.surgery.shapes.old(self.node.outputs[k])

    def new_out(self, k: int = 0) -> Shape:
        return self.surgery.shapes.new(self.node.outputs[k])

    def _alive(self, maps: Maps, shape: Shape, axis: int) -> Bools:
        alive = np.ones(shape[axis], bool)
        for axes, facets in clusters(maps):
            if axis in axes:
                mask = kept_mask(facets, axes, shape, self.surgery.gone)
                alive &= mask.any(axis=tuple(k for k, a in enumerate(axes) if a != axis))
        return alive

    def kept(self, i: int, axis: int) -> Array:
        return self._alive(self._maps(i), self.old(i), axis)

    def kept_out(self, k: int, axis: int) -> Array:
        key = self.node.outputs[k]
        return self._alive(self.surgery.analysis.maps.get(key, ()), self.old_out(k), axis)

    def rank_of(self, i: int, axis: int, position: int) -> int:
        for axes, facets in clusters(self._maps(i)):
            if axis in axes:
                cut = settle(facets, axes, self.old(i), self.surgery.gone)
                rank = int(cut.alive[axis][:position].sum())
                for line, mask in cut.lines:
                    if line[-1] == axis:  # every slab that stays keeps equally many before `position`
                        rank = int(mask.reshape(-1, mask.shape[-1])[0, :rank].sum())
                return rank
        return position

    def value(self, i: int) -> Array | None:
        key = self.node.inputs[i]
        source = self.surgery.aliases.get(key)
        if source is not None:
            return np.asarray(self.surgery.analysis.view.constants[source].values)
        observation = self.surgery.analysis.observation
        return observation.values[key] if observation.is_static_value(key) else None

    def observed(self, i: int) -> Array | None:
        found = self.value(i)
        return self.surgery.analysis.observation.values.get(self.node.inputs[i]) if found is None else found

    def constant(self, key: str) -> Array | None:
        source = self.surgery.aliases.get(key)
        return None if source is None else np.asarray(self.surgery.analysis.view.constants[source].values)

    def consumers(self) -> list[tuple[Node, int]]:
        return self.surgery.readers.get(self.node.outputs[0], [])

    # -- changes

    def set_attr(self, name: str, value: Any) -> None:
        self.node.gs_node.attrs[name] = value

    def drop_attr(self, name: str) -> None:
        self.node.gs_node.attrs.pop(name, None)

    def _constant(self, hint: str, value: Array) -> gs.Constant:
        return gs.Constant(self.surgery.fresh_name(hint), np.asarray(value, order="C"))

    def set_input(self, i: int, value: Array) -> None:
        node = self.node.gs_node
        while len(node.inputs) <= i:
            node.inputs.append(gs.Variable.empty())
        old = node.inputs[i]
        if isinstance(old, gs.Constant) and self._is_own(i):  # it keeps its name, and stays an input where it is one
            old.values = np.asarray(value, order="C")
            return
        hint = node.inputs[i].name or f"{name_of(self.node.key)}_input{i}"
        node.inputs[i] = self._constant(hint, value)

    def _is_own(self, i: int) -> bool:
        """Is input `i` a constant that nothing else reads?"""
        key = self.node.inputs[i] if i < len(self.node.inputs) else ""
        found = self.surgery.analysis.view_uses(key) if self.surgery.aliases.get(key) == key else set()
        return found == {(self.node.key, i)}

    def patch_input(self, i: int, changed: Array, value: Array) -> None:
        known, is_fixed = self.value(i), self.surgery.is_sized or self.constant(self.node.inputs[i]) is not None
        if known is not None and (is_fixed or changed.all()):
            self.set_input(i, np.where(changed, value, known).astype(known.dtype))
            return
        node, tensor, observed = self.node.gs_node, self.node.gs_node.inputs[i], self.observed(i)
        dtype = np.int64 if observed is None else observed.dtype
        out = gs.Variable(self.surgery.fresh_name(tensor.name), dtype=np.dtype(dtype))
        self.surgery.before[id(node)] += self._choice(tensor, changed, value.astype(dtype), out, tensor.name)
        node.inputs[i] = out

    def patch_sizes(self, i: int, changed: Array, before: Array, after: Array) -> None:
        entries = self.surgery.analysis.observation.entries(self.node.inputs[i]) if self.value(i) is None else []
        follows = changed & np.array([e is None for e in entries] or False)
        if (changed & ~follows).any():
            self.patch_input(i, changed & ~follows, after)
        if not follows.any():
            return
        node, tensor = self.node.gs_node, self.node.gs_node.inputs[i]
        out = gs.Variable(self.surgery.fresh_name(tensor.name), dtype=np.int64)
        self.surgery.before[id(node)] += self._scaled(
            tensor, np.where(follows, before, 1), np.where(follows, after, 1), out
        )
        node.inputs[i] = out

    def _scaled(self, tensor: gs.Tensor, before: Array, after: Array, out: gs.Tensor) -> list[gs.Node]:
        """Nodes that make `out`: whole numbers times `after` / `before`, by their ratio in lowest terms, as what was observed may be a
        multiple of it, once per sample.
        """
        common = np.gcd(before, after)
        parts = self._constant(f"{out.name}_parts", (before // common).astype(np.int64))
        whole = self._constant(f"{out.name}_times", (after // common).astype(np.int64))
        each = gs.Variable(self.surgery.fresh_name(f"{out.name}_each"), dtype=np.int64)
        return [
            gs.Node("Div", each.name, inputs=[tensor, parts], outputs=[each]),
            gs.Node("Mul", whole.name, inputs=[each, whole], outputs=[out]),
        ]

    def _choice(self, tensor: gs.Tensor, changed: Array, value: Array, out: gs.Tensor, hint: str) -> list[gs.Node]:
        """Nodes that make `out`: `value` where `changed`, else `tensor`. Other entries of `value` were observed: not for the file."""
        size = self._constant(f"{hint}_size", np.where(changed, value, np.zeros_like(value)))
        if self.surgery.view.opset >= 9:
            mask = self._constant(f"{hint}_mask", changed)
            return [gs.Node("Where", size.name, inputs=[mask, size, tensor], outputs=[out])]
        mask = self._constant(f"{hint}_mask", (~changed).astype(value.dtype))  # before there was a Where
        rest = gs.Variable(self.surgery.fresh_name(f"{hint}_rest"), dtype=value.dtype)
        return [
            gs.Node("Mul", rest.name, inputs=[tensor, mask], outputs=[rest]),
            gs.Node("Add", size.name, inputs=[rest, size], outputs=[out]),
        ]

    def _moved(self, dtype: Any) -> tuple[gs.Variable, gs.Tensor]:
        """What the node computes, under a new name, and its first output, which nodes behind it now have to make."""
        node = self.node.gs_node
        out = node.outputs[0]
        node.outputs[0] = gs.Variable(self.surgery.fresh_name(out.name), dtype=dtype)
        return node.outputs[0], out

    def _after(self, op: str, dtype: Any, *more: gs.Tensor, **attrs: Any) -> None:
        """A node behind the first output, which keeps its name. more: what the new node reads besides."""
        raw, out = self._moved(dtype)
        self.surgery.after[id(self.node.gs_node)].append(
            gs.Node(op, raw.name, attrs=attrs, inputs=[raw, *more], outputs=[out])
        )

    def restore_counts(self, before: Array, after: Array) -> None:
        raw, out = self._moved(np.int64)
        self.surgery.after[id(self.node.gs_node)] += self._scaled(raw, after, before, out)

    def scale_output(self, factor: float) -> None:
        found = str(self.surgery.analysis.observation.dtypes.get(self.node.outputs[0]))
        dtype: np.dtype[Any] = FLOATS.get(found, np.dtype(np.float32))
        scale = self._constant(f"{self.node.gs_node.outputs[0].name}_scale", np.array(factor, dtype))
        self._after("Mul", dtype, scale)

    def gather_output(self, axis: int, index: Array) -> None:
        out = self.node.gs_node.outputs[0]
        positions = self._constant(f"{out.name}_positions", index)
        self._after("Gather", out.dtype, positions, axis=axis)

    def draw_whole(self, axis: int) -> None:
        """Its input gets the old size again: what stays lies where it was, and anything in between."""
        node, kept = self.node.gs_node, self.kept(0, axis)
        tensor, out = node.inputs[0], node.outputs[0]
        places = self._constant(f"{out.name}_places", np.where(kept, np.cumsum(kept) - 1, 0))
        wide = gs.Variable(self.surgery.fresh_name(f"{out.name}_like"), dtype=tensor.dtype)
        self.surgery.before[id(node)].append(
            gs.Node("Gather", wide.name, attrs={"axis": axis}, inputs=[tensor, places], outputs=[wide])
        )
        node.inputs[0] = wide
        self.gather_output(axis, np.flatnonzero(kept))
        node.outputs[0].name = self.surgery.fresh_name(f"{out.name}{WHOLE}")

    def scale_constant(self, i: int, factor: float) -> bool:
        if self._key(i) not in self.surgery.view.constants:
            return False
        tensor = self.node.gs_node.inputs[i]
        values = np.asarray(
            self.surgery.view.constants[self._key(i)].values if not hasattr(tensor, "values") else tensor.values
        )
        self.node.gs_node.inputs[i] = self._constant(tensor.name, (values * factor).astype(values.dtype))
        return True


FLOATS: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
}
