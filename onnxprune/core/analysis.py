"""What the analysis of a model found, as a value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.core.graph import View
from onnxprune.core.grouping import Bools, Group, Solution
from onnxprune.core.maps import Facet, Maps, Shape, clusters, expand_axes, varying
from onnxprune.core.model import LoadedModel
from onnxprune.core.observation import Feeds, Observation

Use = tuple[str, int]


@dataclass(frozen=True)
class Analysis:
    """maps: facets of every activation, by tensor key; uses: `(node key, input) -> (constant's key, facets)`.

    skipped: nodes that compute shapes, which carry no units.
    """

    model: LoadedModel
    view: View
    observation: Observation
    feeds: tuple[Feeds, Feeds]
    solution: Solution
    maps: dict[str, Maps]
    uses: dict[Use, tuple[str, Maps]]
    skipped: frozenset[str]
    readers: dict[str, set[Use]]
    sources: dict[str, str]
    unknown: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.solution.groups

    def view_uses(self, constant: str) -> set[Use]:
        """Every (node, input) that reads a constant, also through aliases of it; graph outputs count as well."""
        return self.readers.get(constant, set())

    def kept_shape(self, maps: Maps, shape: Shape, gone: Bools) -> Shape:
        """Shape of a tensor after the units marked in `gone` (per unit, last entry False) have left."""
        result = list(shape)
        for axes, facets in clusters(maps):
            mask = kept_mask(facets, axes, shape, gone)
            for axis, size in zip(axes, box(mask), strict=True):
                result[axis] = size
        return tuple(result)


class Shapes:
    """Shapes before and after, by tensor key or use."""

    def __init__(self, analysis: Analysis, gone: Bools) -> None:
        self.analysis = analysis
        self.gone = gone
        self._cache: dict[tuple[int, ...], tuple[Maps, Shape, Shape]] = {}

    def old(self, key: str) -> Shape:
        found = self.analysis.observation.shapes.get(key)
        return tuple(self.analysis.view.constants[key].shape) if found is None else found

    def of_maps(self, maps: Maps, old: Shape) -> Shape:
        if not maps:
            return old
        mark = (*(id(m) for m in maps), *old)
        if mark not in self._cache:
            self._cache[mark] = (maps, old, self.analysis.kept_shape(maps, old, self.gone))
        return self._cache[mark][2]

    def new(self, key: str) -> Shape:
        return self.of_maps(self.analysis.maps.get(key, ()), self.old(key))


def kept_mask(facets: list[Facet], axes: tuple[int, ...], shape: Shape, gone: Bools) -> Bools:
    """Which positions stay, over `axes` only."""
    mask = np.ones([shape[a] for a in axes], bool)
    for facet in facets:
        removed = gone[facet]
        mask &= ~removed.reshape([removed.shape[a] for a in axes])
    return mask


class NotABoxError(Exception):
    """A removal that leaves rows of different lengths: a bug of the analysis, never the user's fault."""


def box(mask: Bools) -> tuple[int, ...]:
    """Sizes of the box that the kept positions fill: whole slabs gone along any axis, then equal counts along one."""
    mask = drop_slabs(mask)
    if mask.all():
        return mask.shape
    line = line_axis(mask)
    counts = mask.sum(axis=line)
    return tuple(int(counts.flat[0]) if a == line else n for a, n in enumerate(mask.shape))


def drop_slabs(mask: Bools) -> Bools:
    for axis in range(mask.ndim):
        alive = mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))
        if not alive.all():
            mask = mask.compress(alive, axis=axis)
    return mask


def line_axis(mask: Bools) -> int:
    """The axis along which all rows keep equally many; the last one that does."""
    for axis in reversed(range(mask.ndim)):
        counts = mask.sum(axis=axis)
        if (counts == counts.flat[0]).all():
            return axis
    raise NotABoxError(f"kept positions of shape {mask.shape} do not form a box")


__all__ = ["Analysis", "NotABoxError", "Shapes", "Use", "box", "drop_slabs", "expand_axes", "kept_mask", "line_axis", "varying"]
