"""What a search for a time found: how fast the model got, what each group saves, and how long its layers take at each width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.choose.costs import CostModel
from onnxprune.choose.timetable import Entry
from onnxprune.cut.plan import units_removed
from onnxprune.groups.classes import Bools

DRAWN = 40  # groups whose widths are told, those whose layers take longest
WIDTHS = 8  # of a group, beside the one that was chosen
REMEASURED = 8  # groups, those that save most, whose saving is measured in the whole model


@dataclass(frozen=True)
class GroupTime:
    """What the removal from one group saves.

    group: its id.
    expected: milliseconds by the table of times.
    measured: milliseconds by which the finished model is slower with this group whole again; null where that was not measured.
    """

    group: str
    expected: float
    measured: float | None


@dataclass(frozen=True)
class WidthTime:
    """One width of a group.

    removed: units that are gone.
    ms: milliseconds that the layers of the group take together then, with all other groups whole.
    """

    removed: int
    ms: float


@dataclass(frozen=True)
class TimeCurve:
    """How long the layers take whose sizes follow one group, by the table of times.

    group: its id.
    points: some widths, none removed first; the chosen one among them.
    """

    group: str
    points: tuple[WidthTime, ...]


@dataclass(frozen=True)
class Pace:
    """How a target of time was met.

    asked: how many times as fast the model was to be.
    expected: the same by the table of times, before whole models corrected it.
    measured: of the model that was chosen, before its weights were repaired: median over the rounds of original / model.
    interval: from where to where that is certain to 95 %.
    runner: where it was measured.
    rounds: whole models that were timed.
    graphs: small graphs that were timed for it, and how many were known from before.
    seconds: that the table took.
    groups: what each group saves, the most first.
    curves: how long the layers of a group take at some widths; of the groups whose layers take longest, these first.
    """

    asked: float
    expected: float
    measured: float
    interval: tuple[float, float]
    runner: str
    rounds: int
    graphs: tuple[int, int]
    seconds: float
    groups: tuple[GroupTime, ...] = ()
    curves: tuple[TimeCurve, ...] = ()


def saved(costs: CostModel, removed: Bools) -> list[tuple[int, float]]:
    """(group, by its place in `costs.times.sizes.groups`; milliseconds by the table of times), the most first.

    Half of what it saves alone, and half of what it saves behind all others: together that is what all save.
    """
    cost, sizes = costs.of("latency"), costs.times.sizes
    counts = counts_of(costs, removed)
    whole, least = cost.total(None), cost.total(sizes.removed(counts))
    found = []
    for k, n in counts.items():
        alone = cost.total(sizes.removed({k: n}))
        others = cost.total(sizes.removed({j: m for j, m in counts.items() if j != k}))
        found.append((k, (whole - alone + others - least) / 2))
    return sorted(found, key=lambda x: -x[1])


def counts_of(costs: CostModel, removed: Bools) -> dict[int, int]:
    """Units that go, by the group's place; those that lose none are left out."""
    return {k: n for k, g in enumerate(costs.times.sizes.groups) if (n := units_removed(g, removed))}


def savings(costs: CostModel, removed: Bools, slower: Callable[[Bools], float] | None) -> tuple[GroupTime, ...]:
    """What each group saves, the most first. slower: milliseconds by which the model is slower with less removed; None: not measured."""
    sizes, counts, found = costs.times.sizes, counts_of(costs, removed), saved(costs, removed)
    measured: dict[int, float] = {}
    for k, _ in found[:REMEASURED]:
        if slower is not None:
            measured[k] = round(slower(sizes.removed({j: m for j, m in counts.items() if j != k})), 6)
    return tuple(GroupTime(sizes.groups[k].id, round(ms, 6), measured.get(k)) for k, ms in found)


def time_curves(costs: CostModel, removed: Bools) -> tuple[TimeCurve, ...]:
    """Of the `DRAWN` groups whose layers take longest, the longest first."""
    times, counts = costs.times, counts_of(costs, removed)
    own: dict[int, list[Entry]] = {}
    for e in times.entries:
        for k in sorted({k for c in e.piece.coordinates for k in c.groups}):
            own.setdefault(k, []).append(e)
    ranked = sorted(own, key=lambda k: (-sum(e.ms(e.full) * e.piece.runs for e in own[k]), k))
    return tuple(
        TimeCurve(times.sizes.groups[k].id, tuple(_points(costs, own[k], k, counts.get(k, 0)))) for k in ranked[:DRAWN]
    )


def _points(costs: CostModel, own: Sequence[Entry], group: int, chosen: int) -> Iterator[WidthTime]:
    times = costs.times
    stops = times.stops[group]
    shown = {stops[round(x)] for x in np.linspace(0, len(stops) - 1, min(WIDTHS, len(stops)))} | {chosen}
    for n in sorted(shown):
        shapes = times.sizes.shapes(times.sizes.removed({group: n}))
        ms = sum(e.ms(e.sizes(shapes)) * e.piece.runs for e in own)
        yield WidthTime(n, float(f"{times.timer.fit.alpha * ms:.4g}"))
