"""Index maps: which unit does each position of a tensor belong to?

A **facet** is an integer array that broadcasts to its tensor's concrete shape: entry `p` is the unit that
position `p` belongs to, or -1 for none. It has size 1 along every axis that the unit does not depend on. A tensor carries
a tuple of facets (`Maps`); a position is removed when any of its facets' units is removed. A convolution's output
`[2, 64, 8, 8]` carries one facet `[1, 64, 1, 1]`; a weight `[O, I]` carries two, `[O, 1]` and `[1, I]`.

Every data movement acts on a facet as numpy's own operation would act on the tensor:

    >>> import numpy as np
    >>> facet = np.arange(6).reshape(1, 6)                  # tensor [N, 6], six units
    >>> reshape(facet, (2, 6), (2, 3, 2)).shape             # tensor [N, 3, 2]: three rows of two
    (1, 3, 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Facet = NDArray[np.int64]
Maps = tuple[Facet, ...]
Shape = tuple[int, ...]


def squeezed(facet: Facet) -> Facet:
    """Without its axes of size 1."""
    return facet.reshape([n for n in facet.shape if n > 1])


def varying(facet: NDArray[Any]) -> tuple[int, ...]:
    """The axes along which `facet` tells positions apart."""
    return tuple(axis for axis, size in enumerate(facet.shape) if size > 1)


def shrink(facet: Facet) -> Facet:
    """Drop to size 1 every axis along which all entries are equal."""
    for axis in varying(facet):
        first = facet.take([0], axis=axis)
        if np.array_equal(np.broadcast_to(first, facet.shape), facet):
            facet = first
    return facet


def simplify(facets: Sequence[Facet]) -> Maps:
    """Shrunk facets without the empty ones; facets over the same axes with disjoint support become one.

    A facet of size 1 stays: it says that one unit is all that its tensor has.
    """
    result: list[Facet] = []
    for facet in facets:
        facet = shrink(facet)
        if (facet < 0).all():
            continue
        for i, other in enumerate(result):
            if other.shape != facet.shape:
                continue
            if np.array_equal(other, facet):
                break
            if not ((other >= 0) & (facet >= 0)).any():
                result[i] = np.where(other >= 0, other, facet)
                break
        else:
            result.append(facet)
    return tuple(result)


def runs(source: Shape, target: Shape) -> list[tuple[range, range]]:
    """Split a reshape into the smallest independent runs of axes.

    `runs((2, 6, 5), (2, 3, 2, 5))` pairs axis 0 with 0, axis 1 with 1-2 and axis 2 with 3.
    """
    pairs: list[tuple[range, range]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        i0, j0 = i, j
        left = right = 1
        if i < len(source):
            left, i = source[i], i + 1
        if j < len(target):
            right, j = target[j], j + 1
        while left != right:
            if left < right and i < len(source):
                left, i = left * source[i], i + 1
            elif j < len(target):
                right, j = right * target[j], j + 1
            else:
                left, i = left * source[i], i + 1
        pairs.append((range(i0, i), range(j0, j)))
    return pairs


def reshape(facet: Facet, source: Shape, target: Shape) -> Facet:
    """The facet of `tensor.reshape(target)`; only the runs that mix varying axes are expanded."""
    if 0 in source or 0 in target:
        return np.full((1,) * len(target), -1)
    expanded: list[int] = []
    shape: list[int] = []
    for axes_in, axes_out in runs(source, target):
        mixes = any(facet.shape[a] > 1 for a in axes_in)
        expanded += [source[a] if mixes else 1 for a in axes_in]
        shape += [target[a] if mixes else 1 for a in axes_out]
    return shrink(np.broadcast_to(facet, expanded).reshape(shape))


def period(facet: Facet, axis: int) -> int:
    """The shortest length after which `facet` repeats itself along `axis`."""
    size = int(facet.shape[axis])
    lines = np.moveaxis(facet, axis, 0)
    for length in range(1, size):
        if size % length == 0:
            parts = lines.reshape(size // length, length, -1)
            if (parts == parts[:1]).all():
                return length
    return size


def repeated(facet: Facet, shape: Shape) -> Facet:
    """`facet` of a tensor that has `shape` now: what lies along an axis once per sample, as often as there are samples."""
    for axis in varying(facet):
        if facet.shape[axis] != shape[axis]:
            one = facet.take(range(period(facet, axis)), axis=axis)
            facet = np.concatenate([one] * (shape[axis] // one.shape[axis]), axis=axis)
    return facet


def expand_axes(facet: Facet, shape: Shape, axes: Sequence[int]) -> Facet:
    """`facet` at its tensor's full size along `axes`."""
    full = list(facet.shape)
    for axis in axes:
        full[axis] = shape[axis]
    return np.broadcast_to(facet, full)


def pad_rank(facet: Facet, rank: int) -> Facet:
    """Prepend axes of size 1, as broadcasting does."""
    return facet.reshape((1,) * (rank - facet.ndim) + facet.shape)


def per_axis(shape: Shape, issue: object) -> Maps:
    """One facet of fresh units per axis of more than one position; `issue(n)` returns `n` new unit ids."""
    facets = []
    for axis, size in enumerate(shape):
        if size > 1:
            side = [1] * len(shape)
            side[axis] = size
            facets.append(issue(size).reshape(side))  # type: ignore[operator]
    return tuple(facets)


def clusters(facets: Sequence[Facet]) -> list[tuple[tuple[int, ...], list[Facet]]]:
    """Facets that share a varying axis, together: `(axes, facets)`; clusters are independent of each other."""
    found: list[tuple[set[int], list[Facet]]] = []
    for facet in facets:
        axes = set(varying(facet))
        together = [facet]
        rest = []
        for other_axes, others in found:
            if other_axes & axes:
                axes |= other_axes
                together = others + together
            else:
                rest.append((other_axes, others))
        found = [*rest, (axes, together)]
    return [(tuple(sorted(axes)), together) for axes, together in found]
