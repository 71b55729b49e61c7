"""Units and what binds them: ties, rows, pins.

Rules issue units and say how they hang together; nothing is solved until every node has been seen. Then one call to a
library's connected components turns unit ids into **classes**: units that can only be removed together.

- `tie(a, b)`: position by position, a unit of `a` goes exactly when its partner in `b` goes.
- `pin(a, reason)`: these units stay.
- `row(children, parent)`: a parent (one head, one convolution group) goes exactly when all of its children go.
- `column(facet, axes)`: rows of `facet` lose the same offsets; a parent per offset goes exactly when all of them go.
- `approximate(rows, reason)`: removing some of a row is not exactly the masked original (LayerNorm over the axis), removing all of it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
Stored = NDArray[np.int32]
STORED = np.int32  # of ids that are kept until the graph has been walked


@dataclass(frozen=True)
class Pin:
    """Why units may not be removed.

    node: key (first output) of the node that holds them.
    reason: what holds them, with node, operator and axis.
    remedy: what the user can do about it; empty where there is nothing.
    """

    node: str
    reason: str
    remedy: str = ""


@dataclass
class UnitTable:
    """Collects units and relations while the graph is walked. Ids are consecutive integers."""

    count: int = 0
    pairs: list[tuple[Stored, Stored]] = field(default_factory=list)
    pins: list[tuple[Ids, Pin | None]] = field(default_factory=list)
    approximations: list[tuple[Ids, Pin]] = field(default_factory=list)
    rows: list[tuple[Stored, Stored]] = field(default_factory=list)
    places: list[Stored] = field(default_factory=list)
    issues: list[tuple[Ids, str]] = field(default_factory=list)
    boxes: list[Ids] = field(default_factory=list)
    aligned: list[Ids] = field(default_factory=list)
    columns: list[tuple[Ids, Ids]] = field(default_factory=list)

    def issue(self, n: int, origin: str = "") -> Ids:
        """`n` fresh units; with `origin`, they are what a weight's output axis (or a table's columns) offers for pruning."""
        ids = np.arange(self.count, self.count + n, dtype=np.int64)
        self.count += n
        if origin:
            self.issues.append((ids, origin))
        return ids

    def tie(self, a: Ids, b: Ids, pin: Pin | None = None) -> None:
        """Bind `a` and `b` position by position, with broadcasting; a unit whose partner is -1 is pinned for `pin`."""
        a, b = (x.ravel() for x in np.broadcast_arrays(a, b))
        both = (a >= 0) & (b >= 0)
        if both.all():
            self.pairs.append((a.astype(STORED), b.astype(STORED)))
            return
        self.pairs.append((a[both].astype(STORED), b[both].astype(STORED)))
        self.pin(np.concatenate([a[(a >= 0) & (b < 0)], b[(b >= 0) & (a < 0)]]), pin)

    def align(self, facet: Ids, axes: tuple[int, ...]) -> Ids:
        """Tie all positions along `axes` to the first one, and return the facet shrunk there."""
        first = facet
        for axis in axes:
            first = first.take([0], axis=axis)
        self.tie(first, facet)
        return first

    def column(self, facet: Ids, axes: tuple[int, ...]) -> Ids:
        """All rows of `facet` lose the same offsets: one parent per offset, with size 1 along `axes` (the rows)."""
        sides = tuple(1 if a in axes else n for a, n in enumerate(facet.shape))
        parents = self.issue(int(np.prod(sides))).reshape(sides)
        self.row(facet, parents)
        self.align_rows(facet, axes)
        self.columns.append((parents.ravel(), self.aligned[-1]))
        return parents

    def align_rows(self, facet: Ids, axes: tuple[int, ...]) -> None:
        """What leaves `facet` leaves it as whole rows (along `axes`) or at the same offsets of every row."""
        inner = [a for a in range(facet.ndim) if a not in axes]
        rows = int(np.prod([facet.shape[a] for a in axes]))
        self.aligned.append(facet.transpose([*axes, *inner]).reshape(rows, -1))

    def pin(self, ids: Ids, pin: Pin | None) -> None:
        ids = np.unique(ids[ids >= 0])
        if ids.size:
            self.pins.append((ids, pin))

    def pin_from(self, first: int, pin: Pin) -> None:
        """Pin every unit that was issued from id `first` on."""
        self.pin(np.arange(first, self.count, dtype=np.int64), pin)

    def approximate(self, rows: Ids, pin: Pin) -> None:
        """`rows` `[n, positions]`: a row that leaves as a whole (a group of GroupNorm) leaves exactly, a part of it does not."""
        rows = rows[:, np.r_[True, (rows[:, 1:] != rows[:, :-1]).any(axis=0)]]
        if len(rows) > 1:
            self.row(rows, self.issue(len(rows))[:, None])
        self.approximations.append((rows, pin))

    def row(self, children: Ids, parent: Ids) -> None:
        """`parent` (broadcast against `children`) goes exactly when all of its children go."""
        place = np.arange(parent.size, dtype=np.int64).reshape(parent.shape)
        flat = [x.ravel() for x in np.broadcast_arrays(children, parent, place)]
        known = flat[1] >= 0
        self.rows.append((flat[0][known].astype(STORED), flat[1][known].astype(STORED)))
        self.places.append(flat[2][known].astype(STORED))

    def components(self) -> Ids:
        """Class id per unit, numbered in order of first unit."""
        if not self.count:
            return np.empty(0, np.int64)
        a = np.concatenate([p[0] for p in self.pairs] or [np.empty(0, STORED)])
        b = np.concatenate([p[1] for p in self.pairs] or [np.empty(0, STORED)])
        links = csr_array((np.ones(a.size), (a, b)), shape=(self.count, self.count))
        del a, b  # as float64, which the search would convert to
        return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)
