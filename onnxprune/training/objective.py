"""The loss of a batch from its parts: the teacher's outputs, features of both networks, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import ModelProto
from torch.nn import functional as F

from onnxprune.calibrate.damage import divergence
from onnxprune.calibrate.judging import Judged
from onnxprune.calibrate.pairing import pickers
from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.groups.observation import Array, Feeds
from onnxprune.runtime import Session
from onnxprune.training.functions.base import Tensor
from onnxprune.training.losses import Distance, Supervised
from onnxprune.training.network import Network

Removed: TypeAlias = Mapping[str, list[tuple[int, list[int]]]]
SHARPNESS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
CANDIDATES = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "LayerNormalization", "BatchNormalization"}


@dataclass(frozen=True)
class Feature:
    """A tensor of both networks. kept: per pruned axis, the positions of the teacher's that the student still has."""

    key: str
    kept: tuple[tuple[int, Array], ...]
    spread: float

    def of_teacher(self, value: Array) -> Array:
        for axis, positions in self.kept:
            value = np.take(value, positions, axis=axis)
        return value


@dataclass(frozen=True)
class Target:
    """A batch part as the student needs it: what it is fed, what the teacher says, labels and how they were mixed."""

    feeds: Feeds
    teacher: dict[str, Tensor]
    labels: Tensor | None
    other: Tensor
    share: Tensor
    weight: float


@dataclass(frozen=True)
class Objective:
    """label_weight: share of the supervised loss, the rest is the teacher's; feature_weight: of the features, beside both."""

    distances: tuple[Distance, ...]
    supervised: Supervised | None
    features: tuple[Feature, ...]
    temperature: float
    label_weight: float
    feature_weight: float

    def __call__(self, target: Target, found: Mapping[str, Any]) -> Tensor:
        loss = torch.zeros(())
        if self.distances:
            apart = sum(d(target.teacher[d.name], found[d.name], self.temperature) for d in self.distances)
            loss = loss + (1 - self.label_weight) * apart
        if self.features:
            off = [F.mse_loss(found[f.key], target.teacher[f.key]) / f.spread for f in self.features]
            loss = loss + self.feature_weight * sum(off) / len(off)
        if self.supervised is not None:
            loss = loss + self.label_weight * self._labelled(target, found[self.supervised.output])
        return loss * target.weight

    def _labelled(self, target: Target, found: Tensor) -> Tensor:
        assert self.supervised is not None and target.labels is not None
        mine = self.supervised(found, target.labels)
        if bool((target.share == 1).all()):
            return mine.mean()
        theirs = self.supervised(found, target.labels[target.other])
        return (target.share * mine + (1 - target.share) * theirs).mean()

    def held_out(
        self, wanted: list[list[Array]], found: list[list[Array]], judged: Judged, labels: list[Array]
    ) -> float:
        """The same on whole held-out samples, without features or temperature. wanted: what the teacher says (may be empty), and found,
        of `judged.names`.

        Scores of classes are judged at the sharpness that suits them best: who learns from mixed labels is modest, and is
        not to lose for it against a start that is sure of what it knows by heart ("On Calibration of Modern Neural Networks", 2017).
        """
        loss = 0.0
        if self.distances:
            loss += (1 - self.label_weight) * judged.by_tensors(divergence)(wanted, found)
        if self.supervised is not None:
            k = judged.names.index(self.supervised.output)
            pairs = [(torch.from_numpy(f[k]), torch.from_numpy(y)) for f, y in zip(found, labels, strict=True)]
            loss += self.label_weight * min(_labelled(self.supervised, pairs, s) for s in SHARPNESS)
        return loss


def _labelled(supervised: Supervised, pairs: list[tuple[Tensor, Tensor]], sharpness: float) -> float:
    return float(torch.cat([supervised(found, labels, sharpness) for found, labels in pairs]).mean())


def features(
    network: Network,
    teacher: Session,
    feeds: Feeds,
    given: Feeds,
    removed: Removed,
    most: int,
    at_ends: bool = False,
) -> tuple[Feature, ...]:
    """At most `most` tensors, evenly spread over the network, that exist in both under one name and of one shape once the
    positions in `removed` (by tensor: axis, positions) are gone. `teacher` is fed `feeds` and gives every candidate as an output;
    the network is fed `given`: the same, and what the teacher decides for both.

    at_ends: of ends of residual blocks, where there are any, and the last tensor of all: what classes are told apart by says more of
    classes that are not shown than the outputs do.
    """
    outputs = set(network.program.body.outputs)
    keys = [
        s.outputs[0]
        for s in network.program.body.steps
        if s.op in CANDIDATES and s.outputs[0] in teacher.outputs and s.outputs[0] not in outputs
    ]
    steps = Stepwise(network.program.model, [])
    picked, moved = pickers(steps.nodes, steps.is_constant), _moved(network)
    keys = [k for k in keys if moved.isdisjoint(picked.get(k, ()))]  # in the other model these rows may be others
    if at_ends and (ends := _ends(network, given, keys)):
        keys = [*ends, *keys[-1:]] if keys[-1] not in ends else ends
    if not keys or most < 1:
        return ()
    with torch.no_grad():
        mine = network(given, keys)
    theirs = dict(zip(keys, teacher.run(feeds, keys), strict=True))
    found = []
    for key in keys:
        value = theirs[key]
        kept = tuple((axis, np.setdiff1d(np.arange(value.shape[axis]), gone)) for axis, gone in removed.get(key, ()))
        feature = Feature(key, kept, max(float(np.var(value, dtype=np.float64)), 1e-12))
        if value.dtype.kind == "f" and feature.of_teacher(value).shape == tuple(mine[key].shape) and value.ndim >= 2:
            found.append(feature)
    chosen: Any = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)) if found else []
    return tuple(found[i] for i in chosen)


def _moved(network: Network) -> set[str]:
    """Tensors that depend on weights, so that they may be others in the other model; what follows from the inputs alone may not."""
    found = set(network.parameters)
    for step in network.program.body.steps:
        if step.branches or not found.isdisjoint(step.reads):
            found.update(step.outputs)
    return found


def _ends(network: Network, given: Feeds, keys: Sequence[str]) -> list[str]:
    """Those that join two branches: sums of two computed tensors of one shape (a mask or a bias that is added is of another one)."""
    sums = {
        s.outputs[0]: s.inputs
        for s in network.program.body.steps
        if s.op == "Add" and s.outputs[0] in keys and not any(k in network.constants for k in s.inputs)
    }
    with torch.no_grad():
        found = network(given, {k for inputs in sums.values() for k in inputs})
    return [k for k, inputs in sums.items() if len({tuple(found[x].shape) for x in inputs}) == 1]


def candidates(network: Network, teacher: ModelProto) -> list[str]:
    """Names that both graphs give to outputs of operators worth comparing."""
    known = {o for n in teacher.graph.node for o in n.output}
    return [s.outputs[0] for s in network.program.body.steps if s.op in CANDIDATES and s.outputs[0] in known]
