"""The oracle: removing a unit must equal forcing it to zero wherever it lives.

In a copy of the original, every activation that carries removed units is set to zero there by a mask; the copy and the pruned model
run on the same inputs in ONNX Runtime and their outputs must agree, relative to the output's own scale.

Bypassing a tensor must equal choosing the other one wherever it is read: in that copy a Where takes `by` in its place, and all that
is bypassed is still there and still computed (`standing_in`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune import ops
from onnxprune.cut.bypass import Bypass, keyed
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Facet, Maps, period, varying
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.branches import SEPARATOR, opset_of, subgraphs
from onnxprune.model.graph import Node, View, name_of, view
from onnxprune.model.importer import export_model, import_graph
from onnxprune.model.loaded import LoadedModel
from onnxprune.ops import failures
from onnxprune.ops.base import MaskEdit

MASKABLE = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


def masked_keys(analysis: Analysis, removed: Bools) -> set[str]:
    """Activations that carry removed units."""
    gone = analysis.solution.of_units(removed)
    return {key for key, maps in analysis.maps.items() if any(gone[f].any() for f in maps)}


def masked_feeds(analysis: Analysis, removed: Bools, feeds: Feeds) -> Feeds:
    """Inputs of the original with zeros where units have been removed."""
    gone = analysis.solution.of_units(removed)
    result = dict(feeds)
    for name in feeds:
        for facet in analysis.maps.get(name, ()):
            if gone[facet].any():
                result[name] = np.where(gone[facet], np.zeros((), result[name].dtype), result[name])
    return result


def standing_in(proto: onnx.ModelProto, bypasses: Sequence[Bypass]) -> onnx.ModelProto:
    """A copy in which a Where between the two, whose condition is always true, makes every bypassed tensor."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset = opset_of(copy)
    _stand_in(copy.graph, "", {b.tensor: b.by for b in bypasses}, opset)
    return copy


def _stand_in(graph: onnx.GraphProto, path: str, wanted: dict[str, str], opset: int) -> None:
    nodes = []
    for node, key in keyed(graph, path):
        for attribute, sub in subgraphs(node):
            _stand_in(sub, f"{key}.{attribute}{SEPARATOR}", wanted, opset)
        nodes.append(node)
        for k, name in enumerate(node.output):
            if name and path + name in wanted:
                by, own = name_of(wanted[path + name]), f"{name}__own"
                node.output[k] = own
                nodes += _choice(by, own, name, opset)
    made = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(made)


def _choice(by: str, own: str, name: str, opset: int) -> list[onnx.NodeProto]:
    """`name` is `by`, for readers who cannot know; before there was a Where, by + (own - own)."""
    if opset < 9:
        nothing = f"{name}__nothing"
        return [helper.make_node("Sub", [own, own], [nothing]), helper.make_node("Add", [by, nothing], [name])]
    true = helper.make_tensor(f"{name}__true", onnx.TensorProto.BOOL, [], [True])
    constant = helper.make_node("Constant", [], [true.name], value=true)
    return [constant, helper.make_node("Where", [true.name, by, own], [name])]


def masked_original(
    analysis: Analysis, removed: Bools, types: dict[str, Any], base: LoadedModel | None = None
) -> onnx.ModelProto:
    """The original with removed positions forced to zero. `types`: ONNX Runtime's type name per masked tensor.

    base: the original of a model whose `analysis` is of what bypasses left of it, with the Wheres of `standing_in`.
    """
    base = base or analysis.model
    gone = analysis.solution.of_units(removed)
    graph = import_graph(base)
    known = {n.key for n in analysis.view.graph.walk()}
    index = view(graph, analysis.view.opsets)
    after: dict[int, list[gs.Node]] = defaultdict(list)
    before: dict[int, list[gs.Node]] = defaultdict(list)
    opset = index.opset
    for node in index.graph.walk():
        rule = ops.rule_for(node.op, node.domain)
        reference = rule.reference if node.key in known else None
        for key, tensor in zip(node.outputs, list(node.gs_node.outputs), strict=True):
            maps = analysis.maps.get(key, ())
            if not key or not any(gone[f].any() for f in maps):
                continue
            dtype = MASKABLE.get(str(types.get(key)))
            if dtype is not None:
                seen = partial(analysis.observation.is_dynamic, key)
                after[id(node.gs_node)] += _mask(node.gs_node, tensor, maps, gone, dtype, opset, seen)
        if reference is not None:
            edit = MaskedNode(analysis, index, node, gone, before, types)
            if edit.touched():
                failures.must(rule, "reference", str(node), partial(reference, edit))
    for sub in index.gs_graphs.values():
        if any(id(n) in after or id(n) in before for n in sub.nodes):
            sub.nodes = [x for n in sub.nodes for x in (*before.get(id(n), ()), n, *after.get(id(n), ()))]
    return export_model(graph, base.proto)


def _mask(
    node: gs.Node,
    tensor: gs.Tensor,
    maps: Maps,
    gone: Bools,
    dtype: Any,
    opset: int,
    is_dynamic: Callable[[int], bool],
) -> list[gs.Node]:
    """One Where per facet after the node (zero times infinity would be NaN); the masked tensor keeps its name."""
    raw = gs.Variable(f"{tensor.name}__raw")
    node.outputs[next(k for k, t in enumerate(node.outputs) if t is tensor)] = raw
    new = []
    hit = [f for f in maps if gone[f].any()]
    for k, facet in enumerate(hit):
        mask, more = _repeated(
            f"{tensor.name}__mask{k}", raw, facet, gone, dtype if opset < 9 else np.bool_, is_dynamic
        )
        new += more
        zero = gs.Constant(f"{tensor.name}__zero{k}", np.zeros((), dtype))
        out = tensor if k == len(hit) - 1 else gs.Variable(f"{tensor.name}__masked{k}")
        op, inputs = ("Where", [mask, raw, zero]) if opset >= 9 else ("Mul", [raw, mask])
        new.append(gs.Node(op, f"{tensor.name}__mask{k}", inputs=inputs, outputs=[out]))
        raw = out
    return new


def _repeated(
    name: str, raw: gs.Tensor, facet: Facet, gone: Bools, dtype: Any, is_dynamic: Callable[[int], bool]
) -> tuple[gs.Tensor, list[gs.Node]]:
    """Where a facet stays (True); along a dynamic axis the pattern of one sample is repeated as often as it fits."""
    axis = next((a for a in varying(facet) if is_dynamic(a)), None)
    if axis is None:
        return gs.Constant(name, (~gone[facet]).astype(dtype)), []
    length = period(facet, axis)
    one = gs.Constant(f"{name}_one", (~gone[facet.take(range(length), axis=axis)]).astype(dtype))
    parts = [gs.Variable(f"{name}_{x}") for x in ("shape", "size", "count", "repeats", "all")]
    shape, size, count, repeats, whole = parts
    constants = [
        np.array([axis]),
        np.array([length]),
        np.ones(axis, np.int64),
        np.ones(facet.ndim - axis - 1, np.int64),
    ]
    at, divisor, before, behind = (gs.Constant(f"{name}_{x}", c) for x, c in zip("abcd", constants, strict=True))
    return whole, [
        gs.Node("Shape", shape.name, inputs=[raw], outputs=[shape]),
        gs.Node("Gather", size.name, inputs=[shape, at], outputs=[size]),
        gs.Node("Div", count.name, inputs=[size, divisor], outputs=[count]),
        gs.Node("Concat", repeats.name, attrs={"axis": 0}, inputs=[before, count, behind], outputs=[repeats]),
        gs.Node("Tile", whole.name, inputs=[one, repeats], outputs=[whole]),
    ]


class MaskedNode(MaskEdit):
    """One node of the masked original, for rules whose operator does more than its outputs show."""

    def __init__(
        self,
        analysis: Analysis,
        graph: View,
        node: Node,
        gone: Bools,
        before: dict[int, list[gs.Node]],
        types: dict[str, Any],
    ) -> None:
        self.types = types
        self.analysis = analysis
        self.graph = graph
        self.node = node
        self.attrs = dict(node.attrs)
        self._gone = gone
        self._before = before[id(node.gs_node)]
        self._opset = graph.opset
        self._count = 0

    def touched(self) -> bool:
        hit = any(self._gone[f].any() for i in range(len(self.node.inputs)) for f in self._maps(i))
        return hit or any(self._gone[f].any() for k in self.node.outputs for f in self.analysis.maps.get(k, ()))

    def has(self, i: int) -> bool:
        return i < len(self.node.inputs) and self.node.inputs[i] != ""

    def _maps(self, i: int) -> Maps:
        use = self.analysis.uses.get((self.node.key, i))
        return use[1] if use else self.analysis.maps.get(self.node.inputs[i], ())

    def shape(self, i: int) -> tuple[int, ...]:
        key = self.analysis.sources.get(self.node.inputs[i])
        if key is not None:
            return tuple(self.analysis.view.constants[key].shape)
        return self.analysis.observation.shapes.get(self.node.inputs[i], ())

    def _removed(self, maps: Maps, shape: tuple[int, ...]) -> Array:
        result = np.zeros((1,) * len(shape), bool)
        for facet in maps:
            result = result | self._gone[facet]
        return result

    def removed(self, i: int) -> Array:
        return np.broadcast_to(self._removed(self._maps(i), self.shape(i)), self.shape(i))

    def constant(self, i: int) -> Array | None:
        key = self.analysis.sources.get(self.node.inputs[i]) if self.has(i) else None
        return None if key is None else np.asarray(self.analysis.view.constants[key].values)

    def set_constant(self, i: int, value: Array) -> None:
        self.node.gs_node.inputs[i] = self._const(value)

    # -- arithmetic in front of the node, which ends as an Identity

    def _name(self) -> str:
        self._count += 1
        return f"{self.node.key}__ref{self._count}"

    def _const(self, value: Array) -> gs.Constant:
        return gs.Constant(self._name(), np.asarray(value, order="C"))

    def _add(self, op: str, *inputs: Any, **attrs: Any) -> gs.Variable:
        out = gs.Variable(self._name())
        self._before.append(gs.Node(op, out.name, attrs=attrs, inputs=list(inputs), outputs=[out]))
        return out

    def _mean(self, x: Any, axes: tuple[int, ...]) -> gs.Variable:
        if self._opset >= 18:
            return self._add("ReduceMean", x, self._const(np.array(axes, np.int64)), keepdims=1)
        return self._add("ReduceMean", x, axes=list(axes), keepdims=1)

    def sum_inputs(self, inputs: tuple[int, ...]) -> Any:
        total: Any = None
        for i in inputs:
            if self.has(i):
                tensor = self.node.gs_node.inputs[i]
                total = tensor if total is None else self._add("Add", total, tensor)
        return total

    def _standardize(self, x: Any, kept: Array, axes: tuple[int, ...], epsilon: float, dtype: Any) -> gs.Variable:
        """(x - m) / sqrt(v + epsilon) where m and v are means over kept positions: mean over all, times n / n'."""
        share = kept.mean(axis=axes, keepdims=True)
        factor = self._const((1 / np.where(share > 0, share, 1)).astype(dtype))
        mask = self._const(kept.astype(dtype))
        x = self._add("Mul", x, mask)
        centred = self._add("Mul", self._add("Sub", x, self._add("Mul", self._mean(x, axes), factor)), mask)
        variance = self._add("Mul", self._mean(self._add("Mul", centred, centred), axes), factor)
        root = self._add("Sqrt", self._add("Add", variance, self._const(np.array(epsilon, dtype))))
        return self._add("Div", centred, root)

    def _finish(self, result: Any) -> None:
        node = self.node.gs_node
        node.op, node.domain = "Identity", None
        node.attrs.clear()
        node.inputs = [result]
        for k, out in enumerate(list(node.outputs)[1:], 1):
            if not out.is_empty() and k == 3 and len(self.node.inputs) > 1:  # the sum of a Skip normalization
                total = self.sum_inputs_saved
                self._before.append(gs.Node("Identity", self._name(), inputs=[total], outputs=[out]))
        node.outputs = [node.outputs[0]]

    sum_inputs_saved: Any = None

    def _dtype(self, i: int | None) -> Any:
        """Of what is normalised: that of constant input `i`, else what was observed of the node's tensors."""
        value = self.constant(i) if i is not None and self.has(i) else None
        if value is not None:
            return value.dtype
        seen = (MASKABLE.get(str(self.types.get(k))) for k in (*self.node.outputs, *self.node.inputs))
        return next((dtype for dtype in seen if dtype is not None), np.float32)

    def _along(self, i: int, shape: tuple[int, ...]) -> Any:
        """Input `i` [C] as a tensor of this shape, a constant where it is one; one number per group counts for all of its channels."""
        channels, have = int(np.prod(shape)), int(np.prod(self.shape(i)))
        value = self.constant(i)
        if value is not None:
            return self._const(np.repeat(value, channels // have).reshape(shape))
        tensor = self.node.gs_node.inputs[i]
        if have != channels:
            each = self._add("Reshape", tensor, self._const(np.array([have, 1], np.int64)))
            tensor = self._add("Expand", each, self._const(np.array([have, channels // have], np.int64)))
        return self._add("Reshape", tensor, self._const(np.array(shape, np.int64)))

    def normalize_kept(
        self,
        i: int,
        axes: tuple[int, ...],
        scale: int | None,
        bias: int | None,
        where: tuple[int, ...],
        epsilon: float,
        total: Any = None,
    ) -> None:
        x = self.node.gs_node.inputs[i] if total is None else total
        self.sum_inputs_saved = x
        rank = len(self.shape(i))
        kept = ~self._removed(self._maps(i), self.shape(i))
        result = self._standardize(x, kept, axes, epsilon, self._dtype(scale))
        for op, k in (("Mul", scale), ("Add", bias)):
            if k is None or not self.has(k):
                continue
            vector = self.node.gs_node.inputs[k]
            if where and where[-1] != rank - 1:  # along an inner axis: [C] -> [1, C, 1, ...]
                vector = self._along(k, tuple(self.shape(i)[a] if a in where else 1 for a in range(rank)))
            result = self._add(op, result, vector)
        self._finish(result)

    def normalize_groups(self, groups: int, epsilon: float) -> None:
        x = self.node.gs_node.inputs[0]
        shape = self.shape(0)
        channels = shape[1]
        per_group = channels // groups
        kept = np.broadcast_to(~self._removed(self._maps(0), shape), (1, channels, *([1] * (len(shape) - 2))))
        split = self._add("Reshape", x, self._const(np.array([0, groups, per_group, -1], np.int64)))
        dtype = self._dtype(1)
        flat = self._standardize(split, kept.reshape(1, groups, per_group, 1), (2, 3), epsilon, dtype)
        result = self._add("Reshape", flat, self._add("Shape", x))
        for op, k in (("Mul", 1), ("Add", 2)):
            result = self._add(op, result, self._along(k, (1, channels, *([1] * (len(shape) - 2)))))
        self._finish(result)
