"""Which classes to remove for a budget.

Within a group, steps go in a fixed order: by importance, or by the orders that a calibration found. How many steps each group gives:

- `--ratio` takes the same share of every group.
- A target for a cost, with damages measured per group: the widths whose damages together are least among those that meet the target at
  their real cost (`choose/spend.py`).
- A target for a cost, without damages: one order of all steps of all groups, by importance, as far as the target needs. What a step
  saves plays no part: dividing the importance by it was measured and is worse (vgg at 0.7 of the MACs scores 0.748 without, 0.212 with).

No group keeps less than a tenth of its units (`choose/widths.py`) unless the target cannot be met otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from onnxprune.choose.budget import Budget, flag_of
from onnxprune.choose.cost import Cost, Stepped
from onnxprune.choose.costs import CostModel
from onnxprune.choose.keep_axes import Scores, keep_axes
from onnxprune.choose.order import Order
from onnxprune.choose.spend import lowest, spend
from onnxprune.choose.widths import FLOOR, legal, rounded
from onnxprune.errors import BadInputError, NothingPrunableError, TargetNotReachableError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group
from onnxprune.groups.units import Ids
from onnxprune.ops.base import INEXACT_REMEDY

INEXACT = "--include-inexact"
MARGIN = 0.05
"""Share by which measured damages are about uncertain. Swaps that gained 0.03 to 3 % of it cost top-1: tests/benchmarks/allocator.md."""


@dataclass(frozen=True)
class Steps:
    """A group's removable steps, least important first: `classes[j]` are those of step j."""

    group: Group
    classes: tuple[Ids, ...]
    scores: Scores


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


Fitting = Callable[[int], int]
By = Literal["ratio", "damage", "importance"]


@dataclass(frozen=True)
class Allocation:
    """removed: bool per class. by: what decided, the ratio, measured damages, or importance alone.

    is_exact: no legal widths meet the target with less damage (where the cost is a sum over groups and the search was complete).
    """

    removed: Bools
    by: By
    is_exact: bool = False


def allocate(
    analysis: Analysis,
    scores: Scores,
    budget: Budget,
    round_to: int,
    cost: Cost | None = None,
    orders: Mapping[str, Order] | None = None,
    damages: Mapping[str, Scores] | None = None,
) -> Allocation:
    """What to remove, `scores[c]` being the importance of class c.

    budget: a ratio, or the share of `cost` that may be left; cost: any `Cost`, by default the one that the budget names. round_to: of the
    units that a group keeps, where the group is worth rounding. orders: per group id, which units go first (else by `scores`).
    damages: per group id, `[steps + 1]`, what the model suffers after 0, 1, ... steps in that order, in any unit that adds up over groups.
    Where they are given, they decide; else importance does. `Allocation.by` says which.

    Raises `NothingPrunableError` where no group can lose anything, `TargetNotReachableError` with the lowest share that legal widths
    reach, `ValueError` where a group has no damages.
    """
    scores = _row_scores(analysis, scores)
    groups = [
        Steps(g, orders[g.id].classes, orders[g.id].error) if orders is not None else steps_of(g, scores)
        for g in analysis.groups
        if g.removable
    ]
    if not groups:
        raise NothingPrunableError(_nothing(analysis))
    work = _Work(analysis, groups, scores, round_to)
    if budget.metric == "ratio":
        counts = [rounded(s.group, int(budget.amount * s.group.units + 1e-9), round_to) for s in groups]
        return Allocation(work.removed(counts), "ratio")
    cost = cost or CostModel(analysis).of(budget.cost)
    if damages is None:
        return _by_importance(work, cost, budget)
    missing = [s.group.id for s in groups if s.group.id not in damages]
    if missing:
        raise ValueError(f"No damages for {', '.join(missing)}: give them for every group, or for none (damages=None).")
    return _by_damage(work, cost, budget, [damages[s.group.id] for s in groups])


@dataclass(frozen=True)
class _Work:
    """What both ways to meet a cost need."""

    analysis: Analysis
    groups: list[Steps]
    scores: Scores
    round_to: int

    def removed(self, counts: Sequence[int]) -> Bools:
        taken = [ids for steps, n in zip(self.groups, counts, strict=True) for ids in steps.classes[:n]]
        return keep_axes(self.analysis, taken, self.scores)

    def widths(self, floor: float, cost: Cost) -> list[tuple[int, ...]]:
        if isinstance(cost, Stepped) and self.round_to <= 1:
            return [cost.widths(s.group, floor) for s in self.groups]
        return [legal(s.group, self.round_to, floor) for s in self.groups]

    def fitting(self, floor: float, cost: Cost) -> list[Fitting]:
        """Per group, a width that it may have for any number of steps."""
        if isinstance(cost, Stepped) and self.round_to <= 1:
            return [_to_nearest(w) for w in self.widths(floor, cost)]
        return [partial(_rounded, s.group, self.round_to) for s in self.groups]

    def widened(
        self, counts: list[int], cost: Cost, floor: float, target: float, priority: Sequence[Scores]
    ) -> list[int]:
        """Of a cost that falls in steps: what the target does not need comes back, the most important first."""
        if not isinstance(cost, Stepped):
            return counts
        measure, widths = self.measure(cost), self.widths(floor, cost)
        places = [w.index(n) if n in w else 0 for w, n in zip(widths, counts, strict=True)]
        now, stuck = list(counts), set[int]()
        while True:
            open_ones = [k for k, place in enumerate(places) if place and k not in stuck]
            if not open_ones:
                return now
            k = max(open_ones, key=lambda k: priority[k][now[k] - 1])
            trial = [*now[:k], widths[k][places[k] - 1], *now[k + 1 :]]
            if measure(trial) <= target:
                now, places[k] = trial, places[k] - 1
            else:
                stuck.add(k)

    def measure(self, cost: Cost) -> Callable[[Sequence[int]], float]:
        """The cost as a function of the steps removed per group. Raises `BadInputError` where it is no number."""

        def measured(counts: Sequence[int]) -> float:
            found = float(cost.total(self.removed(counts)))
            if not np.isfinite(found):
                raise BadInputError(
                    f"The cost '{cost.name}' is {found} {cost.unit} for a removal; it must be a finite number."
                )
            return found

        return measured


def _by_damage(work: _Work, cost: Cost, budget: Budget, curves: list[Scores]) -> Allocation:
    measure = work.measure(cost)
    target = budget.goal(measure([0] * len(work.groups)))
    for floor in (FLOOR, 0.0):
        found = spend(work.widths(floor, cost), curves, measure, target, MARGIN)
        if found.is_met:
            return Allocation(work.removed(found.counts), "damage", found.is_exact)
    raise _unreachable(work, cost, budget, found.cost)


def _by_importance(work: _Work, cost: Cost, budget: Budget) -> Allocation:
    """The least important steps of groups that save anything, as few as meet the target by bisection."""
    groups = work.groups
    measure = work.measure(cost)
    nothing = [0] * len(groups)
    total = measure(nothing)
    target = budget.goal(total)
    if total <= target:
        return Allocation(work.removed(nothing), "importance")
    narrowest = [w[-1] for w in work.widths(0.0, cost)]
    priority = _ranks([np.maximum.accumulate(s.scores) for s in groups], _saves(measure, narrowest))
    for floor in (FLOOR, 0.0):
        fitting = work.fitting(floor, cost)
        limits = [min(len(p), int((1 - floor) * s.group.units)) for p, s in zip(priority, groups, strict=True)]
        levels = np.unique(np.concatenate([p[:n] for p, n in zip(priority, limits, strict=True)]))
        levels = levels[np.isfinite(levels)]

        def at(
            k: int, limits: list[int] = limits, levels: Scores = levels, fitting: list[Fitting] = fitting
        ) -> list[int]:
            return [
                fit(min(n, int(np.searchsorted(p, levels[k], side="right"))))
                for fit, p, n in zip(fitting, priority, limits, strict=True)
            ]

        low, high = 0, len(levels) - 1
        if high < 0 or measure(at(high)) > target:
            continue
        while low < high:
            middle = (low + high) // 2
            if measure(at(middle)) <= target:
                high = middle
            else:
                low = middle + 1
        return Allocation(work.removed(work.widened(at(high), cost, floor, target, priority)), "importance")
    reached = lowest(work.widths(0.0, cost), measure)
    if reached.cost > target:
        raise _unreachable(work, cost, budget, reached.cost)
    return Allocation(work.removed(reached.counts), "importance")


def _saves(measure: Callable[[Sequence[int]], float], narrowest: list[int]) -> list[bool]:
    """Which groups save anything, alone or with all others; all, where none does."""
    total, least = measure([0] * len(narrowest)), measure(narrowest)
    saves = []
    for k, n in enumerate(narrowest):
        alone = [n if i == k else 0 for i in range(len(narrowest))]
        others = [0 if i == k else m for i, m in enumerate(narrowest)]
        saves.append(measure(alone) < total or measure(others) > least)
    return saves if any(saves) else [True] * len(saves)


def _rounded(group: Group, round_to: int, remove: int) -> int:
    return rounded(group, remove, round_to)


def _to_nearest(widths: Sequence[int]) -> Fitting:
    """The width nearest to a number of steps; of two, the one that removes less."""
    return lambda n: min(widths, key=lambda w: (abs(w - n), w))


def _unreachable(work: _Work, cost: Cost, budget: Budget, reached: float) -> TargetNotReachableError:
    total = work.measure(cost)([0] * len(work.groups))
    held = list(dict.fromkeys(p.reason for g in work.analysis.groups for p in g.pins if not g.removable))
    why = f" What is left is held by: {held[0]}" if held else ""
    why += (f" and {len(held) - 1} more pins." if len(held) > 1 else ".") if held else ""
    flag = flag_of(budget.metric) if budget.is_time else f"--{cost.name}"
    ways = ("Try a larger value", "--round-to 1")[: 1 + (work.round_to > 1)]
    found = TargetNotReachableError(
        f"{flag} {budget.amount:g} cannot be reached: at most down to {reached / total if total else 1.0:.3f} of the "
        f"original ({_told(reached)} of {_told(total)} {cost.unit}).{why} {remedies(work.analysis, *ways)}."
    )
    found.reached = reached
    return found


def remedies(analysis: Analysis, *ways: str) -> str:
    """What to do about a target out of reach: some ways, and to free what is held, where an option does."""
    more = [INEXACT] if any(p.remedy == INEXACT_REMEDY for g in analysis.groups for p in g.pins) else []
    return " or ".join([*ways, *more])


def _told(amount: float) -> str:
    """Large numbers in full, small ones with a few digits."""
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:.4g}"


def _nothing(analysis: Analysis) -> str:
    """Why, the reasons that something can be done about first; each remedy once."""
    pins = sorted((p for g in analysis.groups for p in g.pins), key=lambda p: not p.remedy)
    told: dict[str, str] = {}
    for p in pins:
        told.setdefault(p.remedy or p.reason, f"{p.reason} [{p.remedy}]" if p.remedy else p.reason)
    reasons = list(told.values())
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


def _ranks(levels: list[Scores], counts: list[bool]) -> list[Scores]:
    """The place of every step in one order of them all; of equal levels, groups give an equal share first. Infinite: does not count."""
    level = np.concatenate(levels)
    share = np.concatenate([np.arange(1, len(x) + 1) / len(x) for x in levels])
    rank = np.empty(len(level))
    rank[np.lexsort((share, level))] = np.arange(len(level))
    parts = np.split(rank, np.cumsum([len(x) for x in levels])[:-1])
    return [p if counted else np.full(len(p), np.inf) for p, counted in zip(parts, counts, strict=True)]
