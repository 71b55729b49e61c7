"""Which weights become zero, and what the others become.

magnitude   |w|                                       Han et al. 2015
wanda       |w| ||x||_2, among the inputs of one output      Sun et al. 2023
obs         w^2 / [H^-1]_kk with repair of the others        Frantar & Alistarh 2023 (SparseGPT)

`obs` goes layer by layer, in order. With X the inputs that the sparse network makes by then and Y the original's outputs, the layer
is first fitted, W* = argmin |Y - X W - b|^2 + lambda |W - W0|^2; its weights then go one input after another, each loss repaired by
the weights left (`sparsity/obs.py`), and those that stay are brought to the minimum of that square. Held-out samples choose lambda,
infinity (no fit) included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.moments import Moments, Waiting
from onnxprune.calibrate.pairing import Pairing
from onnxprune.calibrate.positions import allotted, pick
from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.groups.analysis import Analysis, Use
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array
from onnxprune.model.bodies import open_bodies
from onnxprune.model.routing import flatten
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import Floats
from onnxprune.sparsity.obs import DAMPING, by_count, by_mask, by_pattern, damped, factor, refined, sparing, sweep
from onnxprune.sparsity.targets import (
    Pattern,
    Share,
    Target,
    Threshold,
    outside_pattern,
    shares_of,
    smallest,
    smallest_per_output,
)
from onnxprune.sparsity.weights import SparseWeight, with_values

RIDGES = (1.0, 1e-1, 1e-2)  # of the mean variance of a layer's inputs
ROUNDING = 1e-6  # of the mean square of the inputs: moments are summed from single precision
CONSTANT = 1e-5  # share of the mean square below which what varies is rounding noise
GROWTH = 10.0  # weights that grow more than so make up for noise
MANY = 1500  # inputs above which only the first ridge is tried
Progress = Callable[[float], None]


@dataclass
class Sparse:
    """values: of every constant that changes, by key; biases: by (node key, input); criteria: what decided, by key."""

    values: dict[str, Array] = field(default_factory=dict)
    biases: dict[Use, Array] = field(default_factory=dict)
    criteria: dict[str, str] = field(default_factory=dict)


def sparsify(
    analysis: Analysis,
    weights: list[SparseWeight],
    target: Target,
    criterion: str,
    calibration: Calibration | None,
    seed: int = 0,
    progress: Progress = lambda share: None,
) -> Sparse:
    """New values of all `weights`. Those that no calibration input reached are decided by magnitude."""
    moments = {w.tensor: _moments(w, calibration) for w in weights} if calibration is not None else {}
    by_moments = {t for t, m in moments.items() if m is not None and criterion != "magnitude"}
    counts = _counts(analysis, weights, target, criterion, moments)
    sparse = Sparse()
    for weight in weights:
        found = moments.get(weight.tensor)
        sparse.criteria[weight.tensor] = criterion if weight.tensor in by_moments else "magnitude"
        if criterion == "obs" and weight.tensor in by_moments:
            continue
        values = np.asarray(analysis.view.constants[weight.tensor].values)
        w = weight.matrix(values)
        is_wanda = found is not None and criterion == "wanda"
        scores = _wanda(w, found) if is_wanda and found is not None else np.abs(w)
        mask = _mask(w, scores, target, counts.get(weight.tensor, 0), weight.run, is_wanda)
        sparse.values[weight.tensor] = weight.stored(values, np.where(mask, 0, w))
    if criterion == "obs" and calibration is not None:
        surgeon = _Surgeon(
            analysis, weights, target, counts, moments, calibration=calibration, sparse=sparse, seed=seed
        )
        surgeon.run(progress)
    return sparse


def _wanda(w: Array, moments: Moments) -> Floats:
    """|w_ko| ||x_k||_2, [g, K, O]."""
    norms = np.sqrt(np.diagonal(moments.xx, axis1=1, axis2=2))
    return np.asarray(np.abs(w) * norms[:, :, None])


def _mask(w: Array, scores: Array, target: Target, count: int, run: int, per_output: bool) -> Bools:
    if isinstance(target, Threshold):
        return np.asarray(np.abs(w) < target.magnitude)
    if isinstance(target, Pattern):
        return outside_pattern(scores, target, run)
    return smallest_per_output(scores, count) if per_output else smallest(scores, count)


def _moments(weight: SparseWeight, calibration: Calibration | None) -> Moments | None:
    """Of the inputs of all layers that multiply by the weight; None where there are none."""
    total: Moments | None = None
    for layer in calibration.layers if calibration is not None else []:
        found = calibration.moments.get(layer.key) if calibration is not None else None
        if (layer.key, layer.linear.w) in weight.uses and found is not None and found.count:
            total = found if total is None else total + found
    return total


def _counts(
    analysis: Analysis,
    weights: list[SparseWeight],
    target: Target,
    criterion: str,
    moments: dict[str, Moments | None],
) -> dict[str, int]:
    """How many weights of each constant become zero, where the target is a share."""
    if not isinstance(target, Share):
        return {}
    sizes = {w.tensor: int(np.prod(w.shape)) for w in weights}
    counts = {t: round(target.amount * n) for t, n in sizes.items()}
    if target.scope == "layer":
        return counts
    compared = [w for w in weights if criterion == "magnitude" or moments.get(w.tensor) is not None]
    scores = [_comparable(analysis, w, criterion, moments.get(w.tensor)) for w in compared]
    return counts | dict(zip([w.tensor for w in compared], shares_of(scores, target.amount), strict=True))


def _comparable(analysis: Analysis, weight: SparseWeight, criterion: str, moments: Moments | None) -> Floats:
    """Scores that mean the same in every layer: magnitudes; or each weight's square error over that of all weights that outlast it.

    That is the score of LAMP (Lee et al. 2021) with w^2 var(x) for w^2. No layer is emptied: its last weight scores 1.
    """
    w = weight.matrix(np.asarray(analysis.view.constants[weight.tensor].values)).astype(np.float64)
    if criterion == "magnitude" or moments is None:
        return np.abs(w)
    error = np.square(w) * np.diagonal(_second(moments, centred=True), axis1=1, axis2=2)[:, :, None]
    order = np.argsort(error, axis=None)
    ordered = error.ravel()[order]
    lasting = np.cumsum(ordered[::-1])[::-1]
    scores = np.empty(error.size)
    scores[order] = ordered / np.maximum(lasting, 1e-300)
    shaped: Floats = scores.reshape(error.shape)
    return shaped


class _Surgeon:
    """The layers in graph order, each on the inputs that the sparse layers before it make."""

    def __init__(
        self,
        analysis: Analysis,
        weights: list[SparseWeight],
        target: Target,
        counts: dict[str, int],
        moments: dict[str, Moments | None],
        *,
        calibration: Calibration,
        sparse: Sparse,
        seed: int,
    ) -> None:
        self.target, self.counts, self.moments, self.seed = target, counts, moments, seed
        self.calibration, self.sparse = calibration, sparse
        self.constants = analysis.view.constants
        mine = [w for w in weights if moments[w.tensor] is not None]
        self.weight_at = {use: w for w in mine for use in w.uses}
        model = analysis.model
        led = calibration.judged.led
        samples = [calibration.judged.fed(feeds) for feeds in calibration.samples.feeds]
        base = with_values(model, analysis.view.opsets, sparse.values)
        flat, routing = flatten(base, calibration.routing.routes)
        flat = open_bodies(flat)
        self.new = Stepwise(model.beside(led(flat)), samples, routing)
        self.old = Stepwise(model.beside(led(calibration.flat)), samples, calibration.routing)
        self.pairing = Pairing(self.new, self.old, calibration.layers)

    def run(self, progress: Progress) -> None:
        layers = self.calibration.layers
        for k, layer in enumerate(layers):
            weight = self.weight_at.get((layer.key, layer.linear.w))
            if weight is not None:
                if weight.tensor not in self.sparse.values:
                    self._decide(layer, weight)
                self._give(layer, weight)
            progress((k + 1) / len(layers))

    def _decide(self, layer: LinearLayer, weight: SparseWeight) -> None:
        values = np.asarray(self.constants[weight.tensor].values)
        scale = getattr(layer.linear, "alpha", 1.0)
        w0 = weight.matrix(values).astype(np.float64) * scale
        is_shared = len(weight.uses) + weight.shared > 1
        w = self._alone(weight, w0) if is_shared or layer.loop else self._fitted(layer, weight, w0)
        if not np.isfinite(w.astype(values.dtype)).all():  # nothing was learned: by magnitude
            w = self._cut(w0, w0, np.broadcast_to(np.eye(w0.shape[1]), (w0.shape[0], *[w0.shape[1]] * 2)), weight)
        self.sparse.values[weight.tensor] = weight.stored(values, w / scale)

    def _alone(self, weight: SparseWeight, w0: Floats) -> Array:
        """Cut and repaired on what the layer reads in the original."""
        moments = self.moments[weight.tensor]
        assert moments is not None
        second = _second(moments, centred=False)
        return refined(self._cut(w0, w0, factor(second), weight), w0, damped(second, DAMPING))

    def _fitted(self, layer: LinearLayer, weight: SparseWeight, w0: Floats) -> Array:
        """Fit, cut, and keep the ridge that held-out samples like best; the bias follows. NaN where the inputs teach nothing."""
        train, held = self._look(layer, w0)
        if not train.count:  # no input of it is one of the original's
            return self._alone(weight, w0)
        held = held if held.count else train
        old_bias = self._bias(layer, w0)
        free = old_bias is not None
        bias = np.zeros((w0.shape[0], w0.shape[2])) if old_bias is None else old_bias
        nothing = np.full(w0.shape, np.nan)
        varies, square = (
            np.trace(m, axis1=1, axis2=2).sum() for m in (train.covariance(), train.xx / max(train.count, 1))
        )
        if free and not varies > CONSTANT * square:
            return nothing  # constant inputs say nothing of single weights
        second = _second(train, free)
        cross = train.cross_covariance() if free else train.xy / max(train.count, 1)
        u = factor(second)
        best: tuple[float, Array, Floats] | None = None
        for ridge in (np.inf, *RIDGES[: 1 if w0.shape[1] > MANY else None]):
            h = damped(second, DAMPING if ridge == np.inf else ridge)
            start = w0 if ridge == np.inf else np.linalg.solve(h, cross + (h - second) @ w0)
            w = refined(self._cut(w0, start, u, weight), start, h)
            b = train.mean_y - np.einsum("gk,gko->go", train.mean_x, w) if free else bias
            error = float(held.error(w, b).sum())
            is_sound = np.isfinite(error) and np.linalg.norm(w) <= GROWTH * np.linalg.norm(w0)
            if is_sound and (best is None or error < best[0]):
                best = (error, w, b)
        if best is None:
            return nothing
        if free:
            self._give_bias(layer, best[2])
        return best[1]

    def _cut(self, w0: Array, w: Array, u: Floats, weight: SparseWeight) -> Array:
        """`w` with zeros for the target, repaired. w0: the original, whose magnitudes a threshold looks at."""
        if isinstance(self.target, Threshold):
            stored = weight.matrix(np.asarray(self.constants[weight.tensor].values))
            plan = by_mask(np.abs(stored) < self.target.magnitude)
        elif isinstance(self.target, Pattern):
            plan = by_pattern(self.target, weight.run, w.shape[1])
        else:
            plan = by_count(self.counts[weight.tensor], w.shape)
        return sweep(w, u, *sparing(plan, w0 == 0))

    # -- what the layer sees and says

    def _look(self, layer: LinearLayer, w: Floats) -> tuple[Moments, Moments]:
        """Inputs in the sparse model and wanted outputs: fitted samples, held-out samples."""
        linear = layer.linear
        parts, waiting = [Moments.empty(*w.shape), Moments.empty(*w.shape)], Waiting()
        known = self.calibration.samples
        count = allotted(w.shape[1], w.shape[0], len(known.portions()))
        samples = zip(self.new.values(layer.x), self.old.values(layer.y), self.pairing.rows(layer), strict=True)
        for k, (x, y, same) in enumerate(samples):
            if x is None or y is None:
                continue
            shape, mine, theirs = same.positions(layer, x, y)
            place = known.place(k)
            chosen = pick(mine.size, count, (self.seed, layer.node, place.portion), place)
            parts[known.held[k]].unfold(linear, x, shape, mine[chosen], y, theirs[chosen], waiting=waiting)
        waiting.finish()
        self.new.release(layer.x)
        self.old.release(layer.y)
        return parts[0], parts[1]

    def _bias(self, layer: LinearLayer, w: Floats) -> Floats | None:
        """[g, O]; None where the layer has none that is stored."""
        if not layer.b or (layer.linear.b is None and layer.adder is None):
            return None
        if layer.adder is not None:
            return np.zeros((w.shape[0], w.shape[2]))
        return layer.linear.bias(self.new.constant(layer.b).astype(np.float64))

    def _give_bias(self, layer: LinearLayer, bias: Floats) -> None:
        old = self.new.constant(layer.b)
        if layer.adder is not None:
            (key, i), value = layer.adder, old + bias.reshape(-1).astype(old.dtype)
        else:
            assert layer.linear.b is not None
            key, i = layer.key, layer.linear.b
            value = layer.linear.stored_bias(bias).reshape(old.shape).astype(old.dtype)
        self.sparse.biases[key, i] = value
        self.new.replace(self.new.maker[key], {i: value})

    def _give(self, layer: LinearLayer, weight: SparseWeight) -> None:
        """The layer of the sparse model gets its weights."""
        matrix = weight.matrix(self.sparse.values[weight.tensor]) * getattr(layer.linear, "alpha", 1.0)
        old = self.new.constant(layer.w)
        kernel = np.ascontiguousarray(layer.linear.kernel(matrix).astype(old.dtype))
        read = self.new.as_read(layer.w, kernel)
        kernel = kernel if read is None else read
        if layer.loop:
            self.new.replace(layer.node, {layer.linear.w: kernel}, layer.key)
        else:
            self.new.replace(self.new.maker[layer.key], {layer.linear.w: kernel})


def _second(moments: Moments, centred: bool) -> Floats:
    """[g, K, K]: covariance or raw second moments, with what rounding may have taken from the diagonal."""
    raw = moments.xx / max(moments.count, 1)
    size = raw.shape[1]
    rounding = ROUNDING * np.trace(raw, axis1=1, axis2=2)[:, None, None] / size
    return np.asarray((moments.covariance() if centred else raw) + rounding * np.eye(size))
