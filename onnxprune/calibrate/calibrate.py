"""Stream the calibration inputs through the original once and keep the second moments of every layer's inputs.

Tapped are the inputs of all linear layers (`Rule.linear`); each is unfolded at sampled positions and added to the
moments in float64, so memory does not grow with the number of samples. Layers that read the same tensor the same way
share their moments. A layer with more than `CAP` inputs per output keeps none: it is scored without compensation.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import prod

import numpy as np
import onnx
from onnx import helper

from onnxprune.analyse.samples import Samples
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.judging import Judged
from onnxprune.calibrate.moments import Moments
from onnxprune.calibrate.positions import allotted, pick
from onnxprune.calibrate.stepwise import Stepwise, flat_model
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array
from onnxprune.model.branches import conditions, show_shapes
from onnxprune.model.loaded import Model
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.layers import find_layers
from onnxprune.runtime import Session

CAP = 5000
BUDGET = 1 << 30
"""Bytes of layers' inputs that one run may leave; where there are more, the samples run once for each part of the layers."""


def calibrate(
    analysis: Analysis,
    samples: Samples,
    judged: Judged,
    seed: int = 0,
    made_up: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> Calibration:
    """What the original gives on all samples for `judged.names`, and its layers' moments on those that are not held out."""
    model = analysis.model
    flat = flat_model(model, samples.feeds[0])
    steps = Stepwise(model.beside(flat), [])
    shapes = dict(analysis.observation.shapes)

    def shape(key: str) -> tuple[int, ...] | None:
        if steps.is_constant(key) and key not in shapes:
            return tuple(steps.constant(key).shape)
        return shapes.get(key)

    found = find_layers(flat, shape, steps.is_plain)
    layers = [x for x in found if not steps.is_constant(x.x)]
    weights = {x.key: x.linear.matrix(steps.constant(x.w).astype(np.float32)) for x in layers}
    inputs = list(dict.fromkeys(x.x for x in layers))
    names = judged.names
    # other samples may take other branches than the first: what they should give, the whole model says
    whole = judged.session(model) if conditions(model.proto) else None
    moments: dict[tuple[object, ...], Moments] = {}
    owner: dict[str, tuple[object, ...]] = {}
    outputs: list[list[Array]] = []
    taps = [n for n in inputs if n not in samples.feeds[0]]
    parts = _parts(inputs, analysis, samples) or [[]]
    for part, shown_inputs in enumerate(parts):
        mine = [x for x in layers if x.x in shown_inputs]
        wanted = [n for n in shown_inputs if n in taps]
        session, shown = _tapped(model.beside(flat), [*shown_inputs, *names], mine)
        for number, feeds in enumerate(samples.feeds):
            values = session.run(feeds, [*names, *wanted, *shown])
            if not part:
                given = judged.read(values[: len(names)]) if whole is None else whole(feeds)
                outputs.append(deepcopy(given))  # what a session returns keeps its memory, all of it
            known = feeds | dict(zip(wanted, values[len(names) :], strict=False))
            sizes = values[len(names) + len(wanted) :]
            progress((part + (number + 1) / len(samples.feeds)) / len(parts))
            if samples.held[number]:
                continue
            seen: set[tuple[object, ...]] = set()
            for k, layer in enumerate(mine):
                y = tuple(int(n) for n in sizes[k])
                linear, w = layer.linear, weights[layer.key]
                if w.shape[1] > CAP:
                    continue
                mark = (layer.x, repr(linear), y)
                owner.setdefault(layer.key, mark[:2])
                if mark in seen:
                    continue
                seen.add(mark)
                chosen = pick(linear.positions(y), allotted(w.shape[1], w.shape[0], len(samples.feeds)), (seed, number))
                into = moments.setdefault(mark[:2], Moments.empty(w.shape[0], w.shape[1], 0))
                into.unfold(linear, known[layer.x], y, chosen)
    by_layer = {key: moments[mark] for key, mark in owner.items() if mark in moments}
    passes = len(parts) + (whole is not None)
    return Calibration(
        flat, samples, layers, by_layer, weights, outputs, passes, tuple(taps), made_up, steps.constant, judged
    )


def _parts(tensors: list[str], analysis: Analysis, samples: Samples) -> list[list[str]]:
    """The layers' inputs in parts that take `BUDGET` bytes each in one run, or are one tensor; sizes as in the largest of the samples."""
    usual = sum(v.size for v in analysis.feeds[0].values())
    most = max(sum(f[n].size for n in analysis.feeds[0]) for f in samples.feeds)
    parts: list[list[str]] = []
    room = 0.0
    for name in tensors:
        size = 4 * prod(analysis.observation.shapes.get(name, ())) * most / max(usual, 1)
        if size > room or not parts:
            parts.append([])
            room = BUDGET
        parts[-1].append(name)
        room -= size
    return parts


def _tapped(flat: Model, tensors: list[str], layers: list[LinearLayer]) -> tuple[Session, list[str]]:
    """The model with these tensors and the shapes of the layers' outputs as outputs; the names of the shapes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(flat.proto)
    have = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
    for name in dict.fromkeys(tensors):
        if name not in have:
            proto.graph.output.append(helper.make_empty_tensor_value_info(name))
    shapes = show_shapes(proto.graph, [x.y for x in layers])
    return Session(
        flat.beside(proto), optimized=True, shapes_first=True, what="the model with its layers' inputs as outputs"
    ), shapes
