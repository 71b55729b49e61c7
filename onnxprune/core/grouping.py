"""From units and relations to groups: what can be removed, in which steps.

**Classes** are units that go together (connected components of the ties). A tensor has to stay a box: where a facet varies over
several axes, each of its **rows** (all varying axes but the last) must lose equally many positions. Classes that
lie in the same rows of all such facets form a **block**; a step of a group removes `per_step` classes from every block that shares
a facet with the others, so each row loses the same number. Where that leaves no step (a channel shuffle asks for equal counts
along both axes), the rows are aligned: the same offset leaves every row.

**Rows** (heads, convolution groups) go as a whole: a parent class goes exactly when its children go.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import gcd

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.core.maps import Facet, shrink, varying
from onnxprune.core.units import Ids, Pin, UnitTable

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Classes that are interchangeable: `units` steps, of which `removable` may go.

    blocks: class ids `[n, k]`: n atoms of k classes that go together (k > 1 where rows are aligned); a step takes
        `per_step[b]` atoms from each block `b`.
    free: per block, which atoms are not pinned.
    """

    id: str
    origin: str
    kind: str
    blocks: tuple[Ids, ...]
    per_step: tuple[int, ...]
    free: tuple[Bools, ...]
    units: int
    removable: int
    exact: bool
    rounded: bool
    pins: tuple[Pin, ...]

    @property
    def classes(self) -> Ids:
        return np.unique(np.concatenate([b.ravel() for b in self.blocks]))


@dataclass(frozen=True)
class Solution:
    """classes: class of each unit, with -1 for unit -1 (the last entry).

    children: `(child, parent)` pairs; instances: `(instance, child)` pairs and the parent of each instance; pinned, approximate: per class; axes: class arrays of single axes, none of which may be
    emptied.
    """

    classes: Ids
    count: int
    children: tuple[Ids, Ids]
    pinned: Bools
    approximate: Bools
    groups: tuple[Group, ...]
    axes: tuple[Ids, ...]
    instances: tuple[Ids, Ids, Ids]

    def closure(self, gone: Bools) -> Bools:
        """`gone` with the children of removed rows, and the rows of which an instance has lost all children."""
        gone = gone.copy()
        child, parent = self.children
        if not child.size:
            return gone
        instance, instance_child, instance_parent = self.instances
        while True:
            before = int(gone.sum())
            gone[child[gone[parent]]] = True
            alive = np.zeros(instance_parent.size, bool)
            alive[instance[~gone[instance_child]]] = True
            gone[instance_parent[~alive]] = True
            if int(gone.sum()) == before:
                return gone

    def of_units(self, gone: Bools) -> Bools:
        """Per unit: has its class gone? The last entry answers for unit -1."""
        return np.append(gone, False)[self.classes]


@dataclass
class _Relations:
    """Working state while classes are merged."""

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
    slabs: set[tuple[tuple[int, ...], bytes]] = field(default_factory=set)


def solve(
    units: UnitTable,
    activations: list[Facet],
    constants: list[Facet],
    rounded: Ids,
    include_inexact: bool = False,
    included: Ids | None = None,
) -> Solution:
    """Classes, blocks and groups of everything collected while walking the graph.

    activations, constants: all facets of all tensors; rounded: units whose groups are worth rounding; included: units that the user named
    (None: all).
    """
    facets = _distinct([*activations, *constants, *units.boxes, *units.aligned])
    work = _Relations(units, facets, _distinct(activations))
    stuck: set[int] = set()
    for attempt in range(20):
        _merge(work)
        boxes = _boxes(work)
        if attempt < 10 and _tie_slabs(work, boxes):
            continue
        _find_atoms(work)
        blocks = _blocks(boxes, work)
        again = _align_degenerate(work, boxes, blocks, final=attempt == 19, stuck=stuck)
        if not again:
            break
    return _solution(work, boxes, blocks, rounded, include_inexact, stuck, included)


def _distinct(facets: list[Facet]) -> list[Facet]:
    seen: dict[tuple[tuple[int, ...], bytes], Facet] = {}
    ids: set[int] = set()
    for facet in facets:
        if id(facet) in ids:
            continue
        ids.add(id(facet))
        squeezed = facet.reshape([n for n in facet.shape if n > 1])
        seen.setdefault((squeezed.shape, squeezed.tobytes()), squeezed)
    return list(seen.values())


def _merge(work: _Relations) -> None:
    """Classes from ties; a row of one child is that child, and rows of equal children are one row.

    Every call of `row` is an *instance*: its parent goes when all children of that instance go, so that the rows of
    several tensors bound to one parent go together.
    """
    units = work.units
    starts = np.cumsum([0, *[r[1].size for r in units.rows]])
    call = np.repeat(np.arange(len(units.rows)), np.diff(starts))
    child_units = np.concatenate([r[0] for r in units.rows] or [np.empty(0, np.int64)])
    parent_units = np.concatenate([r[1] for r in units.rows] or [np.empty(0, np.int64)])
    while True:
        classes = np.append(units.components(), -1)
        work.classes = classes
        first = _representatives(classes)
        table = np.stack([classes[parent_units], call, classes[child_units]], axis=1)
        table = np.unique(table, axis=0)
        broken = np.unique(table[table[:, 2] < 0, 0])
        if broken.size:
            units.pin(first[broken], Pin("", "a row holds positions that have to stay"))
        table = table[(table[:, 2] >= 0) & (table[:, 0] != table[:, 2])]
        if not table.size:
            work.child = work.parent = work.instance_child = work.instance = work.instance_parent = np.empty(0, np.int64)
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
    pairs = np.unique(np.stack([work.instance_parent[work.instance], work.instance_child], axis=1), axis=0)
    work.parent, work.child = pairs[:, 0], pairs[:, 1]


def _find_atoms(work: _Relations) -> None:
    """Classes at the same offset of aligned rows form one atom."""
    count = int(work.classes.max(initial=-1)) + 1
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for array in work.units.aligned:
        found = work.classes[array]
        first, other = np.broadcast_arrays(found[:1], found)
        known = (first >= 0) & (other >= 0)
        left.append(first[known])
        right.append(other[known])
        broken = found[:, (found < 0).any(axis=0)]
        work.units.pin(_units_of(work, broken[broken >= 0]), Pin("", "rows are aligned with positions that have to stay"))
    a, b = np.concatenate(left), np.concatenate(right)
    links = coo_array((np.ones(a.size), (a, b)), shape=(count, count))
    work.atoms = np.asarray(connected_components(links, directed=False)[1], np.int64) if count else np.empty(0, np.int64)
    work.is_column = np.zeros(count, bool)
    if work.units.columns:
        work.is_column[work.classes[np.concatenate(work.units.columns)]] = True


def _units_of(work: _Relations, classes: Ids) -> Ids:
    return _representatives(work.classes)[np.unique(classes)] if classes.size else np.empty(0, np.int64)


def _tie_slabs(work: _Relations, boxes: _Boxes) -> bool:
    """Rows on a grid of several axes ([3, heads] of a packed projection) go slab by slab: tie their parents."""
    if not work.parent.size:
        return False
    parents_of: dict[int, list[int]] = defaultdict(list)
    columns = np.zeros(int(work.classes.max()) + 1, bool)
    if work.units.columns:
        columns[work.classes[np.concatenate(work.units.columns)]] = True
    kids: dict[int, set[int]] = defaultdict(set)
    for p, c in zip(work.parent.tolist(), work.child.tolist(), strict=True):
        if not columns[p]:
            parents_of[c].append(p)
            kids[p].add(c)
    first = _representatives(work.classes)
    tied = False
    for array, grid in zip(boxes.classes, boxes.grids, strict=True):
        if len(grid) < 2:
            continue
        label = np.full(array.shape[0], -1, np.int64)
        for r in range(array.shape[0]):
            members = set(array[r].tolist())
            label[r] = next((p for p in parents_of.get(int(array[r, 0]), []) if members <= kids[p]), -1)
        table = label.reshape(grid)
        if (table < 0).all() or len(varying(shrink(table))) <= 1:
            continue
        units = np.where(table >= 0, first[table], -1)
        if (array.shape, units.tobytes()) in work.slabs:
            continue
        work.slabs.add((array.shape, units.tobytes()))
        lead = units.reshape(-1, grid[-1])
        work.units.tie(lead[:1], lead, Pin("", "a row of another part of the same tensor has to stay"))
        tied = True
    return tied


def _representatives(classes: Ids) -> Ids:
    """One unit of each class."""
    _, first = np.unique(classes[:-1], return_index=True)
    return first.astype(np.int64)


@dataclass(frozen=True)
class _Boxes:
    """Facets of several axes, as class arrays `[rows, line]`; `arrays` hold unit ids of the same layout."""

    classes: list[Ids]
    units: list[Ids]
    grids: list[tuple[int, ...]]


def _boxes(work: _Relations) -> _Boxes:
    classes: list[Ids] = []
    arrays: list[Ids] = []
    grids: list[tuple[int, ...]] = []
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for facet in work.facets:
        if facet.ndim < 2:
            continue
        found = work.classes[facet]
        small = shrink(found)
        axes = varying(small)
        if len(axes) < 2:
            continue
        small = small.reshape([small.shape[a] for a in axes])
        mark = (small.shape, small.tobytes())
        if mark in seen:
            continue
        seen.add(mark)
        units = facet
        for axis in range(facet.ndim):
            if axis not in axes:
                units = units.take([0], axis=axis)
        line = small.shape[-1]
        classes.append(small.reshape(-1, line))
        arrays.append(units.reshape(-1, line))
        grids.append(small.shape[:-1])
    return _Boxes(classes, arrays, grids)


@dataclass(frozen=True)
class _Blocks:
    """block, linked: per atom the block and the linked set it belongs to (-1: none); loss tables per box row."""

    block: Ids
    linked: Ids
    box_set: Ids
    row_of: Ids
    row_block: Ids
    row_count: Ids
    row_box: Ids


def _mix(values: Ids) -> NDArray[np.uint64]:
    """A fixed 64-bit hash (splitmix64), for order-free signatures."""
    x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _blocks(boxes: _Boxes, work: _Relations) -> _Blocks:
    """Atoms with the same multiplicity in every row of every box share a block. Indexed by atom."""
    count = int(work.atoms.max(initial=-1)) + 1
    atom_of = np.append(work.atoms, -1)
    pieces = []
    offset = 0
    row_box: list[int] = []
    for b, array in enumerate(boxes.classes):
        rows = np.broadcast_to(np.arange(array.shape[0])[:, None] + offset, array.shape)
        pieces.append(np.stack([atom_of[array.ravel()], rows.ravel()], axis=1))
        offset += array.shape[0]
        row_box += [b] * array.shape[0]
    empty = np.empty(0, np.int64)
    if not pieces:
        none = np.full(count, -1, np.int64)
        return _Blocks(none, none, empty, empty, empty, empty, empty)
    table, multiplicity = np.unique(np.concatenate(pieces), axis=0, return_counts=True)
    real = table[:, 0] >= 0
    table, multiplicity = table[real], multiplicity[real]
    with np.errstate(over="ignore"):
        marks = _mix(table[:, 1] * 1_000_003 + multiplicity)
        signature = np.zeros(count, np.uint64)
        np.add.at(signature, table[:, 0], marks)
    inside = np.zeros(count, bool)
    inside[table[:, 0]] = True
    _, block_inside = np.unique(signature[inside], return_inverse=True)
    block = np.full(count, -1, np.int64)
    block[inside] = block_inside
    boxes_of_row = np.array(row_box, np.int64)
    n_blocks, n_boxes = int(block.max(initial=-1)) + 1, len(boxes.classes)
    edges = np.unique(np.stack([block[table[:, 0]], boxes_of_row[table[:, 1]]], axis=1), axis=0)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1] + n_blocks)), shape=(n_blocks + n_boxes,) * 2)
    label = connected_components(graph, directed=False)[1]
    linked = np.full(count, -1, np.int64)
    linked[inside] = label[block[inside]]
    rows = np.unique(np.stack([table[:, 1], block[table[:, 0]], multiplicity], axis=1), axis=0)
    return _Blocks(block, linked, label[n_blocks:].astype(np.int64), rows[:, 0], rows[:, 1], rows[:, 2], boxes_of_row)


def _per_step(blocks: _Blocks, members: Ids, sizes: Ids) -> Ids | None:
    """How many classes of each block one step takes so that all rows of a box lose equally many; None if there is no way."""
    mine = np.isin(blocks.row_block, members)
    row, block, count = blocks.row_of[mine], blocks.row_block[mine], blocks.row_count[mine]
    index = np.searchsorted(members, block)
    divisor = gcd(*(int(s) for s in sizes))
    for per_step in (np.ones(len(members), np.int64), sizes // divisor):
        if (sizes // per_step).min() < 2:
            continue
        rows, inverse = np.unique(row, return_inverse=True)
        loss = np.bincount(inverse, weights=count * per_step[index])
        box = blocks.row_box[rows]
        full = np.bincount(blocks.row_box)[np.unique(box)]
        first = np.flatnonzero(np.r_[True, box[1:] != box[:-1]])
        seen = np.diff([*first, len(box)])
        if (np.repeat(loss[first], seen) == loss).all() and (seen == full).all():
            return per_step
    return None


def _align_degenerate(work: _Relations, boxes: _Boxes, blocks: _Blocks, final: bool, stuck: set[int]) -> bool:
    """Tie rows together where blocks leave no legal step; True if anything was tied."""
    again = False
    parents = np.zeros(len(blocks.block), bool)
    if work.child.size:
        parents[work.atoms[work.child[~work.is_column[work.parent]]]] = True
    for label in np.unique(blocks.linked[blocks.linked >= 0]):
        inside = np.flatnonzero(blocks.linked == label)
        members, sizes = np.unique(blocks.block[inside], return_counts=True)
        own = np.flatnonzero(blocks.box_set == label)
        per_step = _per_step(blocks, members, sizes)
        if per_step is None:
            if final:
                stuck.update(np.flatnonzero(np.isin(work.atoms, inside)).tolist())
                continue
            array = boxes.units[own[0]]
            work.units.tie(array[:1], array)
            again = True
        elif not parents[inside].any() and not final:
            steps = int((sizes // per_step).min())
            if all(steps < boxes.classes[b].shape[0] for b in own):
                for b in own:
                    work.units.tie(boxes.units[b][:, :1], boxes.units[b])
                again = True
    return again


def _solution(
    work: _Relations, boxes: _Boxes, blocks: _Blocks, rounded: Ids, include_inexact: bool, stuck: set[int], included: Ids | None
) -> Solution:
    units, classes = work.units, work.classes
    count = int(classes.max(initial=-1)) + 1
    pinned, approximate, soft = np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, bool)
    reasons: dict[int, list[Pin]] = defaultdict(list)
    for ids, pin in units.pins:
        found = np.unique(classes[ids])
        pinned[found] = True
        if pin is not None:
            for c in found:
                reasons[int(c)].append(pin)
    for c in stuck:
        pinned[c] = True
        reasons[c].append(Pin("", "its rows share no common step"))
    for facet in work.facets:
        found = work.classes[facet].ravel()
        if found[0] >= 0 and (found == found[0]).all():
            pinned[found[0]] = True
            reasons[int(found[0])].append(Pin("", "all positions of an axis hang together"))
    for ids, pin in units.approximations:
        found = np.unique(classes[ids])
        approximate[found] = True
        if not include_inexact:
            soft[found] = True
            for c in found:
                reasons[int(c)].append(pin)
    pinned |= soft
    if included is not None:
        outside = np.ones(count, bool)
        outside[classes[included]] = False
        outside[work.parent] = False
        pinned |= outside
        for c in np.flatnonzero(outside).tolist():
            reasons[c].append(Pin("", "no --include pattern names it", "change --include"))
    column = work.is_column[work.parent] if work.parent.size else np.empty(0, bool)
    held = column & pinned[work.parent] if work.parent.size else column
    offsets = np.zeros(count, bool)  # an offset that has to stay: its positions go with whole rows only
    for p, c in zip(work.parent[held].tolist(), work.child[held].tolist(), strict=True):
        offsets[c] = True
        reasons[c] += reasons.get(p, [])
    # a row is pinned, or approximate, with any of its children
    for flags in (pinned, approximate):
        while work.child.size:
            more = work.parent[flags[work.child] & ~flags[work.parent]]
            if not more.size:
                break
            flags[more] = True
            if flags is pinned:
                fresh = np.isin(work.parent, more)
                for p, c in zip(work.parent[fresh].tolist(), work.child[fresh].tolist(), strict=True):
                    reasons[p] += [r for r in reasons.get(c, [])[:4] if r not in reasons[p]]
    axes = _single_axes(work)
    instances = (work.instance, work.instance_child, work.instance_parent)
    draft = Solution(classes, count, (work.child, work.parent), pinned, approximate, (), axes, instances)
    groups = _groups(work, boxes, blocks, draft, reasons, rounded, pinned | offsets)
    return Solution(classes, count, (work.child, work.parent), pinned, approximate, groups, axes, instances)


def _single_axes(work: _Relations) -> tuple[Ids, ...]:
    """Class arrays of facets that vary along one axis and could be emptied (no position without a unit)."""
    found: dict[bytes, Ids] = {}
    for facet in work.facets:
        small = shrink(work.classes[facet])
        if len(varying(small)) == 1:
            flat = np.unique(small)
            if flat[0] >= 0:
                found.setdefault(flat.tobytes(), flat)
    return tuple(found.values())


def _groups(
    work: _Relations,
    boxes: _Boxes,
    blocks: _Blocks,
    draft: Solution,
    reasons: dict[int, list[Pin]],
    rounded: Ids,
    staying: Bools,
) -> tuple[Group, ...]:
    units, classes, count = work.units, work.classes, draft.count
    if not count:
        return ()
    offered = np.zeros(count, bool)
    origin: dict[int, str] = {}
    left: list[Ids] = []
    right: list[Ids] = []
    for ids, name in units.issues:
        found = np.unique(classes[ids])
        offered[found] = True
        for c in found:
            origin.setdefault(int(c), name)
        left.append(found[:-1])
        right.append(found[1:])
    is_parent = np.zeros(count, bool)
    is_parent[work.parent] = True
    # rows of one facet belong together: link parents whose children lie in the same linked set
    if work.parent.size:
        true_rows = ~work.is_column[work.parent]
        of_child = blocks.linked[work.atoms[work.child]]
        order = np.argsort(of_child[true_rows], kind="stable")
        parent, linked = work.parent[true_rows][order], of_child[true_rows][order]
        same = (linked[1:] == linked[:-1]) & (linked[1:] >= 0)
        left.append(parent[:-1][same])
        right.append(parent[1:][same])
        for p in np.unique(work.parent):
            kids = work.child[work.parent == p]
            name = next((origin[int(c)] for c in kids if int(c) in origin), "")
            if name:
                origin.setdefault(int(p), name)
                offered[p] = True
    a, b = np.concatenate([*left, np.empty(0, np.int64)]), np.concatenate([*right, np.empty(0, np.int64)])
    family = connected_components(coo_array((np.ones(a.size), (a, b)), shape=(count, count)), directed=False)[1]
    is_rounded = np.zeros(count, bool)
    is_rounded[classes[rounded]] = True
    keys: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    live = np.zeros(count + 1, bool)  # between two constants there is nothing to remove
    for facet in work.activations:
        live[classes[facet.ravel()]] = True
    offered &= live[:-1] | is_parent
    linked_of = blocks.linked[work.atoms]
    for c in np.flatnonzero(offered & ~work.is_column):
        if linked_of[c] >= 0 and not is_parent[c]:
            keys[0, int(linked_of[c]), 0].append(int(c))
        else:
            keys[1, int(family[c]), int(is_parent[c])].append(int(c))
    groups: list[Group] = []
    for (lone, _, rows), members in sorted(keys.items(), key=lambda item: item[1][0]):
        ids = np.array(members, np.int64)
        group = _make(len(groups), ids, bool(lone), bool(rows), work, blocks, draft, staying, reasons, origin, is_rounded, boxes)
        if group is not None:
            groups.append(group)
    return tuple(groups)


def _make(
    number: int,
    ids: Ids,
    lone: bool,
    rows: bool,
    work: _Relations,
    blocks: _Blocks,
    draft: Solution,
    staying: Bools,
    reasons: dict[int, list[Pin]],
    origin: dict[int, str],
    is_rounded: Bools,
    boxes: _Boxes,
) -> Group | None:
    pinned = draft.pinned if rows else staying
    if lone:
        parts: tuple[Ids, ...] = (ids[:, None],)
        per_step: tuple[int, ...] = (1,)
        if rows:
            pinned = pinned.copy()
            bad = _illegal_rows(ids, draft, boxes)
            pinned[bad] = True
            for c in bad:
                reasons[int(c)].append(Pin("", "its rows do not line up with those of another tensor"))
    else:
        label = int(blocks.linked[work.atoms[ids[0]]])
        inside = np.flatnonzero(blocks.linked == label)
        members, sizes = np.unique(blocks.block[inside], return_counts=True)
        found = _per_step(blocks, members, sizes)
        if found is None:
            found = sizes
        parts = tuple(_atoms(work, inside[blocks.block[inside] == m]) for m in members)
        per_step = tuple(int(t) for t in found)
    free = tuple(~pinned[p].any(axis=1) for p in parts)
    units = min(len(p) // t for p, t in zip(parts, per_step, strict=True))
    removable = min(int(f.sum()) // t for f, t in zip(free, per_step, strict=True))
    removable = max(0, min(removable, units - 1))
    why: dict[str, Pin] = {}
    everything = np.unique(np.concatenate([p.ravel() for p in parts]))
    for c in everything:
        if pinned[c]:
            for pin in reasons.get(int(c), []):
                why.setdefault(pin.reason, pin)
    unpinned = everything[~pinned[everything]]
    exact = not draft.approximate[unpinned].any()
    name = next((origin[int(c)] for c in everything if int(c) in origin), "")
    if units == 1 and not why:
        why["one"] = Pin("", f"all positions of {name} hang together")
    return Group(
        id=f"g{number}",
        origin=name,
        kind="rows" if rows else "channels" if lone else "blocks",
        blocks=parts,
        per_step=per_step,
        free=free,
        units=units,
        removable=removable,
        exact=exact,
        rounded=bool(is_rounded[everything].any()),
        pins=tuple(why.values()),
    )


def _atoms(work: _Relations, atoms: Ids) -> Ids:
    """Classes `[n, k]` of atoms; shorter ones repeat their first class."""
    order = np.argsort(work.atoms, kind="stable")
    start = np.searchsorted(work.atoms[order], atoms)
    end = np.searchsorted(work.atoms[order], atoms, side="right")
    width = int((end - start).max())
    index = start[:, None] + np.arange(width)[None, :]
    index = np.where(index < end[:, None], index, start[:, None])
    return order[index]


def _illegal_rows(ids: Ids, draft: Solution, boxes: _Boxes) -> Ids:
    """Row classes whose removal would not leave every box a box."""
    label = np.full(draft.count + 1, -1, np.int64)
    bad: set[int] = set()
    for c in ids:
        gone = np.zeros(draft.count, bool)
        gone[c] = True
        found = np.flatnonzero(draft.closure(gone))
        clash = label[found][label[found] >= 0]
        if clash.size or draft.pinned[found].any():
            bad.add(int(c))
            continue
        label[found] = c
    for array in boxes.classes:
        marks = label[array]
        whole = (marks == marks[:, :1]).all(axis=1)
        bad.update(int(m) for m in np.unique(marks[~whole]) if m >= 0)
    return np.array(sorted(bad), np.int64)
