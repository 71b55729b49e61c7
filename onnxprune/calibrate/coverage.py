"""What the calibration inputs did not show is forgotten: how many of the model's answers, and of the ids that it knows, came up in them.

A compact classifier cut to half of its MACs kept all of its answers on the kinds of objects that it was shown, and lost 22 points on
others. Answers are the places of the largest entries along the last axis of what the model is judged by: of probabilities, and of logits
where the original is mostly sure (a vector that describes its input has no such entry). Ids are rows of the tables that a whole-number
input picks from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxprune.analyse.roles import roles
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.damage import kind_of, log_softmax
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array

SURE = 0.3  # mean of the largest probability


@dataclass(frozen=True)
class Coverage:
    """How much of what the model knows the inputs of the user's showed.

    tensor: an input, or a tensor that the model is judged by.
    kind: `ids` of the rows of a table, or `answers`, the classes of an output.
    seen: how many different ones came up.
    known: how many there are.
    """

    tensor: str
    kind: Literal["ids", "answers"]
    seen: int
    known: int


def coverage(analysis: Analysis, calibration: Calibration) -> tuple[Coverage, ...]:
    """Of the user's inputs; nothing of made-up ones. analysis: of the original."""
    samples = calibration.samples
    if calibration.made_up:
        return ()
    found = []
    for name, role in roles(analysis).items():
        feeds = [samples.feeds[k] for k in samples.own]
        if role.kind == "index" and all(name in f for f in feeds):
            ids = np.unique(np.concatenate([np.unique(f[name]) for f in feeds]))
            found.append(Coverage(name, "ids", int(((ids >= 0) & (ids < role.rows)).sum()), role.rows))
    for place, name in enumerate(calibration.judged.tensors):
        values = [np.asarray(calibration.outputs[k][place]) for k in samples.own]
        if _are_classes(values):
            answers = np.unique(np.concatenate([np.unique(v.argmax(axis=-1)) for v in values]))
            found.append(Coverage(name, "answers", len(answers), values[0].shape[-1]))
    return tuple(found)


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
