"""How long a model takes at any widths of its groups: the times of its pieces, measured at some sizes, and what lies between.

Of a piece whose coordinates (`choose/pieces.py`) have the sizes x, t is the time in the original and

    time(x) = t * f1(x1) * f2(x2) * … * c(x)

f: along one coordinate with the others whole, measured at all widths that a group may have, straight lines between; so steps of kernels
are seen. c: what is left, measured at a coarse grid inside, weighted by inverse distances between; 1 where all but one are whole. Where a
size was measured itself, that counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import product
from math import log, prod
from typing import TypeVar

import numpy as np

from onnxprune.choose.pieces import Coordinate, Counts, Piece, Sizes, pieces_of
from onnxprune.choose.small_graph import Cutter, SmallGraph
from onnxprune.choose.timer import Timer
from onnxprune.choose.widths import stops
from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis, Shapes
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Maps, Shape
from onnxprune.ops.linear import Floats

COARSE = (0.75, 0.5, 0.25)
"""Shares of a coordinate at which pieces are measured with others that are not whole."""

SMALL = 0.003
"""Share of the sum of all pieces: what takes less is measured at a few sizes only."""

Point = tuple[int, ...]
T = TypeVar("T")


class Entry:
    """One piece with its times. at: milliseconds at sizes of its coordinates."""

    KEPT = 20_000

    def __init__(self, analysis: Analysis, piece: Piece) -> None:
        self.piece = piece
        self.full: Point = tuple(c.size for c in piece.coordinates)
        self.at: dict[Point, float] = {}
        self._axes = [_axis(analysis, c) for c in piece.coordinates]
        units = [np.unique(np.concatenate([f.ravel() for f in maps])) for maps, _, _ in self._axes]
        self._units = np.unique(np.concatenate([*units, np.zeros(0, np.int64)]).astype(np.int64))
        self._sizes: dict[bytes, Point] = {}
        self._guessed: dict[Point, float] = {}
        self._lines: list[tuple[list[int], list[float]]] = []
        self._inside: tuple[Floats, Floats] | None = None

    def sizes(self, shapes: Shapes) -> Point:
        mark = np.packbits(shapes.gone[self._units]).tobytes()
        found = self._sizes.get(mark)
        if found is None:
            if len(self._sizes) > self.KEPT:
                self._sizes.clear()
            found = tuple(shapes.of_maps(maps, shape)[axis] for maps, shape, axis in self._axes)
            self._sizes[mark] = found
        return found

    def put(self, point: Point, ms: float) -> None:
        self.at[point] = ms
        self._guessed.clear()
        self._lines, self._inside = [], None

    def ms(self, point: Point) -> float:
        """Of one run of the piece."""
        exact = self.at.get(point)
        if exact is not None:
            return exact
        found = self._guessed.get(point)
        if found is None:
            found = self._guessed[point] = self._guess(point)
        return found

    def _guess(self, point: Point) -> float:
        whole = self.at.get(self.full)
        if whole is None or not self.full:
            return 0.0
        if not self._lines:
            self._lines = [self._line(k, whole) for k in range(len(self.full))]
        return whole * self._apart(point) * self._together(point, whole)

    def _apart(self, point: Point) -> float:
        return prod(_between(line, x) for line, x in zip(self._lines, point, strict=True))

    def _line(self, k: int, whole: float) -> tuple[list[int], list[float]]:
        """Sizes of coordinate k that were measured with the others whole, and the time there by the whole one's."""
        full = self.full
        found = sorted(
            (p[k], t / whole)
            for p, t in self.at.items()
            if all(x == f for i, (x, f) in enumerate(zip(p, full, strict=True)) if i != k)
        )
        return [x for x, _ in found], [y for _, y in found]

    def _together(self, point: Point, whole: float) -> float:
        """c: by the distances (in logarithms) to what was measured, and to where all but one coordinate are whole."""
        away = [i for i, (x, f) in enumerate(zip(point, self.full, strict=True)) if x != f]
        if len(away) < 2:
            return 1.0
        if self._inside is None:
            inside = [p for p in self.at if sum(x != f for x, f in zip(p, self.full, strict=True)) > 1]
            places = np.log(np.array(inside, np.float64).reshape(len(inside), len(self.full)) + 1)
            self._inside = places, np.array([self.at[p] / (whole * self._apart(p)) for p in inside])
        places, factors = self._inside
        here = np.log(np.array(point, np.float64) + 1)
        borders = [
            sum(log((f + 1) / (x + 1)) ** 2 for j, (x, f) in enumerate(zip(point, self.full, strict=True)) if j != i)
            for i in away
        ]
        distances = np.concatenate([((places - here) ** 2).sum(axis=1), borders])
        weights = 1 / np.maximum(distances, 1e-12) ** 2
        return float((weights * np.concatenate([factors, np.ones(len(borders))])).sum() / weights.sum())


def _between(line: tuple[list[int], list[float]], x: int) -> float:
    """On the straight line between neighbours; outside of all, as at the last of them: no saving that was not measured."""
    places, values = line
    k = bisect_left(places, x)
    if k < len(places) and places[k] == x:
        return values[k]
    if k == 0:
        return values[0]
    if k == len(places):
        return values[-1]
    share = (x - places[k - 1]) / (places[k] - places[k - 1])
    return values[k - 1] + share * (values[k] - values[k - 1])


def _axis(analysis: Analysis, coordinate: Coordinate) -> tuple[Maps, Shape, int]:
    """Map and shape of the tensor whose size a coordinate is, and the axis."""
    at = coordinate.axis
    seen, constants = analysis.observation.shapes, analysis.view.constants
    shape = seen.get(at.tensor) or tuple(constants[at.tensor].shape)
    maps = analysis.uses[at.node, at.input][1] if at.input >= 0 else analysis.maps[at.tensor]
    return maps, shape, at.axis


class Timetable:
    """The times of all pieces of one analysed model."""

    def __init__(self, analysis: Analysis, macs: Mapping[str, int], timer: Timer) -> None:
        self.analysis, self.timer = analysis, timer
        self.sizes, self.cutter = Sizes(analysis), Cutter(analysis)
        self.entries = [Entry(analysis, p) for p in pieces_of(analysis, macs)]
        self.stops = [stops(g) for g in self.sizes.groups]
        self._unmeasured: set[int] = set()

    # -- measuring

    def measure(self, share: Callable[[float], None] = lambda done: None) -> None:
        """All pieces whole; then inside, coarsely, those that take long; then along each coordinate at every width, as long as the timer
        has time. What is on disk takes none.
        """
        whole: list[tuple[Entry, Counts]] = [(e, {}) for e in self.entries]
        for some in self._portions(whole):
            self._measure(some)
        total = sum(e.ms(e.full) * e.piece.runs for e in self.entries)
        ranked = sorted(self.entries, key=lambda e: -e.ms(e.full) * e.piece.runs)
        long = [e for e in ranked if e.ms(e.full) * e.piece.runs >= SMALL * total and e.full]
        tasks: list[tuple[Entry, Counts]] = [
            (e, c) for e in ranked if e.full for c in self._corners(e, few=e not in long)
        ]
        tasks += [(e, c) for n in range(64) for e in long for c in self._along(e, n)]
        done = 0
        for some in self._portions(tasks):
            if self.timer.is_spent:
                break
            self._measure(some)
            share(max(done / len(tasks), self.timer.spent / self.timer.seconds))
            done += len(some)
        self.timer.kept.save()

    def _portions(self, tasks: Sequence[T]) -> Iterator[Sequence[T]]:
        """As many as are measured at once: no more graphs, with their weights, are made than that."""
        step = self.timer.at_once
        return (tasks[k : k + step] for k in range(0, len(tasks), step))

    def _measure(self, tasks: Sequence[tuple[Entry, Counts]]) -> None:
        found = []
        for entry, counts in tasks:
            removed = self.sizes.removed(counts)
            found.append((entry, entry.sizes(self.sizes.shapes(removed)), removed))
        self._put(found)

    def _put(self, tasks: Sequence[tuple[Entry, Point, Bools]]) -> None:
        """Measure pieces at sizes that are not known yet."""
        new: dict[tuple[int, Point], tuple[Entry, SmallGraph]] = {}
        for entry, point, removed in tasks:
            if point in entry.at or id(entry) in self._unmeasured or (id(entry), point) in new:
                continue
            try:
                new[id(entry), point] = entry, self.cutter(entry.piece, removed)
            except BadInputError:
                self._unmeasured.add(id(entry))
        times = self.timer([graph for _, graph in new.values()])
        for ((_, point), (entry, _)), ms in zip(new.items(), times, strict=True):
            if ms is None:
                self._unmeasured.add(id(entry))
            else:
                entry.put(point, ms)

    def exact(self, removed: Bools) -> int:
        """Measure every piece that takes long at the sizes of this removal; how many were not known."""
        shapes = self.sizes.shapes(removed)
        total = max(self.total(removed), 1e-12)
        points = [(entry, entry.sizes(shapes), removed) for entry in self.entries]
        new = [(e, p, r) for e, p, r in points if p not in e.at and e.ms(p) * e.piece.runs >= SMALL * total]
        for some in self._portions(new):
            self._put(some)
        if new:
            self.timer.kept.save()
        return len(new)

    def _corners(self, entry: Entry, few: bool) -> Iterator[Counts]:
        """Coarse sizes: the ends of each coordinate, then all combinations of two, or all coordinates alike where there are more."""
        coordinates = entry.piece.coordinates
        for c in coordinates:
            yield self._counts(c, 0.0)
            yield self._counts(c, 0.5)
        if len(coordinates) == 2 and not few:
            combined: Iterable[tuple[float, ...]] = [(0.0, 0.0), *product(COARSE, COARSE)]
        else:
            combined = (
                (s,) * len(coordinates) for s in (0.0, *(COARSE if len(coordinates) > 1 and not few else (0.5,)))
            )
        for shares in combined:
            counts: dict[int, int] = {}
            for c, share in zip(coordinates, shares, strict=True):
                counts |= self._counts(c, share)
            yield counts

    def _along(self, entry: Entry, n: int) -> Iterator[Counts]:
        """The n-th width of each coordinate, in an order in which any first few are spread evenly."""
        for c in entry.piece.coordinates:
            if len(c.groups) == 1:
                listed = self.stops[c.groups[0]]
                if n < len(listed):
                    yield {c.groups[0]: listed[_spread(len(listed))[n]]}
            elif n < 15:
                yield self._counts(c, 1 - (_spread(16)[n + 1]) / 16)

    def _counts(self, coordinate: Coordinate, share: float) -> dict[int, int]:
        """Widths of which about this share is left; for 0, the narrowest."""
        found = {}
        for k in coordinate.groups:
            units, most = self.sizes.groups[k].units, self.sizes.groups[k].removable
            found[k] = most if not share else min(self.stops[k], key=lambda n: abs(units - n - share * units))
        return found

    # -- telling

    def per_piece(self, removed: Bools | None) -> list[tuple[Piece, float]]:
        """Milliseconds of each piece in one run of the model."""
        if removed is None:
            return [(e.piece, e.ms(e.full) * e.piece.runs) for e in self.entries]
        shapes = self.sizes.shapes(removed)
        return [(e.piece, e.ms(e.sizes(shapes)) * e.piece.runs) for e in self.entries]

    def total(self, removed: Bools | None) -> float:
        """The sum."""
        return sum(ms for _, ms in self.per_piece(removed))

    def of_nodes(self, gone: Set[str]) -> float:
        """What goes with whole nodes: pieces whose layer goes, or all nodes where they have none."""
        return sum(
            ms for p, ms in self.per_piece(None) if (p.layer in gone if p.layer else all(n in gone for n in p.nodes))
        )


def _spread(number: int) -> list[int]:
    """0 … number - 1, the ends first, then the middles of what is left."""
    found = [0, number - 1] if number > 1 else [0]
    gaps = [(0, number - 1)]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if low < middle < high:
            found.append(middle)
            gaps += [(low, middle), (middle, high)]
    return found
