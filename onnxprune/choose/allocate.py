"""Which classes to remove for a budget.

Within a group, steps go in order of importance. Across groups, `--ratio` takes the same share of each; `--macs` and `--params`
remove the least important steps of those that save anything until the target is met (the exact cost is evaluated). Dividing the
importance by what a step saves was measured and is worse: vgg at 0.7 of the MACs scores 0.748 without, 0.212 with. No group is cut to less
than a tenth of its units unless the target cannot be met otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.choose.budget import Budget
from onnxprune.choose.costs import CostModel
from onnxprune.choose.order import Order
from onnxprune.errors import NothingPrunableError, TargetNotReachableError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group
from onnxprune.groups.units import Ids

Scores = NDArray[np.float64]
FLOOR = 0.1
STALE = 0.03
SWAPS = 30


@dataclass(frozen=True)
class Steps:
    """A group's removable steps, least important first: `classes[j]` are those of step j."""

    group: Group
    classes: tuple[Ids, ...]
    scores: Scores

    def first(self, n: int) -> Ids:
        """The classes of the first `n` steps, which all have equally many."""
        return self.flat[: n * len(self.classes[0])] if n else self.flat[:0]

    @cached_property
    def flat(self) -> Ids:
        return np.concatenate(self.classes)


def steps_of(group: Group, scores: Scores) -> Steps:
    """The j-th least important classes of every block form step j."""
    ordered = []
    for block, free in zip(group.blocks, group.free, strict=True):
        atoms = block[free]
        ordered.append(atoms[np.argsort(scores[atoms].mean(axis=1), kind="stable")])
    count = group.removable
    classes = tuple(
        np.concatenate([ids[j * t : (j + 1) * t].ravel() for ids, t in zip(ordered, group.per_step, strict=True)])
        for j in range(count)
    )
    return Steps(group, classes, np.array([scores[c].mean() for c in classes]))


def allocate(
    analysis: Analysis,
    scores: Scores,
    budget: Budget,
    round_to: int,
    costs: CostModel | None = None,
    orders: Mapping[str, Order] | None = None,
    damages: Mapping[str, Scores] | None = None,
) -> Bools:
    """Bool per class: removed. Raises `NothingPrunableError` or `TargetNotReachableError`.

    orders: per group, which units go first (else by `scores`); damages: what the model suffers after 0, 1, ... steps.
    """
    scores = _row_scores(analysis, scores)
    groups = [
        Steps(g, orders[g.id].classes, orders[g.id].error) if orders is not None else steps_of(g, scores)
        for g in analysis.groups
        if g.removable
    ]
    if not groups:
        raise NothingPrunableError(_nothing(analysis))
    if damages is not None and budget.metric != "ratio":
        found = _spend(analysis, groups, scores, budget, round_to, costs or CostModel(analysis), damages)
        if found is not None:
            return found
    if budget.metric == "ratio":
        counts = [_rounded(s.group, int(budget.amount * s.group.units + 1e-9), round_to) for s in groups]
        return _remove(analysis, groups, counts, scores)
    return _for_cost(analysis, groups, scores, budget, round_to, costs or CostModel(analysis))


def _nothing(analysis: Analysis) -> str:
    reasons = list(dict.fromkeys(p.reason for g in analysis.groups for p in g.pins))
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    if not analysis.groups:
        return "Nothing can be removed: the graph has no weights whose outputs could shrink (run 'onnxprune inspect' for details)."
    return f"Nothing can be removed: {shown or 'every group has a single unit'} (run 'onnxprune inspect' for all pins)."


def _row_scores(analysis: Analysis, scores: Scores) -> Scores:
    """A row is as important as its children together (their mean, so that rows compare with each other)."""
    child, parent = analysis.solution.children
    if not child.size:
        return scores
    scores = scores.copy()
    count = analysis.solution.count
    for _ in range(3):  # rows of rows
        total = np.bincount(parent, weights=scores[child], minlength=count)
        number = np.bincount(parent, minlength=count)
        is_parent = number > 0
        scores[is_parent] = (total / np.maximum(number, 1))[is_parent]
    return scores


def _rounded(group: Group, remove: int, round_to: int) -> int:
    """Round what is kept to the nearest multiple (up, on a tie), within what can be removed."""
    remove = min(remove, group.removable)
    if round_to <= 1 or not group.rounded or group.kind != "channels":
        return remove
    kept = group.units - remove
    nearest = max(round_to, int(np.floor(kept / round_to + 0.5)) * round_to)
    remove = group.units - nearest
    while remove > group.removable:
        remove -= round_to
    return max(0, remove)


def _remove(analysis: Analysis, groups: list[Steps], counts: list[int], scores: Scores) -> Bools:
    removed = np.zeros(analysis.solution.count, bool)
    for steps, n in zip(groups, counts, strict=True):
        removed[steps.first(n)] = True
    return _keep_axes(analysis, analysis.solution.closure(removed), groups, counts, scores)


def _keep_axes(analysis: Analysis, removed: Bools, groups: list[Steps], counts: list[int], scores: Scores) -> Bools:
    """No axis may be emptied: where one would be, the steps and rows that take its most important class stay out.

    If that is not enough (rows and steps that empty it together), all that touches the axis stays out. Only whole steps are
    taken back, so every box stays one.
    """
    child, parent = analysis.solution.children
    spared = np.zeros(analysis.solution.count, bool)
    for attempt in range(50):
        empty = [axis for axis in analysis.solution.axes if removed[axis].all()]
        if not empty:
            return removed
        for axis in empty:
            spared[axis if attempt > 2 else axis[[np.argmax(scores[axis])]]] = True
        spared[parent[spared[child]]] = True
        removed = np.zeros(analysis.solution.count, bool)
        for steps, n in zip(groups, counts, strict=True):
            for ids in steps.classes[:n]:
                if not spared[ids].any():
                    removed[ids] = True
        removed = analysis.solution.closure(removed)
    return np.zeros(analysis.solution.count, bool)


def _spend(
    analysis: Analysis,
    groups: list[Steps],
    scores: Scores,
    budget: Budget,
    round_to: int,
    costs: CostModel,
    damages: Mapping[str, Scores],
) -> Bools | None:
    """Spend the budget where it hurts least: the move with the least damage per saving goes next.

    A move takes one group down to any lower width, so that flat stretches behind a steep one are seen (the convex hull).
    Savings are measured at the current widths, as widths multiply, and again whenever the total has moved by `STALE`.
    None where the target cannot be met with what the curves cover.
    """
    measure = costs.measure(budget.metric)
    target = budget.amount * measure(None)
    legal = [_legal(s, round_to) for s in groups]
    curves = [damages[s.group.id] for s in groups]

    def cost(counts: list[int]) -> float:
        return float(measure(_remove(analysis, groups, counts, scores)))

    def harm(counts: list[int]) -> float:
        return float(sum(c[n] for c, n in zip(curves, counts, strict=True)))

    found = _descend(legal, curves, [0] * len(groups), frozenset(), cost, target)
    if found is None:
        return None
    counts = _give_back(found, legal, curves, cost, target)
    if len(groups) <= SWAPS:  # one move of a group may pay for several of the others
        for k in sorted(range(len(groups)), key=lambda k: -curves[k][counts[k]]):
            before = [n for n in legal[k] if n < counts[k]]
            if not before:
                continue
            start = counts[:k] + [before[-1]] + counts[k + 1 :]
            other = _descend(legal, curves, start, frozenset({k}), cost, target)
            if other is not None:
                other = _give_back(other, legal, curves, cost, target)
                counts = other if harm(other) < harm(counts) else counts
    return _remove(analysis, groups, counts, scores)


def _descend(
    legal: list[list[int]],
    curves: list[Scores],
    start: list[int],
    frozen: frozenset[int],
    cost: Callable[[list[int]], float],
    target: float,
) -> list[int] | None:
    """Move groups that are not frozen down until the target is met; None where that is not possible."""
    counts = list(start)
    total = cost(counts)
    while total > target:
        saving = np.zeros(len(legal))
        for k, widths in enumerate(legal):
            after = [n for n in widths if n > counts[k]]
            if after and k not in frozen:
                trial = counts[:k] + [after[0]] + counts[k + 1 :]
                saving[k] = (total - cost(trial)) / (after[0] - counts[k])
        left = total
        moved = False
        while left > max(target, (1 - STALE) * total):
            best: tuple[float, int, int] | None = None
            for k, widths in enumerate(legal):
                if saving[k] <= 0:
                    continue
                further = np.array([n for n in widths if n > counts[k]], np.int64)
                if further.size:
                    rate = (curves[k][further] - curves[k][counts[k]]) / (saving[k] * (further - counts[k]))
                    at = int(np.argmin(rate))
                    if best is None or rate[at] < best[0]:
                        best = (float(rate[at]), k, int(further[0]))  # one step towards the best width at a time
            if best is None:
                break
            _, k, n = best
            left -= saving[k] * (n - counts[k])
            counts[k] = n
            moved = True
        if not moved:
            return None
        total = cost(counts)
    return counts


def _give_back(
    counts: list[int],
    legal: list[list[int]],
    curves: list[Scores],
    cost: Callable[[list[int]], float],
    target: float,
) -> list[int]:
    """Take back the moves that the target does not need, the most harmful first: the last ones may have gone past it."""
    counts = list(counts)
    stuck: set[int] = set()
    while True:
        gains = {}
        for k, widths in enumerate(legal):
            before = [n for n in widths if n < counts[k]]
            if k not in stuck and before:
                gains[k] = (float(curves[k][counts[k]] - curves[k][before[-1]]), before[-1])
        if not gains:
            return counts
        k = max(gains, key=lambda k: gains[k][0])
        trial = counts[:k] + [gains[k][1]] + counts[k + 1 :]
        if cost(trial) <= target:
            counts = trial
        else:
            stuck.add(k)


def _ranks(levels: list[Scores], counts: list[bool]) -> list[Scores]:
    """The place of every step in one order of them all; of equal levels, groups give an equal share first. Infinite: does not count."""
    level = np.concatenate(levels)
    share = np.concatenate([np.arange(1, len(x) + 1) / len(x) for x in levels])
    rank = np.empty(len(level))
    rank[np.lexsort((share, level))] = np.arange(len(level))
    parts = np.split(rank, np.cumsum([len(x) for x in levels])[:-1])
    return [p if counted else np.full(len(p), np.inf) for p, counted in zip(parts, counts, strict=True)]


def _legal(steps: Steps, round_to: int) -> list[int]:
    """How many steps may be taken, by rounding and so that a tenth of the units is left."""
    group = steps.group
    most = min(group.removable, int((1 - FLOOR) * group.units))
    fine = max(1, group.units // 64)
    return sorted({n for n in (_rounded(group, k, round_to) for k in range(0, most + 1, fine)) if 0 <= n <= most})


def _for_cost(
    analysis: Analysis, groups: list[Steps], scores: Scores, budget: Budget, round_to: int, costs: CostModel
) -> Bools:
    measure = costs.measure(budget.metric)
    saving = costs.saving(budget.metric)
    child, parent = analysis.solution.children
    if child.size:
        saving += np.bincount(parent, weights=saving[child], minlength=len(saving))
    total = measure(None)
    target = budget.amount * total
    saves = [saving[s.flat].sum() > 0 for s in groups]
    priority = _ranks([np.maximum.accumulate(s.scores) for s in groups], saves)
    best: tuple[float, Bools] | None = None
    for floor in (FLOOR, 0.0):
        limits = [min(len(p), int((1 - floor) * s.group.units)) for p, s in zip(priority, groups, strict=True)]
        levels = np.unique(np.concatenate([p[:n] for p, n in zip(priority, limits, strict=True)]))
        levels = levels[np.isfinite(levels)]

        def at(k: int, limits: list[int] = limits, levels: Scores = levels) -> Bools:
            counts = [
                _rounded(s.group, min(n, int(np.searchsorted(p, levels[k], side="right"))), round_to)
                for s, p, n in zip(groups, priority, limits, strict=True)
            ]
            return _remove(analysis, groups, counts, scores)

        if not levels.size:
            continue
        low, high = 0, len(levels) - 1
        most = at(high)
        reached = measure(most)
        if best is None or reached < best[0]:
            best = (reached, most)
        if reached > target:
            continue
        if total <= target:
            return np.zeros(analysis.solution.count, bool)
        while low < high:
            middle = (low + high) // 2
            if measure(at(middle)) <= target:
                high = middle
            else:
                low = middle + 1
        return at(high)
    reach = 1.0 if best is None else best[0] / max(total, 1)
    held = list(dict.fromkeys(p.reason for g in analysis.groups for p in g.pins if not g.removable))
    why = (
        f" What is left is held by: {held[0]}" + (f" and {len(held) - 1} more pins." if len(held) > 1 else ".")
        if held
        else ""
    )
    raise TargetNotReachableError(
        f"--{budget.metric} {budget.amount:g} cannot be reached: at most down to {reach:.3f} of the original.{why}"
        f" Try a larger value, --round-to 1 or --include-inexact."
    )
