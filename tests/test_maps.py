"""Index maps and units against something simpler: numpy on the full tensor, and loops."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.cut.rewrite import compress
from onnxprune.groups.analysis import NotABoxError
from onnxprune.groups.classes import distinct_rows
from onnxprune.groups.grouping import Solution, solve
from onnxprune.groups.maps import clusters, expand_axes, pad_rank, per_axis, reshape, runs, shrink, simplify, varying
from onnxprune.groups.units import Pin, UnitTable

COMMON = settings(deadline=None, derandomize=True, database=None, max_examples=200)


# ---------------------------------------------------------------- maps


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of the same size: products of the same factors, in order, parted differently."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6))

    def parted() -> tuple[int, ...]:
        shape = [1]
        for factor in factors:
            if draw(st.booleans()):
                shape.append(1)
            shape[-1] *= factor
        return tuple(shape)

    return parted(), parted()


@COMMON
@given(reshapes())
def test_runs_are_independent_and_complete(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    source, target = shapes
    found = runs(source, target)
    assert [a for left, _ in found for a in left] == list(range(len(source)))
    assert [a for _, right in found for a in right] == list(range(len(target)))
    for left, right in found:
        assert prod(source[a] for a in left) == prod(target[a] for a in right)


@COMMON
@given(reshapes(), st.data())
def test_reshape_is_numpys_reshape(shapes: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject) -> None:
    """The facet of the reshaped tensor, expanded, is the expanded facet, reshaped; it is no larger than it needs to be."""
    source, target = shapes
    axes = data.draw(st.sets(st.sampled_from(range(len(source)))))
    sides = [n if a in axes else 1 for a, n in enumerate(source)]
    facet = np.arange(prod(sides)).reshape(sides)
    found = reshape(facet, source, target)
    expected = np.broadcast_to(facet, source).reshape(target)
    assert found.ndim == len(target)
    assert np.array_equal(np.broadcast_to(found, target), expected)
    assert np.array_equal(shrink(found), found)


def test_reshape_keeps_what_is_apart_small() -> None:
    """A batch of a million does not expand the channels."""
    facet = np.arange(6).reshape(1, 6, 1)
    assert reshape(facet, (10**6, 6, 10**6), (10**6, 2, 3, 1000, 1000)).shape == (1, 2, 3, 1, 1)


def test_reshape_of_nothing() -> None:
    assert (reshape(np.arange(4).reshape(1, 4), (0, 4), (2, 0)) == -1).all()


@COMMON
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 2**16))
def test_shrink_says_the_same_in_less(shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sides = [n if rng.random() < 0.6 else 1 for n in shape]
    facet = np.broadcast_to(rng.integers(-1, 3, sides), shape)
    small = shrink(facet)
    assert np.array_equal(np.broadcast_to(small, shape), facet)
    for axis in varying(small):
        assert not all(np.array_equal(small.take(0, axis), small.take(k, axis)) for k in range(small.shape[axis]))


def covered(facets: tuple[np.ndarray, ...], shape: tuple[int, ...], unit: int) -> np.ndarray:
    """Positions that go with a unit."""
    result = np.zeros(shape, bool)
    for facet in facets:
        result |= np.broadcast_to(facet, shape) == unit
    return result


@COMMON
@given(st.integers(0, 2**16))
def test_simplify_changes_no_position(seed: int) -> None:
    """For every unit, the positions that leave with it stay the same."""
    rng = np.random.default_rng(seed)
    shape = (3, 4)
    facets = []
    for _ in range(rng.integers(1, 5)):
        sides = [n if rng.random() < 0.6 else 1 for n in shape]
        facets.append(rng.integers(-1, 5, sides))
    simple = simplify(facets)
    for unit in range(5):
        assert np.array_equal(covered(tuple(facets), shape, unit), covered(simple, shape, unit))
    assert all((f >= 0).any() for f in simple)


def test_simplify_joins_parts_and_drops_doubles() -> None:
    left, right = np.array([[0, 1, -1, -1]]), np.array([[-1, -1, 2, 3]])
    assert [f.tolist() for f in simplify([left, right])] == [[[0, 1, 2, 3]]]
    assert len(simplify([left, left])) == 1
    assert simplify([np.full((1, 3), -1)]) == ()
    assert len(simplify([np.array([[0, 1]]), np.array([[2, 3]])])) == 2


@COMMON
@given(st.integers(0, 2**16))
def test_clusters_share_no_axis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    facets = []
    for _ in range(rng.integers(1, 6)):
        sides = [2 if rng.random() < 0.4 else 1 for _ in range(5)]
        if prod(sides) > 1:
            facets.append(np.arange(prod(sides)).reshape(sides))
    found = clusters(facets)
    seen: set[int] = set()
    for axes, together in found:
        assert not seen & set(axes) and set(axes) == {a for f in together for a in varying(f)}
        seen |= set(axes)
    assert sorted(id(f) for _, t in found for f in t) == sorted(id(f) for f in facets)


def test_small_helpers() -> None:
    units = UnitTable()
    maps = per_axis((4, 1, 3), units.issue)
    assert [f.shape for f in maps] == [(4, 1, 1), (1, 1, 3)] and units.count == 7
    assert pad_rank(np.arange(3), 3).shape == (1, 1, 3)
    assert expand_axes(np.arange(3).reshape(1, 3), (2, 3), (0,)).shape == (2, 3)


# ---------------------------------------------------------------- units and groups


def solved(units: UnitTable, *facets: np.ndarray, **options: object) -> Solution:
    return solve(units, list(facets), [], np.empty(0, np.int64), **options)  # type: ignore[arg-type]


def sizes(solution: Solution) -> list[tuple[str, int, int]]:
    return [(g.kind, g.units, g.removable) for g in solution.groups]


def test_ties_make_classes() -> None:
    units = UnitTable()
    a, b = units.issue(4, "a"), units.issue(4, "b")
    units.tie(a, b[::-1])
    found = solved(units, a, b)
    assert np.array_equal(found.classes[a], found.classes[b][::-1]) and found.count == 4
    assert found.classes[-1] == -1
    assert sizes(found) == [("channels", 4, 3)]


def test_a_unit_tied_to_nothing_is_pinned() -> None:
    units = UnitTable()
    a = units.issue(4, "a")
    units.tie(a, np.array([0, 1, -1, -1]), Pin("n", "beyond the end"))
    found = solved(units, a)
    assert found.pinned[found.classes[a]].tolist() == [False, False, True, True]
    assert sizes(found) == [("channels", 4, 2)]
    assert [p.reason for p in found.groups[0].pins] == ["beyond the end"]


def test_positions_that_hang_together_as_a_whole_stay() -> None:
    units = UnitTable()
    a = units.issue(4, "a")
    units.tie(a[:1], a)
    found = solved(units, a)
    assert found.pinned.all() and all(g.removable == 0 for g in found.groups)


def test_rows_of_a_box_lose_equally_many() -> None:
    """[3, 4]: one block per row, a step takes one of each."""
    units = UnitTable()
    a = units.issue(12, "a").reshape(3, 4)
    found = solved(units, a)
    (group,) = found.groups
    assert (group.kind, group.units, group.removable, group.per_step) == ("blocks", 4, 3, (1, 1, 1))
    rows = [set(found.classes[r].tolist()) for r in a]
    assert all(set(b.ravel().tolist()) in rows for b in group.blocks)


def take(found: Solution, rng: np.random.Generator) -> np.ndarray:
    """Classes that random numbers of steps of all groups remove, in random order within each block."""
    gone = np.zeros(found.count, bool)
    for group in found.groups:
        steps = int(rng.integers(0, group.removable + 1))
        for block, free, t in zip(group.blocks, group.free, group.per_step, strict=True):
            atoms = rng.permutation(block[free])
            gone[atoms[: steps * t].ravel()] = True
    return found.closure(gone)


def test_two_boxes_with_other_rows() -> None:
    """Twelve units as 3 x 4 in one tensor and 6 x 2 in another: of the ways to stay a box in both, the one with more steps (whole fours)."""
    units = UnitTable()
    a = units.issue(12, "a").reshape(3, 4)
    found = solved(units, a, a.reshape(6, 2))
    (group,) = found.groups
    assert (group.units, group.removable) == (3, 2)


@COMMON
@given(st.integers(0, 2**16))
def test_every_step_leaves_every_box_a_box(seed: int) -> None:
    """Units seen as boxes of several shapes, transposed, permuted by a shuffle, or in part: whatever groups come out, all their steps are legal."""
    rng = np.random.default_rng(seed)
    units = UnitTable()
    n = int(rng.choice([4, 6, 8, 12, 16, 24]))
    a = units.issue(n, "a")
    facets = []
    for _ in range(int(rng.integers(1, 4))):
        order = a
        if rng.random() < 0.3:
            k = int(rng.choice([d for d in range(1, n + 1) if n % d == 0]))
            order = a.reshape(k, -1).T.ravel()
        if rng.random() < 0.2:
            order = order[: int(rng.choice([n // 2, n]))]
        rows = int(rng.choice([d for d in range(1, order.size + 1) if order.size % d == 0]))
        facet = order.reshape(rows, -1)
        facets.append(facet.T if rng.random() < 0.2 else facet)
        if rng.random() < 0.3:
            heads = units.issue(facet.shape[0])
            units.row(facet, heads[:, None])
    if rng.random() < 0.3:
        units.pin(rng.choice(a, 2), Pin("n", "kept"))
    found = solved(units, a, *facets)
    for _ in range(3):
        gone = take(found, rng)
        assert not (gone & found.pinned).any()
        left = found.of_units(gone)
        for facet in facets:
            if not left[facet].all():
                assert compress(facet, (facet,), left).size == (~left[facet]).sum()


def test_rows_go_with_their_children() -> None:
    units = UnitTable()
    a = units.issue(12, "a").reshape(3, 4)
    heads = units.issue(3)
    units.row(a, heads[:, None])
    found = solved(units, a, heads)
    assert sorted(sizes(found)) == [("blocks", 4, 3), ("rows", 3, 2)]
    gone = np.zeros(found.count, bool)
    gone[found.classes[heads[1]]] = True
    assert found.of_units(found.closure(gone))[a].tolist() == [[False] * 4, [True] * 4, [False] * 4]
    gone[:] = False
    gone[found.classes[a[2]]] = True
    assert found.of_units(found.closure(gone))[heads].tolist() == [False, False, True], "without children, no row"


def test_a_row_with_a_pinned_child_stays() -> None:
    units = UnitTable()
    a = units.issue(6, "a").reshape(2, 3)
    heads = units.issue(2)
    units.row(a, heads[:, None])
    units.pin(a[0, :1], Pin("n", "kept by hand"))
    found = solved(units, a, heads)
    assert found.pinned[found.classes[heads]].tolist() == [True, False]
    assert found.pinned[found.classes[a]].sum() == 1


def test_a_row_of_one_child_is_that_child() -> None:
    units = UnitTable()
    a = units.issue(4, "a").reshape(4, 1)
    rows = units.issue(4)
    units.row(a, rows[:, None])
    found = solved(units, a, rows)
    assert np.array_equal(found.classes[a.ravel()], found.classes[rows])


def test_columns_align_the_rows() -> None:
    """A scale per offset, shared by all rows: the same offset leaves every row."""
    units = UnitTable()
    a = units.issue(12, "a").reshape(3, 4)
    offsets = units.column(a, (0,))
    found = solved(units, a, offsets)
    (group,) = [g for g in found.groups if g.kind != "rows"]
    assert (group.units, group.removable) == (4, 3)
    gone = np.zeros(found.count, bool)
    for block, t in zip(group.blocks, group.per_step, strict=True):
        gone[block[:t].ravel()] = True
    mask = found.of_units(found.closure(gone))
    assert (mask[a] == mask[a][:1]).all() and mask[a].sum() == 3 and mask[offsets].sum() == 1


def test_approximate_units_need_permission() -> None:
    units = UnitTable()
    a = units.issue(4, "a")
    units.approximate(a[None], Pin("n", "takes a mean", "ask"))
    assert sizes(solved(units, a)) == [("channels", 4, 0)]
    found = solved(units, a, include_inexact=True)
    assert sizes(found) == [("channels", 4, 3)] and not found.groups[0].exact


def test_rows_of_approximate_units_are_exact() -> None:
    """Four groups of three, of which statistics are taken: whole groups leave."""
    units = UnitTable()
    a = units.issue(12, "a").reshape(4, 3)
    units.approximate(a, Pin("n", "takes a mean", "ask"))
    found = solved(units, a)
    assert sizes(found) == [("blocks", 3, 0), ("rows", 4, 3)] and found.groups[1].exact
    assert sizes(solved(units, a, include_inexact=True)) == [("blocks", 3, 2), ("rows", 4, 3)]


def test_included_units_only() -> None:
    units = UnitTable()
    a, b = units.issue(4, "a"), units.issue(4, "b")
    found = solved(units, a, b, included=a)
    assert sizes(found) == [("channels", 4, 3), ("channels", 4, 0)]


@pytest.mark.parametrize(("rows", "columns"), [(0, 2), (1, 1), (200, 2), (500, 3)])
def test_distinct_rows(rows: int, columns: int) -> None:
    table = np.random.default_rng(rows).integers(-1, 6, (rows, columns))
    found, counts = distinct_rows(*table.T)
    expected, times = np.unique(table, axis=0, return_counts=True)
    assert np.array_equal(found, expected) and np.array_equal(counts, times)


@COMMON
@given(st.integers(0, 2**16))
def test_classes_are_what_a_loop_would_find(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = UnitTable()
    n = int(rng.integers(1, 20))
    units.issue(n)
    pairs = rng.integers(0, n, (int(rng.integers(0, 15)), 2))
    for a, b in pairs:
        units.tie(np.array([a]), np.array([b]))
    expected = list(range(n))
    for _ in range(n):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    found = units.components()
    for i in range(n):
        for j in range(n):
            assert (found[i] == found[j]) == (expected[i] == expected[j])


# ---------------------------------------------------------------- cutting


def cut_by_loop(array: np.ndarray, facets: list[np.ndarray], gone: np.ndarray) -> np.ndarray:
    """Keep what no facet removes, one line after the other, and put the lines back together."""
    keep = np.ones(array.shape, bool)
    for facet in facets:
        keep &= ~np.broadcast_to(gone[facet], array.shape)
    for axis in range(array.ndim):
        alive = [k for k in range(array.shape[axis]) if keep.take(k, axis).any()]
        array, keep = array.take(alive, axis), keep.take(alive, axis)
    if keep.all():
        return array
    for axis in reversed(range(array.ndim)):
        counts = keep.sum(axis=axis)
        if (counts == counts.flat[0]).all():
            moved, kept = np.moveaxis(array, axis, -1), np.moveaxis(keep, axis, -1)
            lines = [
                line[mask]
                for line, mask in zip(
                    moved.reshape(-1, moved.shape[-1]), kept.reshape(-1, moved.shape[-1]), strict=True
                )
            ]
            return np.moveaxis(np.array(lines).reshape(*moved.shape[:-1], -1), -1, axis)
    raise AssertionError("no box")


@COMMON
@given(st.integers(0, 2**16))
def test_compress_of_single_axes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 6, int(rng.integers(1, 4))))
    units = UnitTable()
    facets = list(per_axis(shape, units.issue))
    gone = np.append(rng.random(units.count) < 0.4, False)
    for f in facets:  # never all
        gone[f.ravel()[0]] = False
    array = rng.standard_normal(shape)
    found = compress(array, tuple(facets), gone)
    assert np.array_equal(found, cut_by_loop(array, facets, gone))


@COMMON
@given(st.integers(0, 2**16))
def test_compress_of_ragged_rows(seed: int) -> None:
    """Every row loses the same number at other offsets; some rows go as a whole; another axis is cut as well."""
    rng = np.random.default_rng(seed)
    heads, d, width = (int(n) for n in rng.integers(2, 6, 3))
    loss = int(rng.integers(0, d))
    gone = np.zeros(heads * d + width + 1, bool)
    for h in range(heads):
        gone[h * d + rng.permutation(d)[:loss]] = True
    for h in rng.permutation(heads)[: int(rng.integers(0, heads))]:
        gone[h * d : (h + 1) * d] = True
    gone[heads * d + rng.permutation(width)[: int(rng.integers(0, width))]] = True
    units = np.arange(heads * d).reshape(heads, d, 1)
    columns = np.arange(heads * d, heads * d + width).reshape(1, 1, width)
    array = rng.standard_normal((heads, d, width))
    expected = cut_by_loop(array[..., ~gone[columns.ravel()]], [units], gone)
    found = compress(array, (units, columns), gone)
    assert np.array_equal(found, expected)


def test_compress_of_two_ragged_axes() -> None:
    """A recurrence's R [directions, gates*h, h]: both axes lose other offsets in every direction."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal((2, 6, 3))
    hidden = np.arange(6).reshape(2, 1, 3)
    gates = np.tile(np.arange(6).reshape(2, 1, 3), (1, 2, 1)).reshape(2, 6, 1)
    gone = np.zeros(7, bool)
    gone[[0, 4]] = True  # offset 0 of direction 0, offset 1 of direction 1
    found = compress(array, (gates, hidden), gone)
    expected = np.stack([array[0][[1, 2, 4, 5]][:, [1, 2]], array[1][[0, 2, 3, 5]][:, [0, 2]]])
    assert np.array_equal(found, expected)


def test_what_is_no_box_is_refused() -> None:
    gone = np.array([False, False, True, False, True, True, False, False, False, False])
    with pytest.raises(NotABoxError):
        compress(np.zeros((3, 3)), (np.arange(9).reshape(3, 3),), gone)
