"""Boxes and blocks: which classes a step has to take so that every tensor stays a box.

Where a facet varies over several axes, each of its rows (all varying axes but the last) must lose equally many positions.
Atoms that lie in the same rows of all such facets form a block; blocks that share a facet are linked, and one step takes
`per_step` atoms of every linked block.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.groups.classes import Relations, distinct_rows, representatives
from onnxprune.groups.maps import Facet, shrink, varying
from onnxprune.groups.units import Ids, Pin


@dataclass(frozen=True)
class Boxes:
    """Tensors whose index map varies over several axes at once, such as heads and positions within a head.

    Each is laid out as a matrix `[rows, line]`: the last of those axes is the line, all others together are the rows. For the
    tensor to stay a box, every row has to lose equally many positions.

    classes: the class id at each place. units: the unit id there. grids: the sizes of the axes that make the rows.
    facets: the tensors' maps.
    """

    classes: list[Ids]
    units: list[Ids]
    grids: list[tuple[int, ...]]
    facets: list[Facet]


def find_boxes(work: Relations) -> Boxes:
    classes: list[Ids] = []
    arrays: list[Ids] = []
    grids: list[tuple[int, ...]] = []
    facets: list[Facet] = []
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
        facets.append(facet)
    return Boxes(classes, arrays, grids, facets)


@dataclass(frozen=True)
class Blocks:
    """Which atoms can stand for each other without breaking a box.

    Atoms with the same number of places in every row of every box are a **block**: it does not matter for the box which of them
    goes. Blocks that share a box are **linked**: when one of them loses atoms, the others have to lose their share.

    block [atoms]: number of the block that an atom is in, -1 for atoms in no box. linked [atoms]: number of its set of linked
    blocks, -1 likewise.
    box_set [boxes]: the linked set of each box.
    row_of, row_block, row_count: a table, one entry per row and block in it: in row `row_of[k]` lie `row_count[k]` places of every
    atom of block `row_block[k]`. row_box [rows]: the box of each row.
    """

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


def find_blocks(boxes: Boxes, work: Relations) -> Blocks:
    """Atoms with the same multiplicity in every row of every box share a block. Indexed by atom."""
    count = int(work.atoms.max(initial=-1)) + 1
    atom_of = np.append(work.atoms, -1)
    pieces = []
    offset = 0
    row_box: list[int] = []
    for b, array in enumerate(boxes.classes):
        rows = np.broadcast_to(np.arange(array.shape[0])[:, None] + offset, array.shape)
        pieces.append((atom_of[array.ravel()], rows.ravel()))
        offset += array.shape[0]
        row_box += [b] * array.shape[0]
    empty = np.empty(0, np.int64)
    if not pieces:
        none = np.full(count, -1, np.int64)
        return Blocks(none, none, empty, empty, empty, empty, empty)
    table, multiplicity = distinct_rows(*(np.concatenate(x) for x in zip(*pieces, strict=True)))
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
    edges, _ = distinct_rows(block[table[:, 0]], boxes_of_row[table[:, 1]])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1] + n_blocks)), shape=(n_blocks + n_boxes,) * 2)
    label = connected_components(graph, directed=False)[1]
    linked = np.full(count, -1, np.int64)
    linked[inside] = label[block[inside]]
    rows, _ = distinct_rows(table[:, 1], block[table[:, 0]], multiplicity)
    return Blocks(block, linked, label[n_blocks:].astype(np.int64), rows[:, 0], rows[:, 1], rows[:, 2], boxes_of_row)


def per_step(blocks: Blocks, members: Ids, sizes: Ids) -> Ids | None:
    """How many classes of each block one step takes so that all rows of a box lose equally many; None if there is no way."""
    mine = np.isin(blocks.row_block, members)
    row, block, count = blocks.row_of[mine], blocks.row_block[mine], blocks.row_count[mine]
    index = np.searchsorted(members, block)
    divisor = gcd(*(int(s) for s in sizes))
    for taken in (np.ones(len(members), np.int64), sizes // divisor):
        if (sizes // taken).min() < 2:
            continue
        rows, inverse = np.unique(row, return_inverse=True)
        loss = np.bincount(inverse, weights=count * taken[index])
        box = blocks.row_box[rows]
        full = np.bincount(blocks.row_box)[np.unique(box)]
        first = np.flatnonzero(np.r_[True, box[1:] != box[:-1]])
        seen = np.diff([*first, len(box)])
        if (np.repeat(loss[first], seen) == loss).all() and (seen == full).all():
            return taken
    return None


def align_degenerate(work: Relations, boxes: Boxes, blocks: Blocks, final: bool, stuck: set[int]) -> bool:
    """Tie rows together where blocks leave no legal step; True if anything was tied."""
    again = False
    parents = np.zeros(len(blocks.block), bool)
    if work.child.size:
        parents[work.atoms[work.child[~work.is_column[work.parent]]]] = True
    for label in np.unique(blocks.linked[blocks.linked >= 0]):
        inside = np.flatnonzero(blocks.linked == label)
        members, sizes = np.unique(blocks.block[inside], return_counts=True)
        own = np.flatnonzero(blocks.box_set == label)
        taken = per_step(blocks, members, sizes)
        if taken is None:
            if final:
                stuck.update(np.flatnonzero(np.isin(work.atoms, inside)).tolist())
                continue
            array = boxes.units[own[0]]
            work.units.tie(array[:1], array)
            again = True
        elif not parents[inside].any() and not final:
            steps = int((sizes // taken).min())
            if all(steps < boxes.classes[b].shape[0] for b in own):
                for b in own:
                    work.units.tie(boxes.units[b][:, :1], boxes.units[b])
                again = True
    return again


def tie_slabs(work: Relations, boxes: Boxes) -> bool:
    """Rows on a grid of several axes ([3, heads] of a packed projection) go slab by slab: tie their parents."""
    if not work.parent.size:
        return False
    parents_of: dict[int, list[int]] = defaultdict(list)
    columns = np.zeros(int(work.classes.max()) + 1, bool)
    for offsets, _ in work.units.columns:
        columns[work.classes[offsets]] = True
    kids: dict[int, set[int]] = defaultdict(set)
    for p, c in zip(work.parent.tolist(), work.child.tolist(), strict=True):
        if not columns[p]:
            parents_of[c].append(p)
            kids[p].add(c)
    first = representatives(work.classes)
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
