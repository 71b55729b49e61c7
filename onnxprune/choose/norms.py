"""The importance of units from the weights alone: norms, and the means of shares that they are made of.

The importance of a class is the mean, over all weights that carry it, of its share of the weight's norm:

    s_c = mean_W  |W_c|^p / mean_c' |W_c'|^p        (p = 1, 2; the largest entry for `linf`)

so that a layer with large weights does not outweigh its neighbours (the group norm of Torch-Pruning, DepGraph, CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxprune.groups.analysis import Analysis
from onnxprune.model.constants import Constant

Floats = NDArray[np.float64]
Reduce = Callable[[NDArray[np.float32], tuple[int, ...]], Floats]
LARGEST = np.float32(1e18)  # masks hold the least number of their type, whose square is none


def per_class(analysis: Analysis, reduce: Reduce) -> Floats:
    """One number per class, larger is more important, [classes]: the mean of its shares of all weights that carry it.

    reduce: from the magnitudes of a weight and axes to sum over (kept, of size 1) to what its positions count. Floats are weights, and
    the codes of quantized weights, about their median.
    """
    count = analysis.solution.count
    total, seen = np.zeros(count), np.zeros(count)
    arrays: dict[str, Floats] = {}
    last = ""
    for (_, _), (source, maps) in sorted(analysis.uses.items(), key=lambda item: item[1][0]):
        constant = analysis.view.constants[source]
        if not maps or not _is_weight(constant):
            continue
        if source != last:
            arrays.clear()
            last = source
        for facet in maps:
            axes = tuple(a for a, n in enumerate(facet.shape) if n == 1)
            mark = str(axes)
            if mark not in arrays:
                arrays[mark] = reduce(_magnitudes(constant), axes)
            classes = analysis.solution.classes[facet].ravel()
            known = classes >= 0
            summed = np.bincount(classes[known], weights=arrays[mark].ravel()[known], minlength=count)
            mean = summed[summed > 0].mean() if (summed > 0).any() else 0.0
            if mean > 0:
                present = np.bincount(classes[known], minlength=count) > 0
                total += summed / mean
                seen += present
    return total / np.maximum(seen, 1)


def _is_weight(constant: Constant) -> bool:
    try:
        dtype = np.dtype(constant.dtype)
    except TypeError:  # a type that numpy does not have
        return False
    return dtype.kind in "fV" or dtype.name in ("int8", "uint8")  # V: bfloat16, and what has fewer than 8 bits


def _magnitudes(constant: Constant) -> NDArray[np.float32]:
    values = np.asarray(constant.values, np.float32)
    if "int" in np.dtype(constant.dtype).name and values.size:
        values = values - np.float32(np.median(values))  # about the zero point of a quantized weight
    return np.minimum(np.abs(values), LARGEST)


def l1(values: NDArray[np.float32], axes: tuple[int, ...]) -> Floats:
    """The sum of magnitudes."""
    return np.asarray(values.sum(axis=axes, keepdims=True, dtype=np.float64))


def l2(values: NDArray[np.float32], axes: tuple[int, ...]) -> Floats:
    """The sum of squares."""
    return np.asarray(np.square(values).sum(axis=axes, keepdims=True, dtype=np.float64))


def linf(values: NDArray[np.float32], axes: tuple[int, ...]) -> Floats:
    """The largest magnitude."""
    return np.asarray(values.max(axis=axes, keepdims=True, initial=0.0), dtype=np.float64)
