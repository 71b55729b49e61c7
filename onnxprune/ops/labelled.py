"""One engine for everything that multiplies, adds or sums: tensors with named axes.

`combine` takes two operands whose axes carry labels and says how their units hang together, in the manner of an einsum
(`Y[b,h,m,n] = sum_k A[b,h,m,k] B[b,h,k,n]`); a pointwise operator is the case in which no label is summed.
With *shared* labels (present in both, size > 1):

- facets over the same shared labels are tied position by position (`k`; or `h,k` where heads differ);
- a facet over shared and other labels has **rows**: if `h` is shared and `m` is not, the units `(h, m)` are rows `h` of
  `m`, and row `h` can go only together with row `h` of the other operand: one parent unit per row binds them;
- if the shared label is the inner one (`(h, d)` against a scale over `d`), all rows lose the same offsets: the rows are aligned;
- a constant operand gets the facets it needs; a weight issues fresh units over its remaining labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.groups.maps import Facet, Maps, Shape, reshape, varying
from onnxprune.groups.units import Ids
from onnxprune.ops.base import MapContext

Label = str


@dataclass(frozen=True)
class Named:
    """A facet whose axes are labels, in the order of its operand's axes; every axis has size > 1."""

    labels: tuple[Label, ...]
    ids: Ids

    def over(self, labels: tuple[Label, ...]) -> Ids:
        """The ids with axes in the order of `labels`, size 1 for those it lacks."""
        order = [self.labels.index(x) for x in labels if x in self.labels]
        ids = self.ids.transpose(order)
        sides = iter(ids.shape)
        return ids.reshape([next(sides) if x in self.labels else 1 for x in labels])


@dataclass(frozen=True)
class Operand:
    """An operand: its labels and sizes, and its facets, or `constant`: the input whose facets are to be chosen.

    `native` is the constant's own shape when `sizes` is a reshaped view of it (a grouped kernel seen as `g, o, i`).
    """

    labels: tuple[Label, ...]
    sizes: Shape
    facets: tuple[Named, ...] = ()
    constant: int | None = None
    native: Shape | None = None

    def size(self, label: Label) -> int:
        return self.sizes[self.labels.index(label)] if label in self.labels else 1


def operand(ctx: MapContext, i: int, labels: tuple[Label, ...], view: Shape | None = None) -> Operand:
    """Input `i` with named axes, seen through a reshape to `view` if given."""
    shape = ctx.shape(i)
    sizes = shape if view is None else view
    if ctx.is_lazy(i):
        return Operand(labels, sizes, constant=i, native=shape)
    maps = ctx.maps(i)
    if view is not None:
        maps = tuple(reshape(f, shape, view) for f in maps)
        ctx.units.boxes += [f for f in maps if len(varying(f)) > 1]
    return Operand(labels, sizes, named(maps, labels))


def named(maps: Maps, labels: tuple[Label, ...]) -> tuple[Named, ...]:
    """Facets of a tensor whose axis `a` is called `labels[a]`."""
    result = []
    for facet in maps:
        axes = varying(facet)
        if axes:
            result.append(Named(tuple(labels[a] for a in axes), facet.reshape([facet.shape[a] for a in axes])))
    return tuple(result)


def unnamed(facets: tuple[Named, ...], labels: tuple[Label, ...]) -> Maps:
    """Back to facets with one axis per label of the tensor."""
    return tuple(f.over(labels) for f in facets)


def combine(
    ctx: MapContext,
    a: Operand,
    b: Operand,
    out: tuple[Label, ...],
    weight: bool = False,
    what: str = "the other operand",
) -> tuple[Named, ...]:
    """Tie the units of two operands and return the facets of the result, whose labels are `out`.

    `weight`: a constant operand issues its remaining output labels as one joint facet of prunable units.
    """
    if a.constant is not None and b.constant is not None:
        a = _issue_axes(ctx, a)
    if a.constant is not None:
        a, b = b, a
    shared = {x for x in a.labels if x in b.labels and a.size(x) > 1 and b.size(x) > 1}
    columns = [_columns(ctx, f, shared) for f in (*a.facets, *b.facets)]
    derived = [c for c in columns if c is not None]
    left = [*a.facets, *(c for c in columns[: len(a.facets)] if c is not None)]
    if b.constant is not None:
        right = _choose(ctx, left, a, b, shared, out, weight)
    else:
        right = [*b.facets, *(c for c in columns[len(a.facets) :] if c is not None)]
    matched = _match(ctx, left, right, shared, what)
    parents = _rows(ctx, left, right, shared, out, matched, what)
    result = _project(ctx, matched, parents, out)
    return tuple(
        f for f in result if not (any(f is c for c in derived) and any(set(f.labels) < set(g.labels) for g in result))
    )


def reduce_labels(ctx: MapContext, a: Operand, out: tuple[Label, ...]) -> tuple[Named, ...]:
    """Facets after summing over the labels that are not in `out`."""
    return _project(ctx, list(a.facets), {}, out)


def _issue_axes(ctx: MapContext, a: Operand) -> Operand:
    assert a.constant is not None
    shape = a.native or a.sizes
    maps = ctx.maps(a.constant)
    if shape != a.sizes:
        maps = tuple(reshape(f, shape, a.sizes) for f in maps)
    return Operand(a.labels, a.sizes, named(maps, a.labels))


def _is_prefix(part: set[Label], labels: tuple[Label, ...]) -> bool:
    return set(labels[: len(part)]) == part


def _columns(ctx: MapContext, f: Named, shared: set[Label]) -> Named | None:
    """Where the shared labels are not the outer ones, all rows lose the same offsets: the parents of those offsets."""
    part = set(f.labels) & shared
    if not part or part == set(f.labels) or _is_prefix(part, f.labels):
        return None
    return _squeeze(ctx, f, tuple(x for x in f.labels if x not in shared))


def _squeeze(ctx: MapContext, f: Named, away: tuple[Label, ...]) -> Named:
    ids = ctx.units.column(f.ids, tuple(f.labels.index(x) for x in away))
    kept = tuple(x for x in f.labels if x not in away)
    return Named(kept, ids.reshape([s for s, x in zip(f.ids.shape, f.labels, strict=True) if x in kept]))


def _choose(
    ctx: MapContext, left: list[Named], a: Operand, b: Operand, shared: set[Label], out: tuple[Label, ...], weight: bool
) -> list[Named]:
    """The facets a constant operand needs, and with `weight` the fresh units it offers."""
    right: list[Named] = []
    for f in left:
        part = tuple(x for x in f.labels if x in shared)
        if not part or not _is_prefix(set(part), f.labels):
            continue
        if part == f.labels:
            right.append(f)
        elif not any(set(g.labels) == set(part) for g in [*left, *right]):
            rows = ctx.units.issue(int(np.prod(f.ids.shape[: len(part)]))).reshape(f.ids.shape[: len(part)])
            right.append(Named(part, rows))
        elif not any(set(g.labels) == set(part) for g in right):
            right.append(next(g for g in left if set(g.labels) == set(part)))
    assert b.constant is not None
    own = [x for x in b.labels if x not in shared and b.size(x) > 1 and ctx.offers(b.constant)]
    offered = [tuple(x for x in b.labels if (x in own or x in shared) and x in out)] if weight else [(x,) for x in own]
    for labels in offered:
        if labels and any(x in own for x in labels):
            sides = [b.size(x) for x in labels]
            right.append(Named(labels, ctx.units.issue(int(np.prod(sides)), str(ctx.node)).reshape(sides)))
    facets: list[Facet] = list(unnamed(tuple(right), b.labels))
    if b.native is not None and b.native != b.sizes:
        facets = [reshape(f, b.sizes, b.native) for f in facets]
    ctx.give(b.constant, facets)
    return right


def _match(ctx: MapContext, left: list[Named], right: list[Named], shared: set[Label], what: str) -> list[Named]:
    """Tie facets over shared labels only; return all facets, each tied pair once, without those that had to be pinned."""
    pure_left = [f for f in left if set(f.labels) <= shared]
    pure_right = [f for f in right if set(f.labels) <= shared]
    result = [f for f in [*left, *right] if not set(f.labels) <= shared]
    paired: list[Named] = []
    rest_left, rest_right = [], list(pure_right)
    for f in pure_left:
        partner = next((g for g in rest_right if set(g.labels) == set(f.labels)), None)
        if partner is None:
            rest_left.append(f)
            continue
        rest_right = [g for g in rest_right if g is not partner]
        ctx.units.tie(f.ids, partner.over(f.labels), ctx.unmatched(f"ties it to a position of {what} that has to stay"))
        paired.append(f)
    settled: list[Named] = []
    for rest, others in ((rest_left, rest_right), (rest_right, rest_left)):
        for f in rest:
            apart = _apart(f, others)
            if apart is not None:
                _bind_apart(ctx, f, apart, what)
                paired.append(f)
                settled += apart
    for rest, others in ((rest_left, right), (rest_right, left)):
        for f in rest:
            if any(f is g for g in (*paired, *settled)):
                continue
            finer = [g for g in paired if set(f.labels) < set(g.labels) and _is_prefix(set(f.labels), g.labels)]
            rows = [
                g
                for g in others
                if set(f.labels) < set(g.labels) and not set(g.labels) <= shared and _is_prefix(set(f.labels), g.labels)
            ]
            coarser = [g for g in others if set(g.labels) < set(f.labels) and set(g.labels) <= shared]
            if finer or rows:
                for g in [*finer, *rows]:
                    ctx.units.row(g.ids, f.over(g.labels))
                paired.append(f)
            elif coarser:
                for g in list(coarser):
                    offsets = _offsets(ctx, f, g, others, shared)
                    pin = ctx.unmatched(f"ties it to whole {'offsets' if offsets else 'rows'} of {what}")
                    ctx.units.tie((offsets or f).ids, g.over((offsets or f).labels), pin)
                    coarser = [*coarser, f] if offsets else coarser
                paired += [g for g in coarser if not any(g is p for p in paired)]
            elif same := [g for g in paired if set(g.labels) == set(f.labels)]:
                ctx.units.tie(
                    f.ids, same[0].over(f.labels), ctx.unmatched(f"ties it to a position of {what} that stays")
                )
            else:
                ctx.units.pin(
                    f.ids.ravel(), ctx.unmatched(f"combines it with {what}, which has no removable index there")
                )
    return result + paired  # what has been pinned is like no unit at all


def _apart(f: Named, others: list[Named]) -> tuple[Named, Named] | None:
    """Facets of the other operand over the rows of `f`, and over the positions in a row."""
    for rows in others:
        n = len(rows.labels)
        offsets = next((g for g in others if set(g.labels) == set(f.labels[n:])), None)
        if set(rows.labels) == set(f.labels[:n]) and offsets is not None:
            return rows, offsets
    return None


def _bind_apart(ctx: MapContext, f: Named, apart: tuple[Named, Named], what: str) -> None:
    """`(h, d)` meets `h` and `d`: a row goes with all of its positions, and a position goes in all rows."""
    rows, offsets = apart
    ctx.units.row(f.ids, rows.over(f.labels))
    column = _squeeze(ctx, f, tuple(x for x in f.labels if x in rows.labels))
    pin = ctx.unmatched(f"ties it to a position of {what} that has to stay")
    ctx.units.tie(column.ids, offsets.over(column.labels), pin)


def _offsets(ctx: MapContext, f: Named, g: Named, others: list[Named], shared: set[Label]) -> Named | None:
    """The offsets of `f`'s rows, where `g` lies over them and another facet of its operand over the same rows and more.

    A grouped kernel that is computed has inputs `(i)` and outputs `(g, o)`: inputs `(g, i)` lose the same offsets in all groups, or
    whole groups with their outputs.
    """
    row = set(f.labels) - set(g.labels)
    if not _is_prefix(row, f.labels) or not any(
        set(x.labels) & shared == row and x.labels[-1] not in row for x in others
    ):
        return None
    return _squeeze(ctx, f, tuple(x for x in f.labels if x in row))


def _rows(
    ctx: MapContext,
    left: list[Named],
    right: list[Named],
    shared: set[Label],
    out: tuple[Label, ...],
    facets: list[Named],
    what: str,
) -> dict[frozenset[Label], Named]:
    """Bind the rows of facets over shared labels that survive: one parent per row."""
    parents: dict[frozenset[Label], Named] = {}
    for f in facets:
        row = tuple(x for x in f.labels if x in shared and x in out)
        if not row or row == f.labels or not _is_prefix(set(row), f.labels):
            continue
        key = frozenset(row)
        if key not in parents:
            present = next((g for g in facets if set(g.labels) == set(row)), None)
            sides = f.ids.shape[: len(row)]
            ids = ctx.units.issue(int(np.prod(sides))).reshape(sides) if present is None else present.over(row)
            parents[key] = Named(row, ids)
            for side in (left, right):
                if not any({x for x in g.labels if x in shared and x in out} == set(row) for g in side):
                    ctx.units.pin(ids.ravel(), ctx.unmatched(f"has no removable index for these rows in {what}"))
        ctx.units.row(f.ids, parents[key].over(f.labels))
    return parents


def _project(
    ctx: MapContext, facets: list[Named], parents: dict[frozenset[Label], Named], out: tuple[Label, ...]
) -> tuple[Named, ...]:
    """Drop the summed labels: rows of what was summed live on as their parents."""
    result: list[Named] = []
    coarse: list[Named] = []
    for f in facets:
        rest = tuple(x for x in f.labels if x in out)
        if rest == f.labels:
            result.append(f)
        elif not rest:
            continue
        elif _is_prefix(set(rest), f.labels):
            parent = parents.get(frozenset(rest))
            if parent is None:
                sides = f.ids.shape[: len(rest)]
                parent = Named(rest, ctx.units.issue(int(np.prod(sides))).reshape(sides))
                ctx.units.row(f.ids, parent.over(f.labels))
            coarse.append(parent)
        else:
            result.append(_squeeze(ctx, f, tuple(x for x in f.labels if x not in rest)))
    for f in coarse:
        if not any(_is_prefix(set(f.labels), g.labels) for g in result):
            result.append(f)
    return _without_covered(result, parents)


def _without_covered(facets: list[Named], parents: dict[frozenset[Label], Named]) -> tuple[Named, ...]:
    """Leave out the rows' own facets where a finer facet over the same labels says it already."""
    kept = []
    for f in facets:
        is_row = frozenset(f.labels) in parents
        if is_row and any(set(f.labels) < set(g.labels) and _is_prefix(set(f.labels), g.labels) for g in facets):
            continue
        kept.append(f)
    return tuple(kept)


def bind(
    ctx: MapContext,
    i: int,
    labels: tuple[Label, ...],
    facets: tuple[Named, ...],
    view: Shape | None = None,
    flat: tuple[Label, ...] = (),
) -> None:
    """Input `i`, whose axes are `labels` (of a reshape to `view`, if given), carries exactly `facets`.

    For operators that compute something of their own between inputs (gates, heads): the rule issues the units, a constant
    takes them as they are, and a computed input is tied to them. `flat`: labels of batch and time.
    """
    if not ctx.has(i):
        return
    shape = ctx.shape(i)
    own = tuple(f for f in facets if set(f.labels) <= set(labels))
    if ctx.is_lazy(i):
        given = unnamed(own, labels)
        ctx.give(i, [reshape(f, view, shape) for f in given] if view else given)
        return
    other = _only_offsets(ctx, flatten(ctx, operand(ctx, i, labels, view), flat), own)
    combine(ctx, Operand(labels, other.sizes, own), other, labels, what=f"input {i} ('{ctx.node.inputs[i]}')")


def flatten(ctx: MapContext, a: Operand, flat: tuple[Label, ...]) -> Operand:
    """The operand without units along `flat` (batch, time), where the operator treats all positions alike.

    A facet along other labels too has them aligned; one along `flat` alone is pinned.
    """
    facets: list[Named] = []
    for f in a.facets:
        away = tuple(x for x in f.labels if x in flat)
        if away and away == f.labels:
            ctx.pin([f.ids], "keeps its batch and sequence axes")
            continue
        if away:
            kept = tuple(x for x in f.labels if x not in flat)
            ids = ctx.units.align(f.ids, tuple(f.labels.index(x) for x in away))
            f = Named(kept, ids.reshape([n for n, x in zip(f.ids.shape, f.labels, strict=True) if x in kept]))
        facets.append(f)
    return Operand(a.labels, a.sizes, tuple(facets), a.constant, a.native)


def _only_offsets(ctx: MapContext, other: Operand, own: tuple[Named, ...]) -> Operand:
    """Where rows and offsets come apart in `other` (a tensor of zeros) but are one index in `own`, the rows stay."""
    facets = list(other.facets)
    for f in own:
        coarser = [g for g in facets if set(g.labels) < set(f.labels)]
        rows = [g for g in coarser if f.labels[-1] not in g.labels]
        if len(rows) < len(coarser):
            ctx.pin([g.ids for g in rows], "keeps its rows here")
            facets = [g for g in facets if not any(g is r for r in rows)]
    return Operand(other.labels, other.sizes, tuple(facets))
