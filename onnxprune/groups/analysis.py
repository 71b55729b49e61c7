"""What the analysis of a model found, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.groups.classes import Bools
from onnxprune.groups.grouping import Group, Solution
from onnxprune.groups.maps import Facet, Maps, Shape, clusters, repeated, varying
from onnxprune.groups.observation import Array, Feeds, Observation
from onnxprune.groups.units import Ids
from onnxprune.model.graph import View, view
from onnxprune.model.importer import import_graph
from onnxprune.model.loaded import LoadedModel

Use = tuple[str, int]
"""The key of a node, and at which of its inputs."""


@dataclass(frozen=True)
class Analysis:
    """All that is known of a model before anything is decided: its tensors' index maps, its classes of units and groups.

    model: what was analysed. view: its graph, with a key for every tensor and node (`model/graph.py`).
    observation: shapes and values of tensors in two runs; feeds: the inputs of those runs.
    solution: classes and groups.
    maps: by tensor key, the index map of every activation, in facets: arrays of unit ids that broadcast to the tensor's shape.
    uses: by (node key, input), the constant that is read there and the index map with which it is read. One constant may be read
        with several, and is then sliced for each.
    skipped: keys of nodes that only compute shapes and carry no units.
    readers: by constant, every (node key, input) that reads it. sources: by tensor, the constant that it is a copy of.
    unknown: nodes whose operator has no rule. crashed: a sentence per node whose rule failed. Both keep what they touch.
    layouts: what `layout` remembers.
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
    crashed: tuple[str, ...] = ()
    layouts: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which imports the graph anew: its tensors refer to each other weakly."""
        return self.__dict__ | {"view": self.view.opsets, "layouts": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"view": view(import_graph(state["model"]), state["view"])})

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.solution.groups

    def view_uses(self, constant: str) -> set[Use]:
        """Every (node, input) that reads a constant, also through aliases of it; graph outputs count as well."""
        return self.readers.get(constant, set())

    def maps_at(self, tensor: str, shape: Shape) -> Maps:
        """The index map of an activation in a run in which it has `shape`."""
        return tuple(repeated(f, shape) for f in self.maps.get(tensor, ()))

    def along(self, tensor: str, axis: int) -> list[Ids]:
        """Units along one axis of an activation, per facet that varies along no other: `[size]` each."""
        return [f.ravel() for f in self.maps.get(tensor, ()) if f.size == f.shape[axis]]

    def layout(self, maps: Maps) -> tuple[list[tuple[int, Ids]], list[tuple[tuple[int, ...], list[Facet]]]]:
        """Facets that alone decide about one axis, as flat ids, and the clusters of the others. Remembered."""
        found = self.layouts.get(id(maps))
        if found is None or found[0] is not maps:
            single, joint = [], []
            for axes, facets in clusters(maps):
                if len(axes) == 1 and len(facets) == 1:
                    single.append((axes[0], facets[0].ravel()))
                else:
                    joint.append((axes, facets))
            found = (maps, single, joint)
            self.layouts[id(maps)] = found
        return found[1], found[2]

    def kept_shape(self, maps: Maps, shape: Shape, gone: Bools) -> Shape:
        """Shape of a tensor after the units marked in `gone` (per unit, last entry False) have left."""
        result = list(shape)
        single, joint = self.layout(maps)
        for axis, ids in single:
            result[axis] = shape[axis] - int(np.count_nonzero(gone[ids]))
        for axes, facets in joint:
            cut = settle(facets, axes, shape, gone)
            for axis, alive in cut.alive.items():
                result[axis] = int(np.count_nonzero(alive))
            for line, mask in cut.lines:
                result[line[-1]] = int(mask.sum(axis=-1).flat[0])
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


@dataclass(frozen=True)
class Cut:
    """How a cluster of facets shrinks a tensor: slabs that stay, per axis; then lines that keep equally many positions.

    lines: `(axes, mask)` with the line as the last of the axes and the mask over the slabs that stay.
    """

    alive: dict[int, Bools]
    lines: list[tuple[tuple[int, ...], Bools]]


def settle(facets: list[Facet], axes: tuple[int, ...], shape: Shape, gone: Bools) -> Cut:
    """Facets over the same axes act together; those that share some axes share the slabs along them.

    Raises `NotABoxError` where the kept positions are no box.
    """
    together: dict[tuple[int, ...], list[Facet]] = {}
    for facet in facets:
        together.setdefault(varying(facet), []).append(facet)
    masks = {own: kept_mask(f, own, shape, gone) for own, f in together.items()}
    alive = {a: np.ones(shape[a], bool) for a in axes}
    changed = True
    while changed:
        changed = False
        for own, mask in masks.items():
            inside = mask[np.ix_(*(alive[a] for a in own))]
            for k, a in enumerate(own):
                some = inside.any(axis=tuple(x for x in range(len(own)) if x != k))
                if not some.all():
                    alive[a] = alive[a].copy()
                    alive[a][np.flatnonzero(alive[a])[~some]] = False
                    changed = True
                    break
            if changed:
                break
    lines = []
    for own, mask in masks.items():
        inside = mask[np.ix_(*(alive[a] for a in own))]
        if not inside.all():
            line = line_axis(inside)
            order = (*(a for k, a in enumerate(own) if k != line), own[line])
            lines.append((order, np.moveaxis(inside, line, -1)))
    return Cut(alive, lines)


def line_axis(mask: Bools) -> int:
    """The axis along which all rows keep equally many; the last one that does."""
    for axis in reversed(range(mask.ndim)):
        counts = mask.sum(axis=axis)
        if (counts == counts.flat[0]).all():
            return axis
    raise NotABoxError(f"kept positions of shape {mask.shape} do not form a box")


def compress(array: Array, maps: Maps, gone: Bools) -> Array:
    """The array without the positions whose units have gone. Rows of one box may lose different offsets."""
    shape = array.shape
    for axes, facets in clusters(maps):
        cut = settle(facets, axes, shape, gone)
        for axis, alive in cut.alive.items():
            if not alive.all():
                array = array.compress(alive, axis=axis)
        for line, mask in cut.lines:
            count = int(mask.sum(axis=-1).flat[0])
            order = np.argsort(~mask, axis=-1, kind="stable")[..., :count]
            side = [1] * array.ndim
            for k, axis in enumerate(line):
                side[axis] = order.shape[k]
            permutation = np.argsort(line)
            array = np.take_along_axis(array, order.transpose(permutation).reshape(side), axis=line[-1])
    return np.ascontiguousarray(array)
