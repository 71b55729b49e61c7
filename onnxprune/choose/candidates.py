"""Which layers and nodes may go, what that saves, and how much it changes: the candidates for a bypass.

A *hop* leads from a node's only output to one of its inputs of the same shape: an Add to its skip (the branch goes), an activation,
a norm, a gate or a convolution to its input (the node goes). Hops in a row make whole blocks and layers. Of candidates that save the
same, those are kept that change least,

    change = mean (t - r)^2 / variance t        over some calibration samples, summed inside the runtime

once over all of them, and once over those that lead from a sum to a sum, as there the layer before can take over
(`repair/least_squares.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune import ops
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.routes import Routed
from onnxprune.choose.costs import CostModel
from onnxprune.cut.bypass import Bypass, Links
from onnxprune.groups.analysis import Analysis
from onnxprune.model.loaded import Model

HOPS = 8
REACH = 16  # pairs per tensor
VARIANTS = 8  # pairs with the same costly nodes between them
MOST = 400  # pairs whose change is measured
SAMPLES = 32
SLIGHT = 1e-3  # change of a node without cost that is worth a trial


@dataclass(frozen=True)
class Candidate:
    """gone: keys of the nodes that go; saved: of the target's metric; macs, change: see the module."""

    bypass: Bypass
    gone: frozenset[str]
    macs: int
    saved: float
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
    costly = frozenset(costs.node_macs)
    wanted = set(calibration.judged.tensors)
    judged = {next(o for o in n.output if o) for n in calibration.flat.graph.node if wanted.intersection(n.output)}
    variants: Counter[frozenset[str]] = Counter()
    found = []
    for bypass, hops in possible(links, reachable):
        gone = links.gone_with(bypass)
        mark = gone & costly
        if (
            gone & judged
            or not gone
            or not is_free(gone)
            or (hops > 1 and not mark)
            or (mark and variants[mark] >= VARIANTS)
        ):
            continue
        variants[mark] += 1
        found.append(Candidate(bypass, gone, int(costs.of_nodes("macs", gone)), costs.of_nodes(metric, gone)))
    found = sorted(found, key=lambda c: len(c.gone))[:MOST]
    changes = _changes([c.bypass for c in found], calibration, analysis.model)
    measured = [replace(c, change=x) for c, x in zip(found, changes, strict=True)]
    return _chosen(links, measured, costly)


def possible(links: Links, reachable: Container[str] | None = None) -> Iterator[tuple[Bypass, int]]:
    """Every bypass along hops in a row, nearest first, with their number. reachable: leave alone what is not in it."""
    varies = _varying(links)
    hops: dict[str, list[str]] = {}
    for node in links.nodes.values():
        if ops.rule_for(node.op, node.domain).alias:
            continue
        for tensor in node.outputs:
            if tensor in links.used and (reachable is None or tensor in reachable):
                inputs = [x for x in dict.fromkeys(node.inputs) if x in varies]
                hops[tensor] = [x for x in inputs if links.refusal(Bypass(tensor, x)) is None]
    for tensor in hops:
        ends: dict[str, int] = {}
        front = [tensor]
        for number in range(1, HOPS + 1):
            front = [r for r in dict.fromkeys(r for t in front for r in hops.get(t, ())) if r not in ends]
            ends |= dict.fromkeys(front, number)
            if not front or len(ends) >= REACH:
                break
        for by, number in list(ends.items())[:REACH]:
            if links.refusal(Bypass(tensor, by)) is None:
                yield Bypass(tensor, by), number


def _varying(links: Links) -> set[str]:
    """Tensors that depend on an input of the model, and not on its shape alone."""
    varies = set(links.analysis.view.graph.inputs)
    for node in links.nodes.values():
        if links.reads[node.key] & varies and not ops.rule_for(node.op, node.domain).carries_shape:
            varies.update(o for o in node.outputs if o)
    return varies


def _chosen(links: Links, found: Sequence[Candidate], costly: frozenset[str]) -> list[Candidate]:
    """The best of those that save the same, and nodes that change almost nothing."""
    same: dict[tuple[frozenset[str], bool], Candidate] = {}
    free: dict[str, Candidate] = {}
    for c in found:
        if not isfinite(c.change):
            continue
        if c.saved:
            mark = (c.gone & costly, _is_sum(links, c.bypass.tensor) and _is_sum(links, c.bypass.by))
            same[mark] = min(same.get(mark, c), c, key=lambda x: x.change)
        elif c.change <= SLIGHT:
            free[c.bypass.tensor] = min(free.get(c.bypass.tensor, c), c, key=lambda x: x.change)
    worth = sorted(same.values(), key=lambda c: c.change / c.saved)
    return worth + sorted(free.values(), key=lambda c: c.change)


def _is_sum(links: Links, tensor: str) -> bool:
    """Is it a sum, or what a layer with constant weights gives?"""
    node = links.maker.get(tensor)
    if node is None:
        return False
    rule = ops.rule_for(node.op, node.domain)
    return rule.adds or rule.linear is not None


# ---------------------------------------------------------------- change


def _changes(bypasses: Sequence[Bypass], calibration: Calibration, model: Model) -> list[float]:
    """Mean square difference over variance, per bypass; NaN where it cannot be said."""
    if not bypasses:
        return []
    proto, names = _measuring(bypasses, calibration.flat)
    what = "the model with differences of its tensors as outputs"
    session = Routed(model.beside(proto), calibration.routing, what, optimized=True)
    samples = calibration.samples
    fitted = [k for k, held in enumerate(samples.held) if not held] or list(range(len(samples.feeds)))
    step = max(1, sum(samples.sizes[k] for k in fitted) // SAMPLES)
    sums = np.zeros((len(bypasses), 3))
    counts = np.zeros((len(bypasses), 1))
    for k in (k for portion in samples.portions(fitted)[::step] for k in portion):
        place = samples.place(k)
        share = place.count / place.of
        found = session.run(k, samples.feeds[k], names)
        row = np.array([np.nan if v is None else float(v) for v in found]).reshape(sums.shape)
        there = [i for i in range(len(bypasses)) if found[3 * i] is not None]
        sums[there] += share * row[there]
        counts[there] += share
    with np.errstate(all="ignore"):
        apart, mean, square = (sums / counts).T
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
