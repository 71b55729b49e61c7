"""The block optimal brain surgeon: in which order a group's units should go, and how wrong that makes its consumers.

A consumer q with inputs of covariance C (its bias takes the mean) and weights W [K, O] loses the columns S of unit j. After
the best repair of what is left its mean square error grows by

    s_jq = tr(W_S' (G_SS)^-1 W_S),   G = (C + lambda I)^-1

and W and G become those of the smaller problem (Hassibi & Stork 1993; by columns: SparseGPT, Frantar & Alistarh 2023). A unit's
score is the sum over its consumers of s_jq over the variance of q's output. Units go greedily, a fraction of those that are left
at a time; every removal is followed by the update, so one pass gives the whole curve of error against width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibrate.calibration import Calibration
from onnxprune.choose.order import Order
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.grouping import Group
from onnxprune.groups.observation import Array
from onnxprune.groups.units import Ids
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import Floats
from onnxprune.sparsity.obs import SINGLE

DAMPING = 1e-3
BATCH = 24  # a step takes this fraction of what is left
GONE = -2
SHRINK = 0.7


def operate(
    analysis: Analysis,
    calibration: Calibration,
    scores: Floats,
    weighted: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Order]:
    """An order per group that can shrink. `scores` (per class) rank units that no layer consumes.

    weighted: multiply the surgeon's scores by these, where the samples are a stand-in and half a reason is better than one.
    """
    groups = [g for g in analysis.groups if g.removable]
    orders = {}
    for k, group in enumerate(groups):
        orders[group.id] = _order(analysis, calibration, group, scores, weighted)
        progress((k + 1) / len(groups))
    return orders


def ranked(analysis: Analysis, scores: Floats) -> dict[str, Order]:
    """Orders by scores alone, with an error that grows as the square of the share: for other importances."""
    orders = {}
    for group in analysis.groups:
        if group.removable:
            order = _order(analysis, None, group, scores)
            share = np.arange(1, len(order.classes) + 1) / len(order.classes)
            orders[group.id] = Order(order.classes, share**2, ())
    return orders


def _order(
    analysis: Analysis,
    calibration: Calibration | None,
    group: Group,
    scores: Floats,
    weighted: bool = False,
) -> Order:
    atoms = [block[free] for block, free in zip(group.blocks, group.free, strict=True)]
    start = np.cumsum([0, *(len(a) for a in atoms)])
    atom_of = np.full(analysis.solution.count + 1, -1, np.int64)
    for first, ids in zip(start[:-1], atoms, strict=True):
        for k in range(ids.shape[1]):
            atom_of[ids[:, k]] = first + np.arange(len(ids))
    child, parent = analysis.solution.children
    if group.kind == "rows" and child.size:
        for _ in range(3):  # rows of rows
            known = atom_of[parent] >= 0
            atom_of[child[known]] = atom_of[parent[known]]
    consumers = [] if calibration is None else _consumers(analysis, calibration, group, atom_of)
    total = int(start[-1])
    rank = np.concatenate([scores[a].mean(axis=1) for a in atoms]) if atoms else np.empty(0)
    rank = rank / max(float(rank.max(initial=0.0)), 1e-30)
    factor = rank if weighted else np.ones(total)
    rank = rank * 1e-9  # breaks ties, and all there is without consumers
    alive = np.ones(total, bool)
    steps: list[Ids] = []
    error: list[float] = []
    spent = 0.0
    count = group.removable
    while len(steps) < count:
        found = np.zeros(total)
        for consumer in consumers:
            found += consumer.scores(total)
        ranked = np.where(alive, found * factor + rank, np.inf)
        batch = min(count - len(steps), max(1, (count - len(steps)) // BATCH))
        ordered = [
            first + np.argsort(ranked[first:last], kind="stable")[: batch * t]
            for first, last, t in zip(start[:-1], start[1:], group.per_step, strict=True)
        ]
        going = np.concatenate(ordered)
        for j in range(batch):
            now = [ids[j * t : (j + 1) * t] for ids, t in zip(ordered, group.per_step, strict=True)]
            picked = [a[n - first].ravel() for a, n, first in zip(atoms, now, start[:-1], strict=True)]
            steps.append(np.concatenate(picked))
            spent += float(sum((found[n] + rank[n]).sum() for n in now))
            error.append(spent)
        alive[going] = False
        for consumer in consumers:
            consumer.remove(going)
    return Order(tuple(steps), np.array(error), tuple(c.key for c in consumers))


def _consumers(
    analysis: Analysis, calibration: Calibration, group: Group, atom_of: NDArray[np.int64]
) -> list[_Consumer]:
    found = []
    for layer in calibration.layers:
        columns = columns_of(analysis, layer, atom_of)
        if columns is None:
            continue
        if layer.linear.groups > 1 and any(
            (atom_of[analysis.solution.classes[f]] >= 0).any() for f in analysis.maps.get(layer.y, ())
        ):
            continue  # its outputs go with its inputs
        moments = calibration.moments.get(layer.key)
        if moments is None or not moments.count:
            continue
        weights = calibration.weights[layer.key]
        found += [
            _Consumer(layer.key, columns[g], moments.covariance_of(g), weights[g])
            for g in range(layer.linear.groups)
            if (columns[g] >= 0).any()
        ]
    return found


def columns_of(analysis: Analysis, layer: LinearLayer, atom_of: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Atom of every column `[g, K]` of a layer, -1 for none; None where it has none at all."""
    shape = analysis.observation.shapes.get(layer.x)
    if shape is None:
        return None
    axis = layer.linear.channel_axis % len(shape)
    of_channel = np.full(shape[axis], -1, np.int64)
    for units in analysis.along(layer.x, axis):
        atoms = atom_of[analysis.solution.classes[units]]
        of_channel = np.where(atoms >= 0, np.broadcast_to(atoms, of_channel.shape), of_channel)
    return None if (of_channel < 0).all() else of_channel[layer.linear.channels]


class _Consumer:
    """One group of one layer while columns leave it. G and W shrink; `atoms` are those of the columns left."""

    def __init__(self, key: str, atoms: NDArray[np.int64], covariance: Floats, weights: NDArray[np.float32]) -> None:
        self.key = key
        self.atoms = atoms.copy()
        self.w: Array = weights.astype(np.float64)
        variance = float(np.einsum("ko,ko->", self.w, covariance @ self.w))
        self.weight = 1.0 / max(variance, 1e-30)
        damping = DAMPING * float(np.trace(covariance)) / len(covariance) + 1e-12
        if len(covariance) > SINGLE:  # half the memory and time
            covariance, self.w = covariance.astype(np.float32), self.w.astype(np.float32)
        self.g = np.linalg.inv(covariance + damping * np.eye(len(covariance), dtype=covariance.dtype))

    def scores(self, total: int) -> Floats:
        """s per atom; 0 for atoms without columns here."""
        result = np.zeros(total)
        order = np.argsort(self.atoms, kind="stable")
        order = order[self.atoms[order] >= 0]
        ids, first, counts = np.unique(self.atoms[order], return_index=True, return_counts=True)
        by_size: dict[int, list[int]] = defaultdict(list)
        for k, n in enumerate(counts.tolist()):
            by_size[n].append(k)
        for n, ks in by_size.items():
            columns = order[first[ks][:, None] + np.arange(n)]  # [units, n]
            w = self.w[columns]
            if n == 1:
                diagonal = self.g[columns[:, 0], columns[:, 0]]
                result[ids[ks]] = np.square(w[:, 0]).sum(axis=1) / np.maximum(diagonal, 1e-30)
            else:
                block = self.g[columns[:, :, None], columns[:, None, :]]
                result[ids[ks]] = np.einsum("uno,uno->u", w, np.linalg.solve(block, w))
        return result * self.weight

    def remove(self, going: Ids) -> None:
        """Repair for the loss of all columns of these atoms, then forget them."""
        out = np.isin(self.atoms, going)
        if not out.any():
            return
        s = np.flatnonzero(out)
        across = self.g[:, s]
        lost = np.linalg.solve(across[s], np.concatenate([self.w[s], across.T], axis=1))
        outputs = self.w.shape[1]
        self.w -= across @ lost[:, :outputs]
        self.g -= across @ lost[:, outputs:]
        self.atoms[s] = GONE
        left = np.flatnonzero(self.atoms != GONE)
        if left.size < SHRINK * self.atoms.size:
            self.w, self.g, self.atoms = self.w[left], self.g[np.ix_(left, left)], self.atoms[left]
