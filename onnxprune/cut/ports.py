"""Which axes of the graph's inputs and outputs a removal makes shorter, and what leaves them."""

from __future__ import annotations

import numpy as np

from onnxprune.groups.analysis import Analysis, NotABoxError, kept_mask
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import clusters
from onnxprune.model.interface import Interface, Port


def ports(analysis: Analysis, removed: Bools) -> Interface:
    """removed: bool per class. Raises `NotABoxError` where the rows of an axis would lose different positions."""
    gone = analysis.solution.of_units(removed)
    graph = analysis.view.graph
    found: list[Port] = []
    for name in dict.fromkeys(graph.inputs):
        found += _axes(analysis, name, gone, is_input=True)
    for name in dict.fromkeys(graph.outputs):
        found += _axes(analysis, name, gone, is_input=False)
    return tuple(found)


def _axes(analysis: Analysis, name: str, gone: Bools, is_input: bool) -> list[Port]:
    maps = analysis.maps.get(name, ())
    if not any(gone[facet].any() for facet in maps):
        return []
    shape = analysis.observation.shapes[name]
    result: list[Port] = []
    for axes, facets in clusters(maps):
        mask = kept_mask(facets, axes, shape, gone)
        sides = [mask.any(axis=tuple(k for k in range(len(axes)) if k != at)) for at in range(len(axes))]
        if int(mask.sum()) != np.prod([side.sum() for side in sides]):
            raise NotABoxError(f"rows of '{name}' lose different positions")
        for axis, side in zip(axes, sides, strict=True):
            if not side.all():
                lost = tuple(np.flatnonzero(~side).tolist())
                result.append(Port(name, "input" if is_input else "output", axis, shape[axis], lost))
    return sorted(result, key=lambda port: port.axis)
