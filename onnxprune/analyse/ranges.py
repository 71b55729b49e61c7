"""In what range does a model want its images? What it stores of the data that it was trained on tells.

A batch normalisation keeps the mean and variance that its input had in training. Of the usual ways to scale images the one is taken under
which the first of them sees what comes nearest to that, as the divergence of two normal distributions, channel by channel,

    (v + (m - M)²) / V - 1 - log(v / V)        m, v: seen; M, V: stored

Where norms are folded into convolutions nothing is stored. There a constant that is taken away from the input before anything else tells: a
mean above 2 is one of bytes, one below of [0, 1]. Else images have mean 0 and a deviation of 1, as most normalised ones have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.branches import showing
from onnxprune.model.graph import Node
from onnxprune.runtime import Session

WAYS = {"normalised": (1.0, 0.0), "-1 to 1": (0.45, 0.0), "0 to 1": (0.225, 0.5), "0 to 255": (57.0, 127.0)}
SEEN = 8  # feeds that are run for each way


def scaled(feeds: Sequence[Feeds], name: str, way: tuple[float, float]) -> list[Feeds]:
    """Images of mean 0 and deviation 1 in another range."""
    factor, mean = way
    return [f | {name: (f[name] * factor + mean).astype(f[name].dtype)} for f in feeds]


def in_range(analysis: Analysis, feeds: list[Feeds]) -> list[Feeds]:
    """Made-up feeds with each image in the range that suits the model."""
    for name, array in feeds[0].items():
        if array.dtype.kind == "f" and array.ndim == 4:
            feeds = scaled(feeds, name, WAYS[range_of(analysis, feeds, name)])
    return feeds


def range_of(analysis: Analysis, feeds: Sequence[Feeds], name: str) -> str:
    """The way of `WAYS` that suits an input of images."""
    behind, means = {name}, []
    for node in analysis.view.graph.walk():
        if not behind.intersection(node.inputs):
            continue
        constants = [_constant(analysis, key) for key in node.inputs]
        if node.op == "BatchNormalization" and constants[3] is not None and constants[4] is not None:
            return _nearest(analysis, feeds, name, node, (constants[3], constants[4]))
        if node.op == "Sub" and name in node.inputs and constants[1] is not None:
            means.append(float(constants[1].mean()))
        behind.update(o for o in node.outputs if o)
    if means and means[0] > 0:
        return "0 to 255" if means[0] > 2 else "0 to 1"
    return "normalised"


def _nearest(analysis: Analysis, feeds: Sequence[Feeds], name: str, norm: Node, stored: tuple[Array, Array]) -> str:
    key = norm.inputs[0]
    try:
        session = Session(analysis.model.beside(showing(analysis.model.proto, [key])), optimized=True)
        values = {way: [session.run(f, [key])[0] for f in scaled(feeds[:SEEN], name, how)] for way, how in WAYS.items()}
    except BadInputError:  # within a branch
        return "normalised"
    mean, variance = (np.asarray(s, np.float64) for s in stored)
    variance = np.maximum(variance, 1e-6 * variance.max(initial=0.0) + 1e-12)

    def apart(seen: Sequence[Array]) -> float:
        axes = (0, *range(2, seen[0].ndim))
        m = np.mean([x.mean(axis=axes, dtype=np.float64) for x in seen], axis=0)
        v = np.mean([x.astype(np.float64).var(axis=axes) for x in seen], axis=0)
        ratio = np.maximum(v / variance, 1e-9)
        return float(np.median(ratio + np.square(m - mean) / variance - 1 - np.log(ratio)))

    return min(values, key=lambda way: apart(values[way]))


def _constant(analysis: Analysis, key: str) -> Array | None:
    source = analysis.sources.get(key)
    return None if source is None else np.asarray(analysis.view.constants[source].values)
