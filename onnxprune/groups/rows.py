"""Which rows (heads, convolution groups, groups of a normalization) can leave as a whole, and which only together.

A row may leave alone when no other tensor has a row that would lose a part with it. Where rows of several tensors overlap (a
normalization of 8 channels at a time before a Concat, of 12 behind it), those that overlap leave together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Facet
from onnxprune.groups.units import Ids

Lines = list[tuple[Ids, Facet | None]]
"""Class arrays `[rows, line]` of which no row may lose a part, with the map that each is of."""

Obstacle = Facet | list[int] | None
"""Why a row cannot leave alone: the map of a tensor that would lose a part of a row; classes that would leave with it and have to stay;
None: it shares positions with other rows."""


@dataclass(frozen=True)
class Rows:
    """Row classes of one group, and what binds them.

    ids: the classes. count: of all classes. pinned [count]: has to stay. children: arrays (child, parent), as in `Solution`. closure:
    what leaves when the marked classes leave. lines: what may not lose a part. axes: classes of which not all may leave.
    """

    ids: Ids
    count: int
    pinned: Bools
    children: tuple[Ids, Ids]
    closure: Callable[[Bools], Bools]
    lines: Lines
    axes: tuple[Ids, ...]

    def steps(self) -> tuple[list[Ids], dict[int, Obstacle]]:
        """Rows that leave together, and those that cannot leave. Each row is in one step, which is the row alone wherever that can be."""
        obstacles = self._obstacles()
        joined = self._joined(obstacles)
        together = {int(c) for step in joined for c in step}
        alone = [np.array([c]) for c in self.ids.tolist() if c not in together]
        steps = sorted([*alone, *joined], key=lambda step: int(step[0]))
        return steps, {c: held for c, held in obstacles.items() if c not in together}

    def _leaving(self, classes: Ids) -> Bools:
        gone = np.zeros(self.count, bool)
        gone[classes] = True
        return self.closure(gone)

    def _obstacles(self) -> dict[int, Obstacle]:
        """Rows that cannot leave alone."""
        label = np.full(self.count + 1, -1, np.int64)
        bad: dict[int, Obstacle] = {}
        for c in self.ids.tolist():
            found = np.flatnonzero(self._leaving(np.array([c])))
            held = found[self.pinned[found]]
            if held.size:
                bad[c] = held.tolist()
            elif (label[found] >= 0).any():
                bad[c] = None
            else:
                label[found] = c
        for array, facet in self.lines:
            marks = label[array]
            whole = (marks == marks[:, :1]).all(axis=1)
            for m in np.unique(marks[~whole]).tolist():
                if m >= 0:
                    bad.setdefault(m, facet)
        return bad

    def _joined(self, obstacles: dict[int, Obstacle]) -> list[Ids]:
        """Sets of rows that cannot leave alone but can together."""
        apart = np.array([c for c, held in obstacles.items() if not isinstance(held, list)], np.int64)
        if not apart.size:
            return []
        child, parent = self.children
        mine = np.isin(parent, self.ids)
        left, right = [child[mine]], [parent[mine]]
        for array, _ in self.lines:
            first, other = np.broadcast_arrays(array[:, :1], array)
            known = (first >= 0) & (other >= 0)
            left.append(first[known])
            right.append(other[known])
        a, b = np.concatenate(left), np.concatenate(right)
        links = coo_array((np.ones(a.size), (a, b)), shape=(self.count, self.count))
        label = connected_components(links, directed=False)[1]
        found = []
        for one in np.unique(label[apart]).tolist():
            step = self.ids[label[self.ids] == one]
            if step.size > 1 and np.isin(step, apart).all() and self._is_whole(np.flatnonzero(label == one)):
                found.append(step)
        return found

    def _is_whole(self, classes: Ids) -> bool:
        """May all these classes leave together, so that no line loses a part, and no axis all?"""
        gone = self._leaving(classes)
        if gone[self.pinned].any() or any(gone[axis].all() for axis in self.axes):
            return False
        inside = np.append(gone, False)
        marks = (inside[array] for array, _ in self.lines)
        return all(bool((m == m[:, :1]).all()) for m in marks)
