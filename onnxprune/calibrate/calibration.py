"""What the calibration inputs showed of the original model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field

import onnx

from onnxprune.analyse.samples import Samples
from onnxprune.calibrate.judging import Judged
from onnxprune.calibrate.moments import Moments
from onnxprune.calibrate.recall import NOTHING, Recall
from onnxprune.groups.observation import Array
from onnxprune.model.routing import Routing
from onnxprune.ops.layer import LinearLayer


@dataclass(frozen=True)
class Finer:
    """The original of a model that works on smaller pictures (`cut/resolution.py`).

    flat, routing: as of `Calibration`. names: tensors that have one size in both.
    """

    flat: onnx.ModelProto
    routing: Routing
    names: frozenset[str]


@dataclass(frozen=True)
class Calibration:
    """What a model computed on the calibration samples: the original, or what bypasses left of it (`choose/subject.py`).

    flat: the model with the branches that the samples take in place of its Ifs. routing: which sample takes which.
    samples: the inputs, run by run.
    layers: every convolution and matrix product with constant weights. moments: by layer key, the second moments `[g, K, K]` of what
        the layer reads, over the samples that are not held out. weights: by layer key, `[g, K, O]`: groups, inputs, outputs.
    judged: what the model is judged by. outputs: per run, what the model gives for `judged.names`.
    passes: how often the samples were run through the model. tapped: tensors that were read out for the moments.
    made_up: there were no inputs of the user's, so the samples were drawn.
    constants: value of a constant of `flat`, by name.
    recall: what the original computed for one repair, for the next one; by default nothing is remembered.
    finer: the original, where `flat` works on smaller pictures than it; `outputs` are then the original's.
    """

    flat: onnx.ModelProto
    routing: Routing
    samples: Samples
    layers: list[LinearLayer]
    moments: MutableMapping[str, Moments]
    weights: Mapping[str, Array]
    outputs: list[list[Array]]
    passes: int
    tapped: tuple[str, ...]
    made_up: bool
    constants: Callable[[str], Array] = field(repr=False)
    judged: Judged
    recall: Recall = field(default=NOTHING, repr=False, compare=False)
    finer: Finer | None = field(default=None, repr=False)
