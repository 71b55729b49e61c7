"""Do inputs have the scale that a model was trained with? What it stores of its training tells.

The first layer that reads an input of floats (images, waves) is looked at, after whatever the model itself does to the input. With

    m, s: mean and deviation of what the layer gives, channel by channel, over the inputs

- a batch normalisation keeps the mean M and variance V that s² and m had in training. Far from it is `s²/V + (m - M)²/V - 1 - log(s²/V)`
  above 3 (median over channels), or s below a quarter of what it was: pixels of [0, 1] where others with mean 0 and deviation 1 are
  wanted have a deviation of 0.22.
- where it is folded, or never was, biases are about as large as s. Inputs that are 255 times too large leave |b| / s at 0.002, inputs that
  are too small at 100; right ones between 0.2 and 2.

A network may be right to be fed bytes without any norm (those of Caffe), and then its first layers give large numbers as well. It brings
them down by itself, so without anything that bounds or normalises on the way inputs are only called too large if the last layer's
numbers are, too. Half or twice the scale is not seen where norms are folded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.branches import making
from onnxprune.model.graph import Node, name_of
from onnxprune.runtime import Session

FAR, FLAT = 3.0, 0.25  # divergence from the stored statistics, and the least of their deviation
NEGLIGIBLE, LARGE = 0.02, 20.0  # |b| / s, and s, of inputs that are too large
DROWNED = 20.0  # |b| / s of inputs that are too small
SEEN = 4  # feeds that are run
SCALE_FREE = {"InstanceNormalization", "GroupNormalization", "LayerNormalization", "MeanVarianceNormalization"}
MOVES = {"Reshape", "Transpose", "Flatten", "Identity", "Pad", "Squeeze", "Unsqueeze", "Cast"}
BOUNDS = SCALE_FREE | {"Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "SimplifiedLayerNormalization"}
REMEDY = (
    "scale the inputs as in training, often x / 255 or (x - mean) / deviation (onnxprune data does it for pictures)"
)


def doubts(analysis: Analysis, feeds: Sequence[Feeds]) -> dict[str, str]:
    """By input: why its scale is doubtful, "" where it fits; nothing where the model does not tell.

    feeds: the user's, of which the first few are run, through the first layers only.
    """
    found: dict[str, str] = {}
    for name, array in feeds[0].items():
        if array.dtype.kind == "f" and array.ndim > 2 and all(x[name].size for x in feeds):
            said = _doubt(analysis, feeds[:SEEN], name)
            if said is not None:
                low, high = min(float(x[name].min()) for x in feeds), max(float(x[name].max()) for x in feeds)
                found[name] = said and f"'{name}' goes from {low:.4g} to {high:.4g}, and {said}; {REMEDY}"
    return found


def _doubt(analysis: Analysis, feeds: Sequence[Feeds], name: str) -> str | None:
    first = _first_layer(analysis, name)
    if first is None:
        return None
    tensor = first.inputs[0] if first.op == "BatchNormalization" else first.outputs[0]
    seen = _seen(analysis, feeds, tensor)
    if seen is None:
        return None
    mean, deviation = seen
    if first.op == "BatchNormalization":
        means, variances = (np.asarray(_constant(analysis, first, i), np.float64) for i in (3, 4))
        return _from_stored(first, mean, deviation, means, variances)
    bias = np.abs(np.asarray(_constant(analysis, first, 2), np.float64)).ravel()
    live = deviation > 1e-5 * deviation.max(initial=0)
    if bias.shape != deviation.shape or not live.any() or not bias.any():
        return None
    share, varies = float(np.median(bias[live] / deviation[live])), float(np.median(deviation[live]))
    size = float(np.median(bias[live]))
    said = f"the model's first layer, {first}, then gives numbers that vary by {varies:.2g} beside biases of {size:.2g}"
    if share > DROWNED:
        return f"{said}: they are too small for it"
    if share < NEGLIGIBLE and varies > LARGE:
        return f"{said}: they are too large for it" if _stays_large(analysis, feeds, first) else None
    return ""


def _from_stored(norm: Node, mean: Array, deviation: Array, means: Array, variances: Array) -> str | None:
    if means.shape != mean.shape or (not means.any() and np.ptp(variances) == 0):  # never trained
        return None
    variances = np.maximum(variances, 1e-6 * variances.max(initial=0) + 1e-12)
    ratio = np.maximum(np.square(deviation) / variances, 1e-9)
    apart = float(np.median(ratio + np.square(mean - means) / variances - 1 - np.log(ratio)))
    times = float(np.median(np.sqrt(ratio)))
    if apart <= FAR and times >= FLAT:
        return ""
    shift = float(np.median(np.abs(mean - means) / np.sqrt(variances)))
    return (
        f"what {norm} then reads varies {times:.2g} times as much as in training (the model stores that), and its mean is off by "
        f"{shift:.2g} deviations"
    )


def _first_layer(analysis: Analysis, name: str) -> Node | None:
    """The first batch normalisation, or convolution with a bias, behind an input; None where a norm hides the scale before or at once."""
    nodes = analysis.view.graph.nodes
    behind = {name}
    for node in nodes:
        if not behind.intersection(node.inputs):
            continue
        if node.op in SCALE_FREE or node.subgraphs:
            return None
        if node.op == "BatchNormalization":
            return node if all(_constant(analysis, node, i) is not None for i in (3, 4)) else None
        if node.op in ("MatMul", "Gemm", "LSTM", "GRU", "RNN", "Einsum"):
            return None
        if node.op == "Conv" and _constant(analysis, node, 2) is not None:
            norm = _norm_behind(nodes, node)
            if norm != "BatchNormalization":
                return None if norm else node
        behind.update(o for o in node.outputs if o)
    return None


def _norm_behind(nodes: Sequence[Node], layer: Node) -> str:
    """The operator that normalises what a layer gives at once, so that its bias does not tell; "" if none does."""
    behind = {layer.outputs[0]}
    for node in nodes:
        if behind.intersection(node.inputs):
            if node.op in SCALE_FREE | {"BatchNormalization"}:
                return node.op
            if node.op in MOVES:
                behind.update(o for o in node.outputs if o)
    return ""


def _stays_large(analysis: Analysis, feeds: Sequence[Feeds], first: Node) -> bool:
    """Is something on the way that bounds or normalises, so that large numbers are wrong there; else, are the last ones large, too?"""
    nodes = analysis.view.graph.nodes
    behind, last, bounded, pending = {first.outputs[0]}, first, False, False
    for node in nodes:
        if behind.intersection(node.inputs):
            behind.update(o for o in node.outputs if o)
            if node.op in BOUNDS:
                pending = True
            elif node.op in ("Conv", "Gemm", "MatMul"):
                last, bounded = node, bounded or pending
    if bounded:
        return True
    seen = _seen(analysis, feeds, last.outputs[0], axis=-1 if last.op != "Conv" else 1)
    return seen is not None and float(np.median(np.hypot(*seen))) > LARGE


def _seen(analysis: Analysis, feeds: Sequence[Feeds], tensor: str, axis: int = 1) -> tuple[Array, Array] | None:
    """Mean and deviation of a tensor of the graph itself, by channel; None where it cannot be looked at."""
    part = making(analysis.model.proto, [name_of(tensor)])
    wanted = {v.name for v in part.graph.input}
    try:
        session = Session(analysis.model.beside(part), optimized=True)
        runs = [session.run({n: a for n, a in f.items() if n in wanted})[0] for f in feeds]
    except BadInputError:
        return None
    runs = [np.moveaxis(r, axis, -1).reshape(-1, r.shape[axis]).astype(np.float64) for r in runs if r.ndim > 1]
    if not runs or not all(np.isfinite(r).all() for r in runs) or len({r.shape[1] for r in runs}) > 1:
        return None
    whole = np.concatenate(runs)
    return np.asarray(whole.mean(axis=0)), np.asarray(whole.std(axis=0))


def _constant(analysis: Analysis, node: Node, i: int) -> Array | None:
    source = analysis.sources.get(node.inputs[i]) if i < len(node.inputs) else None
    return None if source is None else np.asarray(analysis.view.constants[source].values)
