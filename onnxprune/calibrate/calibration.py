"""What the calibration inputs showed of the original model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx

from onnxprune.analyse.samples import Samples
from onnxprune.calibrate.moments import Moments
from onnxprune.groups.observation import Array
from onnxprune.ops.layer import Layer


@dataclass(frozen=True)
class Calibration:
    """flat: the original with its Ifs decided; layers, with `moments` and weights by layer key; outputs per sample.

    made_up: the samples are not the user's.
    """

    flat: onnx.ModelProto
    samples: Samples
    layers: list[Layer]
    moments: dict[str, Moments]
    weights: dict[str, Array]
    outputs: list[list[Array]]
    passes: int
    tapped: tuple[str, ...]
    made_up: bool
    constants: Callable[[str], Array] = field(repr=False)
