"""Which layers and nodes may go, what that saves, and how much it changes: the candidates for a bypass.

A *hop* leads from a node's only output to one of its inputs of the same shape: an Add to its skip (the branch goes), an activation,
a norm, a gate or a convolution to its input (the node goes). Hops in a row make whole blocks and layers. Of candidates that save the
same, those are kept that change least,

    change = mean (t - r)^2 / variance t        over some calibration samples, summed inside the runtime

once over all of them, and once over those that lead from a sum to a sum, as there the layer before can take over (`stages/compensate.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune import ops
from onnxprune.core.analysis import Analysis
from onnxprune.core.bypass import Bypass, Links
from onnxprune.core.calibration import Calibration
from onnxprune.ops.base import Rule
from onnxprune.ops.cost import CostModel
from onnxprune.runtime import Session, folder_of

HOPS = 8
REACH = 16  # pairs per tensor
SAMPLES = 32
SLIGHT = 1e-3  # change of a node without cost that is worth a trial


@dataclass(frozen=True)
class Candidate:
    """gone: keys of the nodes that go; saved: of the target's metric; macs, change: see the module."""

    bypass: Bypass
    gone: frozenset[str]
    macs: int
    saved: int
    change: float = inf


def candidates(
    analysis: Analysis,
    costs: CostModel,
    calibration: Calibration,
    metric: str,
    is_free: Callable[[frozenset[str]], bool] = lambda gone: True,
) -> list[Candidate]:
    """The least change per saving first, then nodes that save nothing and change almost nothing.

    is_free: may these nodes go, as far as the user is concerned?
    """
    links = Links(analysis)
    reachable = {o for n in calibration.flat.graph.node for o in n.output}  # not in a loop, not in a branch not taken
    found = []
    for tensor, ancestors in _pairs(links, reachable).items():
        for by in ancestors:
            bypass = Bypass(tensor, by)
            gone = links.gone([bypass])
            if gone and is_free(gone):
                found.append(Candidate(bypass, gone, costs.of_nodes("macs", gone), costs.of_nodes(metric, gone)))
    changes = _changes([c.bypass for c in found], calibration, folder_of(analysis.model))
    measured = [Candidate(c.bypass, c.gone, c.macs, c.saved, x) for c, x in zip(found, changes, strict=True)]
    return _chosen(links, measured, set(costs.node_macs))


def _pairs(links: Links, reachable: set[str]) -> dict[str, list[str]]:
    """Per tensor, what may stand in for it: the ends of hops in a row, nearest first."""
    constant = _constant(links)
    hops: dict[str, list[str]] = {}
    for node in links.nodes.values():
        if rule_of(links, node.key).alias:
            continue
        for tensor in node.outputs:
            if tensor in reachable and tensor in links.used:
                inputs = [x for x in dict.fromkeys(node.inputs) if x and x not in constant]
                hops[tensor] = [x for x in inputs if links.refusal(Bypass(tensor, x)) is None]
    found: dict[str, list[str]] = {}
    for tensor in hops:
        ends: dict[str, None] = {}
        front = [tensor]
        for _ in range(HOPS):
            front = [r for t in front for r in hops.get(t, ()) if r not in ends]
            ends |= dict.fromkeys(front)
            if not front or len(ends) >= REACH:
                break
        found[tensor] = [r for r in list(ends)[:REACH] if links.refusal(Bypass(tensor, r)) is None]
    return found


def _constant(links: Links) -> set[str]:
    """Tensors that depend on no input of the model."""
    varies = set(links.analysis.view.graph.inputs)
    for node in links.nodes.values():
        if links.reads[node.key] & varies:
            varies.update(node.outputs)
    return {t for t in links.analysis.view.tensors if t not in varies}


def rule_of(links: Links, key: str) -> Rule:
    node = links.nodes[key]
    return ops.rule_for(node.op, node.domain)


def _chosen(links: Links, found: Sequence[Candidate], costly: set[str]) -> list[Candidate]:
    """The best of those that save the same, and nodes that change almost nothing."""
    same: dict[tuple[frozenset[str], bool], Candidate] = {}
    free: dict[str, Candidate] = {}
    for c in found:
        if not isfinite(c.change):
            continue
        if not c.saved:
            if c.change <= SLIGHT and c.change < free.get(c.bypass.tensor, c).change + 1e-12:
                free[c.bypass.tensor] = c
            continue
        mark = (c.gone & costly, _is_sum(links, c.bypass.tensor) and _is_sum(links, c.bypass.by))
        if mark not in same or c.change < same[mark].change:
            same[mark] = c
    worth = [c for (gone, sums), c in same.items() if not sums or c.bypass != same.get((gone, False), c).bypass or True]
    worth.sort(key=lambda c: c.change / c.saved)
    return worth + sorted(free.values(), key=lambda c: c.change)


def _is_sum(links: Links, tensor: str) -> bool:
    """Is it a sum, or what a layer with constant weights gives?"""
    node = links.maker.get(tensor)
    if node is None:
        return False
    rule = ops.rule_for(node.op, node.domain)
    return rule.adds or rule.linear is not None


# ---------------------------------------------------------------- change


def _changes(bypasses: Sequence[Bypass], calibration: Calibration, folder: str | None) -> list[float]:
    """Mean square difference over variance, per bypass; NaN where it cannot be said."""
    if not bypasses:
        return []
    proto, names = _measuring(bypasses, calibration.flat)
    session = Session(proto, folder, optimized=True, what="the model with differences of its tensors as outputs")
    samples = calibration.samples
    fitted = [k for k, held in enumerate(samples.held) if not held] or list(range(len(samples.feeds)))
    step = max(1, sum(samples.sizes[k] for k in fitted) // SAMPLES)
    sums = np.zeros((len(bypasses), 3))
    chosen = fitted[::step]
    for k in chosen:
        sums += np.array([float(v) for v in session.run(samples.feeds[k], names)]).reshape(sums.shape)
    apart, mean, square = (sums / len(chosen)).T
    with np.errstate(all="ignore"):
        return list(apart / np.maximum(square - mean**2, 1e-30))


def _measuring(bypasses: Iterable[Bypass], flat: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model with three numbers per bypass as outputs: means of (t - r)^2, t and t^2."""
    proto = onnx.ModelProto()
    proto.CopyFrom(flat)
    del proto.graph.output[:]
    names: list[str] = []

    def add(op: str, *inputs: str, **attributes: int) -> str:
        out = f"onnxprune_depth_{len(proto.graph.node)}"
        proto.graph.node.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    for bypass in bypasses:
        t, r = (add("Cast", x, to=TensorProto.FLOAT) for x in (bypass.tensor, bypass.by))
        apart = add("Sub", t, r)
        for x in (add("Mul", apart, apart), t, add("Mul", t, t)):
            names.append(add("ReduceMean", x, keepdims=0))
    for name in names:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    return proto, names
