"""Layers in different branches that read one weight: it is fitted to what all of them see.

With samples of branch i, X_i and Y_i, and a bias b_i that the branch may have of its own,

    W = argmin sum_i |Y_i - X_i W - b_i|^2 + lambda |W - W0|^2

so their covariances are added, each around its own mean. One layer alone is a pool of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnxprune.calibrate.moments import Moments
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import Floats

T = TypeVar("T")

LARGE = 256  # inputs from which on a layer's covariance is large
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
START = 3  # of these, the one that is best most often


@dataclass(frozen=True)
class Pool:
    """Layers with the same weight and bias, with what they read and should give: on fitted samples, on held-out samples.

    bias: [g, O], as it is. is_free: may it change?
    """

    layers: list[LinearLayer]
    bias: Floats
    is_free: bool
    train: Moments
    held: Moments

    def bias_for(self, w: Floats) -> Floats:
        """The best bias with these weights."""
        if not self.is_free or not self.train.count:
            return self.bias
        return np.asarray(self.train.mean_y - np.einsum("gk,gko->go", self.train.mean_x, w))

    def moments(self) -> tuple[Floats, Floats]:
        """What a fit needs of the inputs [g, K, K] and of the wanted outputs [g, K, O], per position."""
        if self.is_free:
            return self.train.covariance(), self.train.cross_covariance()
        n = max(self.train.count, 1)
        return self.train.xx / n, self.train.xy / n


def error(pools: Sequence[Pool], w: Floats, biases: Sequence[Floats]) -> float:
    """Mean square error on held-out samples, summed over outputs."""
    each = [float(p.held.error(w, b).sum()) for p, b in zip(pools, biases, strict=True)]
    return each[0] if len(each) == 1 else float(np.average(each, weights=_weights([p.held.count for p in pools])))


def variance(pools: Sequence[Pool]) -> float:
    """Of the wanted outputs, summed over them."""
    each = [float(p.held.variance_y().sum()) for p in pools]
    return each[0] if len(each) == 1 else float(np.average(each, weights=_weights([p.held.count for p in pools])))


class Regression:
    """Ridge regressions of pools towards w0 [g, K, O]: gives the weights for a ridge, in units of the mean variance of the inputs."""

    def __init__(self, pools: Sequence[Pool], w0: Floats) -> None:
        a, c = pools[0].moments()
        if len(pools) > 1:
            weights = _weights([p.train.count for p in pools])
            a, c = weights[0] * a, weights[0] * c
            for pool, weight in zip(pools[1:], weights[1:], strict=True):
                more = pool.moments()
                a, c = a + weight * more[0], c + weight * more[1]
        self.a, self.c, self.w0 = a, c, w0
        diagonal = np.einsum("gkk->gk", a)
        self.mean, self.plain = diagonal.mean(axis=1, keepdims=True), diagonal.copy()

    def __call__(self, ridge: float) -> Floats:
        damping = ridge * self.mean + 1e-12
        np.einsum("gkk->gk", self.a)[:] = self.plain + damping  # in place: a layer's covariance may be large
        return _solved(self.a, self.c + damping[:, :, None] * self.w0)


def downhill(trial: Callable[[float], T], error: Callable[[T], float]) -> T:
    """The trial with the least error over `RIDGES`, from `START` on as long as it falls: with more ridge the error falls and then rises."""
    k, best = START, trial(RIDGES[START])
    for step in (1, -1):
        while 0 <= k + step < len(RIDGES):
            found = trial(RIDGES[k + step])
            if not error(found) < error(best):
                break
            k, best = k + step, found
        if k > START:
            break
    return best


def _solved(a: Floats, c: Floats) -> Floats:
    """w [g, K, O] of a w = c, with a [g, K, K] symmetric: a large one that is positive definite takes half the work."""
    if a.shape[1] >= LARGE:
        from scipy.linalg import cho_factor, cho_solve

        try:
            factors = (cho_factor(x, lower=True, check_finite=False) for x in a)
            return np.stack([cho_solve(f, y, check_finite=False) for f, y in zip(factors, c, strict=True)])
        except np.linalg.LinAlgError:  # by rounding it is not
            pass
    return np.asarray(np.linalg.solve(a, c))


def _weights(counts: Sequence[int]) -> Floats:
    return np.asarray(counts, np.float64) / max(sum(counts), 1)
