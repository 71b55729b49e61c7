"""The oracle: removing a unit must equal forcing it to zero wherever it lives.

In a copy of the original, every activation that carries removed units is multiplied by a 0/1 mask; the copy and the pruned model
run on the same inputs in ONNX Runtime and their outputs must agree, relative to the output's own scale.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune import ops
from onnxprune.core.analysis import Analysis
from onnxprune.core.errors import VerificationError
from onnxprune.core.graph import Node, View, view
from onnxprune.core.graphio import export_model, import_graph
from onnxprune.core.grouping import Bools
from onnxprune.core.maps import Maps
from onnxprune.core.observation import Array

TOLERANCE = 1e-4
NOISY = 1e-3
HALF = 2e-2


@dataclass(frozen=True)
class Verdict:
    """The oracle's finding: the largest deviation relative to the output's scale, and what was allowed."""

    error: float
    tolerance: float
    exact: bool
    noise: float | None
    masked: int


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


def masked_original(analysis: Analysis, removed: Bools, types: dict[str, Any]) -> onnx.ModelProto:
    """The original with removed positions forced to zero. `types`: ONNX Runtime's type name per masked tensor."""
    gone = analysis.solution.of_units(removed)
    graph = import_graph(analysis.model)
    index = view(graph, analysis.view.opsets)
    after: dict[int, list[gs.Node]] = defaultdict(list)
    outputs = {id(t) for t in graph.outputs}
    for node in index.graph.walk():
        reference = ops.rule_for(node.op, node.domain).reference
        for key, tensor in zip(node.outputs, list(node.gs_node.outputs), strict=True):
            maps = analysis.maps.get(key, ())
            if not key or id(tensor) in outputs or not any(gone[f].any() for f in maps):
                continue
            dtype = MASKABLE.get(str(types.get(key)))
            if dtype is not None:
                after[id(node.gs_node)] += _mask(node.gs_node, tensor, maps, gone, dtype)
        if reference is not None:
            edit = MaskedNode(analysis, index, node, gone, after)
            if edit.touched():
                reference(edit)
    for sub in index.gs_graphs.values():
        if any(id(n) in after for n in sub.nodes):
            sub.nodes = [x for n in sub.nodes for x in (n, *after.get(id(n), ()))]
    return export_model(graph, analysis.model.proto)


def _mask(node: gs.Node, tensor: gs.Tensor, maps: Maps, gone: Bools, dtype: Any) -> list[gs.Node]:
    """One Mul per facet after the node; the masked tensor keeps its name."""
    raw = gs.Variable(f"{tensor.name}__raw")
    node.outputs[next(k for k, t in enumerate(node.outputs) if t is tensor)] = raw
    new = []
    hit = [f for f in maps if gone[f].any()]
    for k, facet in enumerate(hit):
        mask = gs.Constant(f"{tensor.name}__mask{k}", (~gone[facet]).astype(dtype))
        out = tensor if k == len(hit) - 1 else gs.Variable(f"{tensor.name}__masked{k}")
        new.append(gs.Node("Mul", f"{tensor.name}__mask{k}", inputs=[raw, mask], outputs=[out]))
        raw = out
    return new


class MaskedNode:
    """One node of the masked original, for rules whose operator keeps removed units alive inside."""

    def __init__(self, analysis: Analysis, graph: View, node: Node, gone: Bools, after: dict[int, list[gs.Node]]) -> None:
        self.analysis = analysis
        self.graph = graph
        self.node = node
        self.attrs = node.attrs
        self._gone = gone
        self._after = after

    def touched(self) -> bool:
        return any(self.removed(i).any() for i in range(len(self.node.inputs)) if self.node.inputs[i])

    def _maps(self, i: int) -> Maps:
        use = self.analysis.uses.get((self.node.key, i))
        return use[1] if use else self.analysis.maps.get(self.node.inputs[i], ())

    def shape(self, i: int) -> tuple[int, ...]:
        key = self.node.inputs[i]
        use = self.analysis.uses.get((self.node.key, i))
        if use:
            return tuple(self.analysis.view.constants[use[0]].shape)
        return self.analysis.observation.shapes.get(key, ())

    def removed(self, i: int) -> Array:
        """Bool per position of input `i`: is it removed? (Broadcast view of the full shape.)"""
        result = np.zeros((1,) * len(self.shape(i)), bool)
        for facet in self._maps(i):
            result = result | self._gone[facet]
        return np.broadcast_to(result, self.shape(i))

    def removed_out(self, k: int) -> Array:
        key = self.node.outputs[k]
        shape = self.analysis.observation.shapes[key]
        result = np.zeros((1,) * len(shape), bool)
        for facet in self.analysis.maps.get(key, ()):
            result = result | self._gone[facet]
        return np.broadcast_to(result, shape)

    def constant(self, i: int) -> Array:
        use = self.analysis.uses[self.node.key, i]
        return np.asarray(self.analysis.view.constants[use[0]].values)

    def is_constant(self, i: int) -> bool:
        return (self.node.key, i) in self.analysis.uses

    def set_constant(self, i: int, value: Array) -> None:
        self.node.gs_node.inputs[i] = gs.Constant(f"{self.node.inputs[i]}__{self.node.gs_node.name}_{i}_masked", value)


def check_interface(original: onnx.ModelProto, pruned: onnx.ModelProto) -> None:
    """Inputs and outputs, metadata and opsets are those of the original, and the model passes the checker."""
    for what in ("input", "output"):
        a = [v.SerializeToString(deterministic=True) for v in _interface(original, what)]
        b = [v.SerializeToString(deterministic=True) for v in _interface(pruned, what)]
        if a != b:
            raise VerificationError(f"The pruned model's {what}s are not those of the original. Please report this model.")
    same = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    if any(getattr(original, k) != getattr(pruned, k) for k in same) or list(original.metadata_props) != list(
        pruned.metadata_props
    ):
        raise VerificationError("The pruned model's metadata is not that of the original. Please report this model.")
    if {o.domain: o.version for o in original.opset_import} != {o.domain: o.version for o in pruned.opset_import}:
        raise VerificationError("The pruned model's opsets are not those of the original. Please report this model.")


def _interface(model: onnx.ModelProto, what: str) -> list[onnx.ValueInfoProto]:
    constants = {t.name for t in model.graph.initializer}
    return [v for v in getattr(model.graph, what) if v.name not in constants]


def verdict(analysis: Analysis, removed: Bools, worst: float, noise: Callable[[], float]) -> Verdict:
    """Judge an error. More than 1e-4 is allowed only where the unpruned model is that noisy itself."""
    half = any(t.data_type in (10, 16) for t in analysis.model.proto.graph.initializer)
    tolerance, measured = (HALF if half else TOLERANCE), None
    if worst > tolerance:
        measured = noise()
        tolerance = max(tolerance, min(NOISY, 10 * measured))
    hit = [g for g in analysis.groups if removed[g.classes].any()]
    exact = all(g.exact for g in hit)
    if not worst <= tolerance:
        raise VerificationError(
            f"The pruned model differs from the masked original by {worst:.2g} of the output's scale (allowed {tolerance:.0e});"
            " nothing was written. Please report this model."
        )
    return Verdict(worst, tolerance, exact, measured, len(masked_keys(analysis, removed)))


def error(reference: list[Array], result: list[Array]) -> float:
    """Largest deviation relative to the output's own scale; NaN and infinity must be where they were."""
    worst = 0.0
    for a, b in zip(reference, result, strict=True):
        if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub" or a.size == 0:
            continue
        if a.shape != b.shape:
            return float("inf")
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if (finite != np.isfinite(y)).any():
            return float("inf")
        if finite.any():
            scale = np.abs(x[finite]).max()
            worst = max(worst, float(np.abs(x[finite] - y[finite]).max() / (scale + 1e-30)))
    return worst
