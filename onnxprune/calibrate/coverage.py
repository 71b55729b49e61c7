"""What the calibration inputs did not show is forgotten: how many of the model's answers, and of the ids that it knows, came up in them.

A compact classifier cut to half of its MACs kept all of its answers on the kinds of objects that it was shown, and lost 22 points on
others. Answers are the places of the largest entries of what the model is judged by: along the last axis of probabilities, and of logits
where the original is mostly sure (a vector that describes its input has no such entry); along another axis where that sums to one, or
where the model takes the ArgMax. Ids are rows of the tables that a whole-number input picks from. Of outputs without answers:
`calibrate/regions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxprune.analyse.roles import roles
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.damage import kind_of, log_softmax
from onnxprune.calibrate.regions import Active, Span, regions
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array

SURE = 0.3  # mean of the largest probability


@dataclass(frozen=True)
class Coverage:
    """How much of what the model knows the inputs of the user's showed.

    tensor: an input, or a tensor that the model is judged by.
    kind: `ids` of the rows of a table, `answers`, the classes of an output, or its `channels` and `places` (of a grid, a picture, in time)
        that were ever active.
    seen: how many different ones came up.
    known: how many there are.
    above: of channels and places, what counts as active: `half` is 0.5 or more, `background` more than half of the greatest height above
        the background; null for the others.
    """

    tensor: str
    kind: Literal["ids", "answers", "channels", "places"]
    seen: int
    known: int
    above: Literal["half", "background"] | None = None


def coverage(analysis: Analysis, calibration: Calibration) -> tuple[tuple[Coverage, ...], tuple[Span, ...]]:
    """Of the user's inputs, and the span of outputs that are numbers; nothing of made-up ones. analysis: of the original."""
    samples = calibration.samples
    if calibration.made_up:
        return (), ()
    found, spans = [], []
    for name, role in roles(analysis).items():
        feeds = [samples.feeds[k] for k in samples.own]
        if role.kind == "index" and all(name in f for f in feeds):
            ids = np.unique(np.concatenate([np.unique(f[name]) for f in feeds]))
            found.append(Coverage(name, "ids", int(((ids >= 0) & (ids < role.rows)).sum()), role.rows))
    for place, name in enumerate(calibration.judged.tensors):
        values = [np.asarray(calibration.outputs[k][place]) for k in samples.own]
        axis = _class_axis(analysis, name, values)
        if axis is not None:
            answers = np.unique(np.concatenate([np.unique(v.argmax(axis=axis)) for v in values]))
            found.append(Coverage(name, "answers", len(answers), values[0].shape[axis]))
            continue
        active, span = regions(analysis, name, values, [samples.sizes[k] for k in samples.own])
        found += _of_regions(name, active) if active is not None else []
        spans += [span] if span is not None else []
    return tuple(found), tuple(spans)


def _of_regions(name: str, active: Active) -> list[Coverage]:
    if active.answers is not None:
        return [Coverage(name, "answers", *active.answers)]
    found = [Coverage(name, "channels", *active.channels, active.above)]
    places = [] if active.places is None else [Coverage(name, "places", *active.places, active.above)]
    return places + found if active.channels[1] > 1 or not places else places


def _class_axis(analysis: Analysis, name: str, values: list[Array]) -> int | None:
    """The axis whose largest entry is the model's answer."""
    if _are_classes(values):
        return -1
    ndim = values[0].ndim
    if values[0].dtype.kind != "f" or any(v.ndim != ndim or not v.size for v in values):
        return None
    fixed = [a for a in range(1, ndim) if len({v.shape[a] for v in values}) == 1 and values[0].shape[a] > 1]
    for node in analysis.view.graph.walk():
        if node.op == "ArgMax" and node.inputs[0] == name and node.attrs.get("axis", 0) % ndim in fixed:
            return int(node.attrs.get("axis", 0) % ndim)
    if all(v.min() >= -1e-6 and v.max() <= 1 + 1e-5 for v in values):
        sums = [a for a in fixed if all(np.allclose(v.sum(axis=a), 1, atol=1e-3) for v in values)]
        return sums[0] if len(sums) == 1 else None
    return None


def _are_classes(values: list[Array]) -> bool:
    if values[0].dtype.kind != "f" or any(
        v.ndim < 2 or v.shape[-1] != values[0].shape[-1] or not v.size for v in values
    ):
        return False
    kind = kind_of(values)
    if kind != "logits":
        return kind == "probabilities"
    finite = [np.where(np.isfinite(v), v, v.dtype.type(-1e4)) for v in values]
    return bool(np.mean([np.exp(log_softmax(v.astype(np.float64))).max(axis=-1).mean() for v in finite]) >= SURE)
