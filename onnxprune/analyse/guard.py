"""The net below the rules: what would leave a tensor that is no box is refused before anything is decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.groups.analysis import NotABoxError, settle
from onnxprune.groups.classes import distinct
from onnxprune.groups.grouping import Solution
from onnxprune.groups.maps import Facet
from onnxprune.groups.units import Pin


def guarded(solution: Solution, facets: list[Facet]) -> Solution:
    """Try a removal of half of everything, group by group: one that would not leave its tensors boxes is refused.

    Groups are legal by construction; this is the net below, so that a mistake there costs reach and not a broken model.
    """
    boxes = [f for f in distinct(facets) if f.ndim > 1]
    if not boxes:
        return solution
    touches = [set(np.unique(solution.classes[f]).tolist()) for f in boxes]
    gone = np.zeros(solution.count, bool)
    shuffle = np.random.default_rng(0)
    groups = []
    for group in solution.groups:
        trial = gone.copy()
        for block, free, per_step in zip(group.blocks, group.free, group.per_step, strict=True):
            atoms = shuffle.permutation(block[free])
            trial[atoms[: group.removable // 2 * per_step]] = True
        trial = solution.closure(trial)
        changed = set(np.flatnonzero(trial & ~gone).tolist())
        try:
            units = solution.of_units(trial)
            for facet, classes in zip(boxes, touches, strict=True):
                if changed & classes:
                    settle([facet], tuple(range(facet.ndim)), facet.shape, units)
        except NotABoxError:
            pin = Pin("", f"removing units of {group.origin} would not leave every tensor a box")
            group = replace(group, removable=0, pins=(*group.pins, pin))
        else:
            gone = trial
        groups.append(group)
    return replace(solution, groups=tuple(groups))
