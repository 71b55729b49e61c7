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
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.groups.blocks import Blocks, Boxes, align_degenerate, find_blocks, find_boxes, per_step, tie_slabs
from onnxprune.groups.classes import Bools, Relations, distinct, find_atoms, merge
from onnxprune.groups.maps import Facet, shrink, varying
from onnxprune.groups.rows import Lines, Rows
from onnxprune.groups.units import Ids, Pin, UnitTable


@dataclass(frozen=True)
class Group:
    """Units that are alternatives to each other, such as the channels of one convolution: some go, and it does not matter to the
    graph which.

    id: `g0`, `g1`, … in the order of the graph, but those that can lose units first.
    origin: the operator that makes the units, for people.
    kind: `channels`: single units that nothing ties to a pattern (channels, neurons). `blocks`: units that have to leave several rows
        alike (the same number of positions in every head, in every group of a convolution). `rows`: whole rows (heads, groups).
    blocks: class ids `[n, k]` each: n atoms, which are k classes that leave together (k > 1 where rows are aligned).
    per_step: atoms that one step takes of each block. A step is what counts as one unit of the group.
    free: per block, bool `[n]`: the atom is not pinned.
    units: steps that there are. removable: steps that may go; one always stays.
    exact: removing equals forcing to zero, as the proof does; not so for positions under a LayerNorm.
    rounded: the units are channels of a convolution, whose kernels like multiples (`--round-to`).
    pins: why units stay, where some do.
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
    """The classes of a model (units that leave together) and the groups of them.

    classes [units + 1]: class of each unit; -1 for the last entry, which index -1 ("no unit") finds.
    count: number of classes.
    children: arrays (child, parent): class `child[k]` is a position in row `parent[k]`.
    instances: arrays (instance, child, row of each instance), as in `Relations`.
    pinned [count]: the class has to stay. approximate [count]: without it, the result only resembles the masked original.
    groups: what can be removed.
    axes: per axis of a tensor, the classes along it; an axis may not lose all of them.
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

    def emptied(self, gone: Bools) -> list[Ids]:
        """The axes that lose all their classes."""
        if not self.axes:
            return []
        classes, starts = self._ends
        left = np.logical_or.reduceat(~gone[classes], starts)
        return [self.axes[k] for k in np.flatnonzero(~left)]

    @cached_property
    def _ends(self) -> tuple[Ids, Ids]:
        """All axes in one array, and where each begins."""
        return np.concatenate(self.axes), np.cumsum([0, *(a.size for a in self.axes[:-1])])

    @property
    def removable(self) -> Ids:
        """The classes that may leave, in the order of the graph: plans and random draws count these only.

        How many classes there are in all depends on the sizes that were observed, as units of dynamic axes have some; those stay.
        """
        return np.flatnonzero(~self.pinned)

    def of_units(self, gone: Bools) -> Bools:
        """Per unit: has its class gone? The last entry answers for unit -1."""
        return np.append(gone, False)[self.classes]


def solve(
    units: UnitTable,
    activations: list[Facet],
    constants: list[Facet],
    rounded: Ids,
    include_inexact: bool = False,
    included: Ids | None = None,
    *,
    name: Callable[[Facet], str] = lambda facet: "",
) -> Solution:
    """Classes, blocks and groups of everything collected while walking the graph.

    activations, constants: all facets of all tensors; rounded: units whose groups are worth rounding; included: units that the user named
    (None: all). name: of a tensor that has a facet, for messages.
    """
    facets = distinct([*activations, *constants, *units.boxes, *units.aligned])
    work = Relations(units, facets, distinct(activations), name=name)
    stuck: set[int] = set()
    for attempt in range(20):
        merge(work)
        boxes = find_boxes(work)
        if attempt < 10 and tie_slabs(work, boxes):
            continue
        find_atoms(work)
        blocks = find_blocks(boxes, work)
        again = align_degenerate(work, boxes, blocks, final=attempt == 19, stuck=stuck)
        if not again:
            break
    return _solution(work, boxes, blocks, rounded, include_inexact, stuck, included)


def _solution(
    work: Relations,
    boxes: Boxes,
    blocks: Blocks,
    rounded: Ids,
    include_inexact: bool,
    stuck: set[int],
    included: Ids | None,
) -> Solution:
    units, classes = work.units, work.classes
    count = int(classes.max(initial=-1)) + 1
    pinned, approximate, in_part = (np.zeros(count, bool) for _ in range(3))
    reasons: dict[int, list[Pin]] = defaultdict(list)
    for ids, pin in units.pins:
        found = np.unique(classes[ids])
        pinned[found] = True
        if pin is not None:
            for c in found:
                reasons[int(c)].append(pin)
    for c in stuck:
        pinned[c] = True
        reasons[c].append(Pin("", f"the rows of {_box_of(c, boxes, work)} share no common step"))
    for c, pin in _alone(work).items():
        pinned[c] = True
        reasons[c].append(pin)
    whole: list[Ids] = []
    for ids, pin in units.approximations:
        rows = classes[ids]
        if len(ids) > 1:  # a row of one class leaves as a whole
            rows = rows[(rows != rows[:, :1]).any(axis=1)]
        found = np.unique(rows[rows >= 0])
        if include_inexact:
            approximate[found] = True
            continue
        (in_part if len(ids) > 1 else pinned)[found] = True
        whole.append(rows)
        for c in found:
            reasons[int(c)].append(pin)
    if included is not None:
        outside = np.ones(count, bool)
        outside[classes[included]] = False
        outside[work.parent] = False
        pinned |= outside
        for c in np.flatnonzero(outside).tolist():
            reasons[c].append(Pin("", "no --include pattern names it", "change --include"))
    held = work.is_offset[work.parent] & pinned[work.parent] if work.parent.size else np.empty(0, bool)
    offsets = in_part.copy()  # positions that go with whole rows only, as does an offset that has to stay
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
    lines: Lines = [*zip(boxes.classes, boxes.facets, strict=True), *((rows, None) for rows in whole)]
    groups = _groups(work, lines, blocks, draft, reasons, rounded, pinned | offsets)
    return Solution(classes, count, (work.child, work.parent), pinned, approximate, groups, axes, instances)


def _alone(work: Relations) -> dict[int, Pin]:
    """Classes that are all of some tensor's axis, each with one such tensor."""
    held: dict[int, Pin] = {}
    for facet in work.facets:
        found = work.classes[facet].ravel()
        c = int(found[0])
        if c >= 0 and c not in held and (found == c).all():
            held[c] = Pin("", f"all positions of an axis of {work.name(facet) or 'a tensor'} hang together")
    return held


def _single_axes(work: Relations) -> tuple[Ids, ...]:
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
    work: Relations,
    boxes: Lines,
    blocks: Blocks,
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
    if work.parent.size:
        pairs = _row_links(work, blocks, origin, offered)
        left.append(pairs[0])
        right.append(pairs[1])
    a, b = np.concatenate([*left, np.empty(0, np.int64)]), np.concatenate([*right, np.empty(0, np.int64)])
    family = connected_components(coo_array((np.ones(a.size), (a, b)), shape=(count, count)), directed=False)[1]
    is_rounded = np.zeros(count, bool)
    is_rounded[classes[rounded]] = True
    keys: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    live = np.zeros(count + 1, bool)  # between two constants there is nothing to remove
    for facet in [*work.activations, *units.boxes]:
        live[classes[facet.ravel()]] = True
    for _ in range(3):  # what lies in a row (of rows) that lives
        live[work.child[live[work.parent]]] = True
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
        group = _make(
            ids,
            lone=bool(lone),
            rows=bool(rows),
            work=work,
            blocks=blocks,
            draft=draft,
            staying=staying,
            reasons=reasons,
            origin=origin,
            is_rounded=is_rounded,
            boxes=boxes,
        )
        if group is not None:
            groups.append(group)
    return _named(groups)


def _named(groups: list[Group]) -> tuple[Group, ...]:
    """With ids: how many groups can lose nothing may depend on the observed sizes, so they come last."""
    order = sorted(range(len(groups)), key=lambda k: not groups[k].removable)
    ids = {k: f"g{number}" for number, k in enumerate(order)}
    return tuple(replace(group, id=ids[k]) for k, group in enumerate(groups))


def _row_links(work: Relations, blocks: Blocks, origin: dict[int, str], offered: Bools) -> tuple[Ids, Ids]:
    """Rows of one facet belong together: pairs of rows whose positions lie in the same linked set.

    Rows take over the name of a position of theirs; `origin` and `offered` are completed in place.
    """
    true_rows = ~work.is_column[work.parent]
    of_child = blocks.linked[work.atoms[work.child]]
    order = np.argsort(of_child[true_rows], kind="stable")
    parent, linked = work.parent[true_rows][order], of_child[true_rows][order]
    same = (linked[1:] == linked[:-1]) & (linked[1:] >= 0)
    for p in np.unique(work.parent):
        kids = work.child[work.parent == p]
        name = next((origin[int(c)] for c in kids if int(c) in origin), "")
        if name:
            origin.setdefault(int(p), name)
            offered[p] = True
    return parent[:-1][same], parent[1:][same]


def _make(
    ids: Ids,
    *,
    lone: bool,
    rows: bool,
    work: Relations,
    blocks: Blocks,
    draft: Solution,
    staying: Bools,
    reasons: dict[int, list[Pin]],
    origin: dict[int, str],
    is_rounded: Bools,
    boxes: Lines,
) -> Group | None:
    pinned = draft.pinned if rows else staying
    if lone:
        parts: tuple[Ids, ...] = (ids[:, None],)
        taken: tuple[int, ...] = (1,)
        if rows:
            pinned = pinned.copy()
            steps, obstacles = Rows(ids, draft.count, pinned, draft.children, draft.closure, boxes, draft.axes).steps()
            parts = (_table(steps),)
            for c, held in obstacles.items():
                pinned[c] = True
                if isinstance(held, list):
                    reasons[c] += [pin for k in held for pin in reasons.get(k, [])[:2] if pin not in reasons[c]]
                else:
                    apart = "share positions with other rows"
                    if held is not None:
                        apart = f"do not line up with those of {work.name(held) or 'another tensor'}"
                    reasons[c].append(Pin("", f"the rows of {origin.get(c, 'its tensor')} {apart}"))
    else:
        label = int(blocks.linked[work.atoms[ids[0]]])
        inside = np.flatnonzero(blocks.linked == label)
        members, sizes = np.unique(blocks.block[inside], return_counts=True)
        found = per_step(blocks, members, sizes)
        if found is None:
            found = sizes
        parts = tuple(_atoms(work, inside[blocks.block[inside] == m]) for m in members)
        taken = tuple(int(t) for t in found)
    free: tuple[Bools, ...] = tuple(np.logical_not(pinned[p].any(axis=1)) for p in parts)
    units = min(len(p) // t for p, t in zip(parts, taken, strict=True))
    removable = min(int(f.sum()) // t for f, t in zip(free, taken, strict=True))
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
        id="",
        origin=name,
        kind="rows" if rows else "channels" if lone else "blocks",
        blocks=parts,
        per_step=taken,
        free=free,
        units=units,
        removable=removable,
        exact=exact,
        rounded=bool(is_rounded[everything].any()),
        pins=tuple(why.values()),
    )


def _table(steps: list[Ids]) -> Ids:
    """Class arrays as rows of one; shorter ones repeat their first class."""
    width = max(step.size for step in steps)
    return np.stack([np.pad(step, (0, width - step.size), constant_values=step[0]) for step in steps])


def _atoms(work: Relations, atoms: Ids) -> Ids:
    """Classes `[n, k]` of atoms; shorter ones repeat their first class."""
    order = np.argsort(work.atoms, kind="stable")
    start = np.searchsorted(work.atoms[order], atoms)
    end = np.searchsorted(work.atoms[order], atoms, side="right")
    width = int((end - start).max())
    index = start[:, None] + np.arange(width)[None, :]
    index = np.where(index < end[:, None], index, start[:, None])
    atoms_of: Ids = order[index]
    return atoms_of


def _box_of(c: int, boxes: Boxes, work: Relations) -> str:
    """A tensor that a class lies in."""
    found = (f for f, array in zip(boxes.facets, boxes.classes, strict=True) if (array == c).any())
    return next((name for f in found if (name := work.name(f))), "a tensor")
