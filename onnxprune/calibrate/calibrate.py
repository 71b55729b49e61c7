"""Stream the calibration inputs through the original once and keep the second moments of every layer's inputs.

Tapped are the inputs of all linear layers (`Rule.linear`), along the branches that each sample takes; each is unfolded at sampled
positions and added to the moments in float64, so memory does not grow with the number of samples. Layers that read the same tensor the
same way share their moments. A layer with more than `CAP` inputs per output keeps none: it is scored without compensation.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import reduce
from operator import add

import numpy as np
import onnx
from onnx import helper

from onnxprune.analyse.samples import Samples
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.judging import Judged
from onnxprune.calibrate.moments import Moments
from onnxprune.calibrate.positions import allotted, pick
from onnxprune.calibrate.routes import Routed, flat_model
from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.calibrate.units import units_of
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array
from onnxprune.model.branches import show_shapes
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.layers import find_layers

CAP = 5000


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
    flat, routing = flat_model(model, samples.feeds)
    steps = Stepwise(model.beside(flat), [], routing)
    shapes = dict(analysis.observation.shapes)

    def shape(key: str) -> tuple[int, ...] | None:
        if steps.is_constant(key) and key not in shapes:
            return tuple(steps.constant(key).shape)
        return shapes.get(key)

    layers = [x for x in find_layers(flat, shape, steps.is_plain, steps.constant) if not steps.is_constant(x.x)]
    weights = {x.key: x.linear.matrix(steps.constant(x.w).astype(np.float32)) for x in layers}
    inputs = list(dict.fromkeys(x.x for x in layers))
    names = judged.names
    tapped, shown = _tapped(flat, [*inputs, *names], layers)
    session = Routed(model.beside(tapped), routing, "the model with its layers' inputs as outputs", optimized=True)
    moments: dict[tuple[object, ...], Moments] = {}
    owner: dict[str, tuple[object, ...]] = {}
    outputs: list[list[Array]] = []
    taps = [n for n in inputs if n not in samples.feeds[0]]
    for number, feeds in enumerate(samples.feeds):
        values = session.run(number, feeds, [*names, *taps, *shown])
        outputs.append(
            deepcopy(judged.read(values[: len(names)]))
        )  # what a session returns keeps its memory, all of it
        known = feeds | {n: v for n, v in zip(taps, values[len(names) :], strict=False) if v is not None}
        sizes = values[len(names) + len(taps) :]
        progress((number + 1) / len(samples.feeds))
        if samples.held[number]:
            continue
        seen: set[tuple[object, ...]] = set()
        for k, layer in enumerate(layers):
            size = sizes[k]
            if size is None:  # in a branch that this sample does not take
                continue
            y = tuple(int(n) for n in size)
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
    for unit in units_of(layers, steps) if routing.guards else ():
        marks = dict.fromkeys(owner[x.key] for x in unit if x.key in by_layer)
        if len(marks) > 1:
            by_layer |= dict.fromkeys((x.key for x in unit), reduce(add, (moments[mark] for mark in marks)))
    passes = 2 if any(routing.routes) else 1  # one to see the conditions
    return Calibration(
        flat, routing, samples, layers, by_layer, weights, outputs, passes, tuple(taps), made_up, steps.constant, judged
    )


def _tapped(flat: onnx.ModelProto, tensors: list[str], layers: list[LinearLayer]) -> tuple[onnx.ModelProto, list[str]]:
    """The model with these tensors and the shapes of the layers' outputs as outputs; the names of the shapes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(flat)
    have = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
    for name in dict.fromkeys(tensors):
        if name not in have:
            proto.graph.output.append(helper.make_empty_tensor_value_info(name))
    return proto, show_shapes(proto.graph, [x.y for x in layers])
