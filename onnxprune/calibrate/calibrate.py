"""Stream the calibration inputs through the original once and keep the second moments of every layer's inputs.

Tapped are the inputs of all linear layers (`Rule.linear`), along the branches that each sample takes; each is unfolded at sampled
positions and added to the moments in float64, so memory does not grow with the number of samples. Layers that read the same tensor the
same way share their moments. A layer with more than `CAP` inputs per output keeps none: it is scored without compensation.
What one run reads, and the moments that it adds to, are bounded by `BUDGET`; finished moments are kept as triangles (`moments.Kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import reduce
from math import prod
from operator import add

import numpy as np
import onnx
from onnx import helper

from onnxprune.analyse.runs import growth
from onnxprune.analyse.samples import Place, Samples
from onnxprune.calibrate import bodies
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.judging import Judged
from onnxprune.calibrate.moments import Kept, Moments, Waiting
from onnxprune.calibrate.positions import allotted, pick
from onnxprune.calibrate.routes import Routed, flat_model
from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.calibrate.units import units_of
from onnxprune.errors import BadInputError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.bodies import guarded, watching
from onnxprune.model.branches import show_shapes
from onnxprune.model.loaded import Model
from onnxprune.model.routing import Routing
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.layers import find_layers

CAP = 5000
BUDGET = 1 << 30
"""Bytes that one run may take. Layers' inputs and their moments may be half of it; with more, samples run once per part."""


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
    fed = [judged.fed(feeds) for feeds in samples.feeds]
    layers = _seen(layers, model.beside(judged.led(flat)), routing, fed, steps.constant)
    weights = Matrices(layers, steps.constant)
    inputs = {x.reads: x.x for x in layers}
    names = judged.names
    outputs: list[list[Array]] = []
    gathered = _Gathered(weights, len(samples.portions()), seed)
    parts = in_parts(inputs, gathered.room(layers), analysis, samples) or [[]]
    led = judged.led(flat)
    for part, tensors in enumerate(parts):
        mine = [x for x in layers if x.reads in tensors]
        watches = bodies.inputs(mine, steps.constant) + bodies.outputs(mine, steps.constant, are_shapes=True)
        wanted = [n for n in tensors if n not in fed[0]]
        tapped, shown = _tapped(watching(led, watches), [*tensors, *names], mine)
        what = "the model with its layers' inputs as outputs"
        session = Routed(model.beside(tapped), guarded(routing, watches), what, optimized=True, shapes_first=True)
        del tapped
        for number, given in enumerate(fed):
            values = session.run(number, given, [*names, *wanted, *shown])
            if not part:  # a copy, as what a session returns keeps its memory, all of it
                outputs.append(deepcopy(judged.read(values[: len(names)])))
            progress((part + (number + 1) / len(samples.feeds)) / len(parts))
            if not samples.held[number]:
                known = {n: v for n, v in zip(wanted, values[len(names) :], strict=False) if v is not None}
                gathered.add(samples.place(number), mine, given | known, values[len(names) + len(wanted) :])
                del known
            del values  # before the next run, which takes as much again
        gathered.finish()
    moments = gathered.finished
    for unit in units_of(layers, steps) if routing.guards else ():
        first = {gathered.owner[x.key]: x.key for x in reversed(unit) if x.key in moments}
        if len(first) > 1:
            moments[unit[0].key] = reduce(add, (moments[key] for key in reversed(first.values())))
            for layer in unit[1:]:
                moments.share(layer.key, unit[0].key)
    passes = len(parts) + any(routing.routes)  # one to see the conditions
    taps = tuple(n for n in inputs if n not in fed[0])
    return Calibration(
        flat, routing, samples, layers, moments, weights, outputs, passes, taps, made_up, steps.constant, judged
    )


def _seen(
    layers: list[LinearLayer], flat: Model, routing: Routing, samples: Sequence[Feeds], constant: Callable[[str], Array]
) -> list[LinearLayer]:
    """Without those in bodies of loops whose steps ONNX Runtime does not show, as one sample of each route tells."""
    watches = bodies.inputs(layers, constant) + bodies.outputs(layers, constant)
    if not watches:
        return layers
    names = [w.output for w in watches]
    proto, _ = _tapped(watching(flat.proto, watches), names, [])
    session = Routed(flat.beside(proto), guarded(routing, watches), "the model with its loops' steps as outputs")
    routes = [tuple(sorted(route.items())) for route in routing.routes]
    try:
        for number in {route: k for k, route in enumerate(routes)}.values():
            session.run(number, samples[number], names)
    except BadInputError:
        return [x for x in layers if not x.loop]
    return layers


class Matrices(Mapping[str, Array]):
    """Weights of layers as matrices `[g, K, O]` in float32, by layer key; made anew when they are read, as all take as much as the file."""

    def __init__(self, layers: Sequence[LinearLayer], constants: Callable[[str], Array]) -> None:
        self._layers = {x.key: x for x in layers}
        self._constants = constants

    def __getitem__(self, key: str) -> Array:
        layer = self._layers[key]
        return layer.linear.matrix(self._constants(layer.w).astype(np.float32, copy=False))

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class _Gathered:
    """Moments of layers' inputs; layers that read the same tensor the same way have theirs together."""

    def __init__(self, weights: Mapping[str, Array], portions: int, seed: int) -> None:
        self.portions, self.seed = portions, seed
        self.sizes = {key: w.shape for key, w in weights.items()}
        self.moments: dict[tuple[object, ...], Moments] = {}
        self.owner: dict[str, tuple[object, ...]] = {}
        self.finished = Kept()
        self.waiting = Waiting()

    def room(self, layers: Sequence[LinearLayer]) -> dict[str, int]:
        """Bytes of the moments of what reads a tensor, by tensor, while samples are added."""
        marks = {(x.reads, repr(x.linear)): self.sizes[x.key] for x in layers}
        room: dict[str, int] = {}
        for (name, _), (groups, inputs, _) in marks.items():
            room[name] = room.get(name, 0) + (0 if inputs > CAP else 8 * groups * inputs**2)
        return room

    def add(
        self, place: Place, layers: Sequence[LinearLayer], known: Mapping[str, Array], sizes: Sequence[Array | None]
    ) -> None:
        """Add a run. known: the layers' inputs; sizes: the shapes of their outputs, None in a branch that the run does not take.

        In the body of a loop, both have a value per step.
        """
        seen: set[tuple[object, ...]] = set()
        for layer, size in zip(layers, sizes, strict=True):
            linear, (groups, inputs, _) = layer.linear, self.sizes[layer.key]
            if size is None or inputs > CAP:
                continue
            mark = (layer.x, repr(linear), str(size))
            self.owner.setdefault(layer.key, mark[:2])
            if mark in seen:
                continue
            seen.add(mark)
            count = -(-allotted(inputs, groups, self.portions) // bodies.steps_in(layer, size))
            into = self.moments.setdefault(mark[:2], Moments.empty(groups, inputs, 0))
            for step, (x, shape) in enumerate(bodies.by_step(layer, known[layer.reads], size)):
                y = tuple(int(n) for n in shape)
                key = (self.seed, place.portion, step) if layer.loop else (self.seed, place.portion)
                chosen = pick(linear.positions(y), count, key, place)
                into.unfold(linear, x, y, chosen, waiting=self.waiting)

    def finish(self) -> None:
        """Nothing more is added to the moments so far, of every layer that some sample came by: from now on they are kept as triangles."""
        self.waiting.finish()
        owners: dict[tuple[object, ...], str] = {}
        for key, mark in self.owner.items():
            if mark in owners:
                self.finished.share(key, owners[mark])
            elif mark in self.moments:
                self.finished[key] = self.moments.pop(mark)
                owners[mark] = key


def in_parts(
    tensors: Mapping[str, str], room_of: Mapping[str, int], analysis: Analysis, samples: Samples
) -> list[list[str]]:
    """Tensors that are read out, in parts of half of `BUDGET` each in one run, or of one tensor; sizes as in the largest of the runs.

    tensors: keys by the names that a run gives them. room_of: bytes of the moments of what reads a tensor.
    """
    most = max(growth(analysis, f) for f in samples.feeds)
    parts: list[list[str]] = []
    room = 0.0
    for name, key in tensors.items():
        size = 4 * prod(analysis.observation.shapes.get(key, ())) * most + room_of.get(name, 0)
        if size > room or not parts:
            parts.append([])
            room = 0.5 * BUDGET
        parts[-1].append(name)
        room -= size
    return parts


def _tapped(flat: onnx.ModelProto, tensors: list[str], layers: list[LinearLayer]) -> tuple[onnx.ModelProto, list[str]]:
    """The model with these tensors and the shapes of the layers' outputs as outputs; the names of the shapes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(flat)
    have = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
    for name in dict.fromkeys(tensors):
        if name not in have:
            proto.graph.output.append(helper.make_empty_tensor_value_info(name))
    plain = list(dict.fromkeys(x.y for x in layers if not x.loop))
    sizes = dict(zip(plain, show_shapes(proto.graph, plain), strict=True))
    collected = [x.gives for x in layers if x.loop]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in collected)
    return proto, [x.gives if x.loop else sizes[x.y] for x in layers]
