"""Units that go together: classes, rows of classes, and atoms.

**Classes** are connected components of the ties. A **row** (a head, a convolution group) is a class of its own, the parent
of the classes that lie in it; every call of `UnitTable.row` is an *instance* of such a relation. **Atoms** are classes at the
same offset of aligned rows, which leave together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.groups.maps import Facet, squeezed
from onnxprune.groups.units import Ids, Pin, UnitTable

Bools = NDArray[np.bool_]


@dataclass
class Relations:
    """What is known of the units while ties turn them into classes; `solve` fills it in and turns it into a `Solution`.

    units: the units and all that operators' rules said of them. facets: the index maps of all tensors, in pieces that vary together;
    activations: those of them that are not constants.
    classes [units + 1]: class of each unit, -1 for the last entry, which stands for "no unit".
    child, parent: pairs of classes; the parent is a row (a head, a convolution group), the child a position in it.
    instance, instance_child: pairs too, of the call (instance) that named a row's positions, and a position; instance_parent: the row
    of each instance. A row is gone when, in one of its instances, all positions are.
    atoms [classes]: number of the atom that each class is in.
    is_column [classes]: the class stands for one offset of every row. is_offset [classes]: for one of those that rows can lose singly.
    slabs: rows on a grid of several axes that were tied already, as shape and bytes.
    name: of a tensor that has a facet, for people.
    """

    units: UnitTable
    facets: list[Facet]
    activations: list[Facet]
    classes: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    child: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    parent: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    instance: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    instance_child: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    instance_parent: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    atoms: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    is_column: Bools = field(default_factory=lambda: np.empty(0, bool))
    is_offset: Bools = field(default_factory=lambda: np.empty(0, bool))
    slabs: set[tuple[tuple[int, ...], bytes]] = field(default_factory=set)
    name: Callable[[Facet], str] = lambda facet: ""


def distinct(facets: list[Facet]) -> list[Facet]:
    seen: dict[tuple[tuple[int, ...], bytes], Facet] = {}
    ids: set[int] = set()
    for facet in facets:
        if id(facet) in ids:
            continue
        ids.add(id(facet))
        small = squeezed(facet)
        seen.setdefault((small.shape, small.tobytes()), small)
    return list(seen.values())


def merge(work: Relations) -> None:
    """Classes from ties; a row of one child is that child, and rows of equal children are one row.

    Every parent of every call of `row` is an *instance*: the parent goes when all children of that instance go, so that the
    rows of several tensors bound to one parent go together.
    """
    units = work.units
    starts = np.cumsum([0, *[int(p.max(initial=-1)) + 1 for p in units.places]])
    parent_of = np.empty(int(starts[-1]), np.int64)
    for place, start, (_, parents) in zip(units.places, starts, units.rows, strict=False):
        parent_of[place + start] = parents
    while True:
        classes = np.append(units.components(), -1)
        work.classes = classes
        first = representatives(classes)
        pairs = np.concatenate(  # call by call, as most positions of a large map say the same
            [
                distinct_rows(place.astype(np.int64), classes[children])[0] + (start, 0)
                for place, start, (children, _) in zip(units.places, starts, units.rows, strict=False)
            ]
            or [np.empty((0, 2), np.int64)]
        )
        table = np.column_stack([classes[parent_of[pairs[:, 0]]], pairs])
        broken = np.unique(table[table[:, 2] < 0, 0])
        if broken.size:
            units.pin(first[broken], Pin("", "a row holds positions that have to stay"))
        table = table[(table[:, 2] >= 0) & (table[:, 0] != table[:, 2])]
        if not table.size:
            work.child = work.parent = work.instance_child = work.instance = work.instance_parent = np.empty(
                0, np.int64
            )
            return
        marks = np.flatnonzero(np.r_[True, (table[1:, :2] != table[:-1, :2]).any(axis=1)])
        merged = False
        by_children: dict[bytes, int] = {}
        seen: dict[tuple[int, bytes], np.ndarray] = {}
        for start, end in zip(marks.tolist(), [*marks[1:].tolist(), len(table)], strict=True):
            p, kids = int(table[start, 0]), table[start:end, 2]
            if kids.size == 1:
                units.tie(first[[p]], first[kids])
                merged = True
                continue
            mark = kids.tobytes()
            seen.setdefault((p, mark), kids)
            other = by_children.setdefault(mark, p)
            if other != p:
                units.tie(first[[other]], first[[p]])
                merged = True
        if not merged:
            break
    work.instance_parent = np.array([p for p, _ in seen], np.int64)
    work.instance = np.repeat(np.arange(len(seen)), [k.size for k in seen.values()])
    work.instance_child = np.concatenate(list(seen.values()))
    pairs, _ = distinct_rows(work.instance_parent[work.instance], work.instance_child)
    work.parent, work.child = pairs[:, 0], pairs[:, 1]


def distinct_rows(*columns: Ids) -> tuple[Ids, Ids]:
    """The sorted distinct rows of a table with entries of -1 or more, and how often each occurs.

    `np.unique(axis=0)` compares rows; one integer key per row sorts ten times as fast.
    """
    sizes = [int(c.max(initial=-1)) + 2 for c in columns]
    keys, counts = np.unique(np.ravel_multi_index([c + 1 for c in columns], sizes), return_counts=True)
    return np.stack(np.unravel_index(keys, sizes), axis=1) - 1, counts


def find_atoms(work: Relations) -> None:
    """Classes at the same offset of aligned rows form one atom."""
    count = int(work.classes.max(initial=-1)) + 1
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for array in work.units.aligned:
        found = work.classes[array]
        if rows_are_whole(found):
            continue
        first, other = np.broadcast_arrays(found[:1], found)
        known = (first >= 0) & (other >= 0)
        left.append(first[known])
        right.append(other[known])
        broken = found[:, (found < 0).any(axis=0)]
        work.units.pin(
            _units_of(work, broken[broken >= 0]), Pin("", "rows are aligned with positions that have to stay")
        )
    work.is_column, work.is_offset = np.zeros(count, bool), np.zeros(count, bool)
    for parents, rows in work.units.columns:
        work.is_column[work.classes[parents]] = True
        if not rows_are_whole(work.classes[rows]):
            work.is_offset[work.classes[parents]] = True
    is_parent = np.isin(np.arange(count), work.parent)  # the offset of a single row is that row's own unit
    work.is_column &= is_parent
    work.is_offset &= is_parent
    if work.parent.size:  # an offset leaves all tensors that share it, and whatever is tied to it
        offset = work.is_offset[work.parent]
        left.append(work.parent[offset])
        right.append(work.child[offset])
    a, b = np.concatenate(left), np.concatenate(right)
    links = coo_array((np.ones(a.size), (a, b)), shape=(count, count))
    work.atoms = (
        np.asarray(connected_components(links, directed=False)[1], np.int64) if count else np.empty(0, np.int64)
    )


def rows_are_whole(rows: Ids) -> bool:
    """Each of the rows `[n, offsets]` is one class: none can lose a single offset."""
    return rows.shape[1] > 1 and bool((rows == rows[:, :1]).all())


def _units_of(work: Relations, classes: Ids) -> Ids:
    return representatives(work.classes)[np.unique(classes)] if classes.size else np.empty(0, np.int64)


def representatives(classes: Ids) -> Ids:
    """One unit of each class."""
    _, first = np.unique(classes[:-1], return_index=True)
    return first.astype(np.int64)
