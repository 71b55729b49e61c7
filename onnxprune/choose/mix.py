"""Change of basis: units that nothing but linear maps touches can be mixed, so that those which go are worth the least.

    q' = q T,  k' = k T^-T      q' k'^T = q k^T       queries and keys of a head
    v' = v T,  W' = T^-1 W      v' W' = v W           values and what reads them; the narrow ends of inverted residuals

The model computes what it did; only constants change. With C0 the second moments of one side and C1 those of the other (of what it is
multiplied by; of weights W W^T over the variance of their outputs),

    C0^1/2 C1^1/2 = U S V^T,    T = C0^-1/2 U S^1/2

makes units of principal directions: losing the last m of n of them is the best that rank n - m can do (reduced-rank regression, Izenman
1975). Which operators may lie between is for their rules to say (`Rule.mixing`). Where several layers read the units (a residual
stream) there is no closed form: C0 and C1 are then the means over them (what that is worth: docs/decisions.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.analyse.samples import Place
from onnxprune.calibrate.calibrate import in_parts
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.positions import pick
from onnxprune.calibrate.routes import Routed
from onnxprune.choose.mixable import CONSTANT, Block, Carried, blocks_of, lines_of
from onnxprune.groups.analysis import Analysis, Use
from onnxprune.groups.maps import varying
from onnxprune.groups.observation import Array
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import Floats

SAMPLES = 128
POSITIONS = 1024  # per sample
DAMPING = 1e-3  # of the mean of the diagonal


@dataclass(frozen=True)
class Basis:
    """A block with its T [n, n] and the singular values S [n], largest first."""

    block: Block
    matrix: Floats
    values: Floats


def bases(analysis: Analysis, calibration: Calibration) -> list[Basis]:
    """Every block of units that can be mixed, with its principal directions."""
    found = blocks_of(analysis, calibration)
    moments = _Seen(analysis, calibration, found)
    made = []
    for block in found:
        sides = _both(analysis, calibration, block, moments)
        basis = None if sides is None else _principal(*sides)
        if basis is not None:
            made.append(Basis(block, *basis))
    return made


def changes(analysis: Analysis, chosen: Iterable[Basis]) -> dict[Use, Array]:
    """The constants of the model in the new bases, by (node key, input)."""
    values: dict[Use, Array] = {}
    for basis in chosen:
        t, inverse = basis.matrix, np.asarray(np.linalg.inv(basis.matrix), np.float64)
        for constant in basis.block.constants:
            old = values.get(constant.use)
            if old is None:
                old = np.asarray(analysis.view.constants[analysis.uses[constant.use][0]].values)
            matrices = [t.T if constant.reads == (side == 1) else inverse for side in constant.sides]
            values[constant.use] = constant.carried.mixed(old, matrices).astype(old.dtype)
    return values


# ---------------------------------------------------------------- which units can be mixed


# ---------------------------------------------------------------- which mixture


class _Seen:
    """Second moments [n, n] of tensors that are multiplied with each other, per block, summed over the samples that fits may use."""

    def __init__(self, analysis: Analysis, calibration: Calibration, blocks: Sequence[Block]) -> None:
        self.sums: dict[tuple[int, str], Floats] = {}
        wanted: dict[str, list[tuple[int, Carried]]] = defaultdict(list)
        for block in blocks:
            for key, carried in block.product:
                wanted[key].append((int(block.classes[0, 0]), carried))
        if not wanted:
            return
        samples = calibration.samples
        fitted = [k for k, held in enumerate(samples.held) if not held] or list(range(len(samples.feeds)))
        portions = samples.portions(fitted)
        chosen = [k for portion in portions[:: max(1, len(portions) // SAMPLES)] for k in portion]
        for names in in_parts({n: n for n in wanted}, {}, analysis, samples):
            session = _showing(analysis, calibration, names)
            for k in chosen:
                self._add(
                    samples.place(k), wanted, dict(zip(names, session.run(k, samples.feeds[k], names), strict=True))
                )

    def _add(
        self, place: Place, wanted: Mapping[str, list[tuple[int, Carried]]], values: Mapping[str, Array | None]
    ) -> None:
        for name, value in values.items():
            if value is None:
                continue
            for first, carried in wanted[name]:
                x = carried.front(value)
                x = x[:, pick(x.shape[1], POSITIONS, (0, place.portion), place)]
                x = x.astype(np.float64)[carried.lines]  # [copies, n, positions]
                self.sums[first, name] = self.sums.get((first, name), 0.0) + np.einsum("cip,cjp->ij", x, x)

    def of(self, block: Block, key: str) -> Floats | None:
        """None where no sample came by."""
        return self.sums.get((int(block.classes[0, 0]), key))


def _showing(analysis: Analysis, calibration: Calibration, names: Sequence[str]) -> Routed:
    """The model with these tensors as its outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(calibration.flat)
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    return Routed(analysis.model.beside(proto), calibration.routing, "the model with what it multiplies as outputs")


def _both(analysis: Analysis, calibration: Calibration, block: Block, seen: _Seen) -> tuple[Floats, Floats] | None:
    """C0 and C1 [n, n]; None where something was not calibrated."""
    if not block.layers:
        (a, _), (b, _) = block.product
        first, second = seen.of(block, a), seen.of(block, b)
        return None if first is None or second is None else (first, second)
    pairs = [_of_layer(analysis, calibration, block, layer) for layer in block.layers]
    known = [pair for pair in pairs if pair is not None]
    if not known or len(known) < len(pairs):
        return None
    inputs, outputs = (np.mean(side, axis=0) for side in zip(*known, strict=True))
    return (inputs, outputs) if block.side == 0 else (outputs, inputs)


def _of_layer(
    analysis: Analysis, calibration: Calibration, block: Block, layer: LinearLayer
) -> tuple[Floats, Floats] | None:
    """Covariance of the units where a layer reads them, and W W^T over the variance of what it makes; both summed over a kernel's taps."""
    moments, linear = calibration.moments.get(layer.key), layer.linear
    if moments is None or not moments.count:
        return None
    shape = analysis.observation.shapes[layer.x]
    carried = [f for f in analysis.maps[layer.x] if varying(f) == (linear.channel_axis % len(shape),)]
    n = len(block.classes)
    inputs, outputs = np.zeros((n, n)), np.zeros((n, n))
    square = 0.0
    count = 0
    weights = calibration.weights[layer.key]
    for facet in carried:
        classes = analysis.solution.classes[facet.ravel()]
        for g, channels in enumerate(linear.channels):
            lines = lines_of(classes[channels], block.classes)
            if lines is None:
                return None
            if not len(lines):
                continue
            covariance, w = moments.covariance_of(g), weights[g].astype(np.float64)
            variance = max(float(np.einsum("ko,ko->", w, covariance @ w)), 1e-30)
            for line in lines:
                inputs += covariance[np.ix_(line, line)]
                outputs += w[line] @ w[line].T / variance
                square += float(np.square(moments.mean_x[g][line]).sum())
                count += 1
    is_constant = np.trace(inputs) <= CONSTANT * square  # what varies is rounding noise
    return None if not count or is_constant else (inputs / count, outputs / count)


def _principal(c0: Floats, c1: Floats) -> tuple[Floats, Floats] | None:
    """T and S."""
    if not (np.isfinite(c0).all() and np.isfinite(c1).all()) or min(np.trace(c0), np.trace(c1)) <= 0:
        return None
    roots = []
    for c in (c0, c1):
        damped = (c + c.T) / 2 + DAMPING * np.trace(c) / len(c) * np.eye(len(c))
        values, vectors = np.linalg.eigh(damped)
        if values[0] <= 0:
            return None
        roots.append((values, vectors))
    (v0, u0), (v1, u1) = roots
    u, s, _ = np.linalg.svd((u0 * np.sqrt(v0)) @ u0.T @ (u1 * np.sqrt(v1)) @ u1.T)
    return (u0 / np.sqrt(v0)) @ u0.T @ (u * np.sqrt(s)), s
