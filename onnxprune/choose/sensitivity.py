"""How much does the whole model suffer when one group shrinks? Measured, at a few widths per group.

The group alone is cut, its consumers get the weights that the second moments of the original give in closed form,

    W_kept += C_kk^-1 C_ks W_s        b += mean' (W_old - W_new)

and the model's outputs are compared with the original's (`calibrate/damage.py`). Between the measured widths the damage follows the
surgeon's error curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.damage import Metric, divergence
from onnxprune.choose.costs import CostModel
from onnxprune.choose.keep_axes import keep_axes
from onnxprune.choose.order import Order
from onnxprune.cut.resolution import Mark
from onnxprune.cut.rewrite import Rewriter
from onnxprune.groups.analysis import Analysis, compress
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Maps
from onnxprune.groups.observation import Array
from onnxprune.groups.units import Ids
from onnxprune.model.loaded import Model
from onnxprune.model.patch import with_constants
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import Floats

LEVELS = (0.25, 0.5, 0.75)
DAMPING = 1e-3
FEW = (0.3, 0.6)  # for models that take long
SAMPLES = 64
LEAST = 4  # of them, however long the model takes
WORK = 1.5e12  # multiply-accumulates that all trials together may take
OPENED = 2e6  # multiply-accumulates in whose time a session takes up one node, and once more where it optimizes the graph, ...
SAVED = 0.3  # ... which spares about so much of every run


def sense(
    analysis: Analysis,
    calibration: Calibration,
    orders: Mapping[str, Order],
    costs: CostModel,
    *,
    metric: Metric | None = None,
    progress: Callable[[float], None] = lambda share: None,
    trials: Trials | None = None,
    mark: Mark = ((), None),
) -> dict[str, Floats]:
    """Damage per group after 0, 1, ... steps. trials: carries them out, where they do not run here one after the other. mark: what was done
    to the original before.
    """
    levels, chosen = affordable(analysis, calibration, costs, len(orders))
    runs = sum(work(analysis, calibration, costs, k) for k in chosen)
    optimized = SAVED * runs > OPENED * len(calibration.flat.graph.node)
    sensing = Sensing(analysis, calibration, metric, tuple(chosen), optimized, mark)
    asked = [
        Narrowing(order.classes, tuple(sorted({max(1, round(share * len(order.classes))) for share in levels})))
        for order in orders.values()
    ]
    found = (trials or in_turn)(sensing, asked, progress)
    return {
        name: curve(order.error, a.counts, damages)
        for (name, order), a, damages in zip(orders.items(), asked, found, strict=True)
    }


@dataclass(frozen=True)
class Narrowing:
    """One group alone at a few widths. classes: those of each step, in the order in which they go; counts: steps to try."""

    classes: tuple[Ids, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Sensing:
    """What trials need. chosen: runs to judge by. optimized: is it worth that ONNX Runtime optimizes what is tried? mark: what was
    done to the original before.
    """

    analysis: Analysis
    calibration: Calibration
    metric: Metric | None
    chosen: tuple[int, ...]
    optimized: bool
    mark: Mark = ((), None)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_rewriter"}

    @cached_property
    def _rewriter(self) -> Rewriter:
        return Rewriter(self.analysis)

    def __call__(self, asked: Narrowing) -> list[float]:
        """The damage at each width, with the closed-form repair."""
        rank = np.zeros(self.analysis.solution.count)
        for place, classes in enumerate(asked.classes):
            rank[classes] = place
        return [self.damage(keep_axes(self.analysis, asked.classes[:n], rank)) for n in asked.counts]

    def damage(self, removed: Bools) -> float:
        """Of a removal (bool per class), with the closed-form repair."""
        changes = closed_form(self.analysis, self.calibration, removed)
        model = with_constants(self._rewriter(removed), changes)
        return judge(self.calibration, self.analysis.model.beside(model), self.metric, self.chosen, self.optimized)


Trials = Callable[[Sensing, Sequence[Narrowing], Callable[[float], None]], list[list[float]]]
"""Damages of several groups, in their order; the last argument is told how much is done."""


def in_turn(sensing: Sensing, asked: Sequence[Narrowing], progress: Callable[[float], None]) -> list[list[float]]:
    """Here, one group after the other."""
    found = []
    for k, one in enumerate(asked):
        found.append(sensing(one))
        progress((k + 1) / len(asked))
    return found


def affordable(
    analysis: Analysis, calibration: Calibration, costs: CostModel, groups: int
) -> tuple[tuple[float, ...], list[int]]:
    """At which shares to cut each group, and the runs to judge that by, so that all of it takes about `WORK`."""
    chosen, samples = _held(calibration), calibration.samples
    portions = samples.portions(chosen)
    runs = [sum(work(analysis, calibration, costs, k) for k in portion) for portion in portions]
    opening = OPENED * len(calibration.flat.graph.node)
    trials = max(1, groups * len(LEVELS))
    if (opening + sum(runs)) * trials <= WORK:
        return LEVELS, chosen
    each = WORK / max(1, groups * len(FEW)) - opening
    least = -(-LEAST * len(portions) // max(1, samples.size(chosen)))
    count = min(len(portions), max(least, int(each / max(1.0, float(np.mean(runs))))))
    return FEW, [run for k in range(count) for run in portions[k * len(portions) // count]]


def work(analysis: Analysis, calibration: Calibration, costs: CostModel, run: int) -> float:
    """Multiply-accumulates of a run: those of the feeds that were observed, as often as it is larger than these.

    Larger by what it feeds or by what comes out, where values decide how much that is.
    """
    shapes, feeds = analysis.observation.shapes, calibration.samples.feeds[run]
    seen = analysis.feeds[0]
    pairs = [(feeds[n].size, seen[n].size) for n in seen]
    given = zip(calibration.judged.names, calibration.outputs[run], strict=True)
    out = [(value.size, prod(shapes[n])) for n, value in given if n in shapes]
    ratios = [sum(a for a, _ in some) / max(1, sum(b for _, b in some)) for some in (pairs, out) if some]
    return costs.macs() * max(ratios, default=1.0)


def cautious(damages: Mapping[str, Floats]) -> dict[str, Floats]:
    """Damages that a stand-in for real inputs measured, with the square of the share that is cut added.

    Its weight is the groups' mean damage at half their width: enough that no group pays for all because made-up inputs spare it.
    """
    if not damages:
        return {}
    weight = float(np.mean([d[len(d) // 2] for d in damages.values()]))
    return {k: d + weight * np.linspace(0, 1, len(d)) ** 2 for k, d in damages.items()}


def curve(error: Floats, counts: Sequence[int], found: Sequence[float]) -> Floats:
    """Damage after 0, 1, ... steps: measured at `counts`, in between along the error (log-log), never falling."""
    e = np.maximum(error, 1e-12)
    at = np.log(e[np.array(counts) - 1])
    d = np.log(np.maximum(np.maximum.accumulate(np.maximum(found, 0.0)), 1e-9))
    x = np.log(e)
    inside = np.interp(x, at, d)
    inside = np.where(x < at[0], d[0] + (x - at[0]), inside)
    slope = 1.0 if len(at) < 2 or at[-1] - at[-2] < 1e-6 else max(1.0, (d[-1] - d[-2]) / (at[-1] - at[-2]))
    inside = np.where(x > at[-1], d[-1] + slope * (x - at[-1]), inside)
    return np.concatenate([[0.0], np.maximum.accumulate(np.exp(np.minimum(inside, 50.0)))])


def judge(
    calibration: Calibration,
    model: Model,
    metric: Metric | None = None,
    chosen: Sequence[int] | None = None,
    optimized: bool = True,
) -> float:
    """Damage of a model on held-out samples. metric: of `calibration.judged.names`; by default the divergence of what it is judged by."""
    chosen = _held(calibration) if chosen is None else chosen
    metric = metric or calibration.judged.by_tensors(divergence)
    return judged(calibration, model, [(metric, chosen)], optimized)[0]


def judged(
    calibration: Calibration,
    model: Model,
    metrics: Sequence[tuple[Metric, Sequence[int] | None]],
    optimized: bool = True,
) -> list[float]:
    """What each metric says on its runs (by default those of `judge`), in one pass over all of them."""
    wanted = [(metric, _held(calibration) if chosen is None else chosen) for metric, chosen in metrics]
    answers = calibration.judged.session(model, "the pruned model", optimized=optimized)
    feeds, known = calibration.samples.feeds, calibration.outputs
    found = {k: answers(feeds[k]) for k in sorted({k for _, chosen in wanted for k in chosen})}
    return [metric([known[k] for k in chosen], [found[k] for k in chosen]) for metric, chosen in wanted]


def _held(calibration: Calibration) -> list[int]:
    """Runs to judge with: about `SAMPLES` of the samples held out, all if none is."""
    samples = calibration.samples
    held = [k for k, out in enumerate(samples.held) if out] or list(range(len(samples.feeds)))
    portions = samples.portions(held)[:: max(1, round(samples.size(held) / SAMPLES))]
    return [k for portion in portions for k in portion]


def closed_form(analysis: Analysis, calibration: Calibration, removed: Bools) -> dict[tuple[str, int], Array]:
    """Weights and biases, already cut, of all layers that lose inputs."""
    gone = analysis.solution.of_units(removed)
    changes: dict[tuple[str, int], Array] = {}
    for layer in calibration.layers:
        lost = _lost(analysis, layer, gone)
        moments = calibration.moments.get(layer.key)
        if lost is None or moments is None or lost.all(axis=1).any():
            continue
        w0 = calibration.weights[layer.key].astype(np.float64)
        w = np.zeros_like(w0)
        for g in range(len(w)):
            c = moments.covariance_of(g)
            k, s = np.flatnonzero(~lost[g]), np.flatnonzero(lost[g])
            if not s.size:
                w[g] = w0[g]
                continue
            damping = DAMPING * np.trace(c) / len(c) + 1e-12
            w[g, k] = w0[g, k] + np.linalg.solve(c[np.ix_(k, k)] + damping * np.eye(k.size), c[np.ix_(k, s)] @ w0[g, s])
        shift = np.einsum("gk,gko->go", moments.mean_x, w0 - w)
        _write(analysis, calibration, layer, w, shift, gone, changes)
    return changes


def _lost(analysis: Analysis, layer: LinearLayer, gone: Bools) -> Bools | None:
    """Which columns `[g, K]` leave; None if none does, or whole groups do."""
    shape = analysis.observation.shapes.get(layer.x)
    if shape is None:
        return None
    axis = layer.linear.channel_axis % len(shape)
    of_channel = np.zeros(shape[axis], bool)
    for units in analysis.along(layer.x, axis):
        of_channel |= gone[units]
    if not of_channel.any():
        return None
    return np.asarray(of_channel[layer.linear.channels])


def _write(
    analysis: Analysis,
    calibration: Calibration,
    layer: LinearLayer,
    w: Floats,
    shift: Floats,
    gone: Bools,
    changes: dict[tuple[str, int], Array],
) -> None:
    linear = layer.linear
    old = calibration.constants(layer.w)
    maps = _maps(analysis, layer.key, linear.w, layer.w)
    changes[layer.key, linear.w] = compress(linear.kernel(w).astype(old.dtype), maps, gone)
    bias = calibration.constants(layer.b) if layer.b else None
    if layer.adder is not None:
        assert bias is not None
        key, i = layer.adder
        value = bias + shift.reshape(-1).astype(bias.dtype)
    elif linear.b is not None:
        key, i = layer.key, linear.b
        base = linear.bias(bias.astype(np.float64)) if bias is not None else np.zeros(())
        if base is None:
            return
        value = linear.stored_bias(base + shift).astype(old.dtype)
    else:
        return
    maps = _maps(analysis, key, i, layer.b) if layer.b else ()
    if bias is None or bias.shape != value.shape:  # a new bias has a number per output channel
        maps = tuple(analysis.along(layer.y, 1 if linear.channel_axis == 1 else -1))
    changes[key, i] = compress(value, maps, gone)


def _maps(analysis: Analysis, node: str, i: int, tensor: str) -> Maps:
    use = analysis.uses.get((node, i))
    return use[1] if use else analysis.maps.get(tensor, ())
