"""No axis may be emptied, whatever steps were chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.units import Ids

Scores = NDArray[np.float64]


def keep_axes(analysis: Analysis, steps: Sequence[Ids], scores: Scores) -> Bools:
    """What these steps remove. No axis may be emptied: where one would be, the steps and rows that take its most important class stay out.

    If that is not enough (rows and steps that empty it together), all that touches the axis stays out. Only whole steps are
    taken back, so every box stays one.
    """
    child, parent = analysis.solution.children
    spared = np.zeros(analysis.solution.count, bool)
    for attempt in range(50):
        removed = np.zeros(analysis.solution.count, bool)
        taken = [ids for ids in steps if not spared[ids].any()] if attempt else steps
        if taken:
            removed[np.concatenate(taken)] = True
        removed = analysis.solution.closure(removed)
        empty = analysis.solution.emptied(removed)
        if not empty:
            return removed
        for axis in empty:
            spared[axis if attempt > 2 else axis[[np.argmax(scores[axis])]]] = True
        spared[parent[spared[child]]] = True
    return np.zeros(analysis.solution.count, bool)
