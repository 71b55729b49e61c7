"""Second moments of a layer's inputs (and outputs), accumulated chunk by chunk in float64.

With X [g, P, K] and Y [g, P, O]:  S_x = sum x, S_xx = X'X, S_y, S_xy = X'Y, S_yy = sum y^2 per output. Everything a ridge
regression or a surgeon needs follows from them; no sample has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxprune.groups.maps import Shape
from onnxprune.groups.observation import Array
from onnxprune.ops.linear import Floats, Linear, Picks

CHUNK = 1 << 24
WORTH = 4  # rows are worth a product once there are as many as a fourth of the inputs; then they take an eighth of what moments take


@dataclass
class Moments:
    """Sums over `count` positions; xy, y and yy are None where only inputs are looked at."""

    count: int
    x: Floats  # [g, K]
    xx: Floats  # [g, K, K]
    y: Floats  # [g, O]
    xy: Floats  # [g, K, O]
    yy: Floats  # [g, O]

    @staticmethod
    def empty(groups: int, inputs: int, outputs: int) -> Moments:
        return Moments(
            0,
            np.zeros((groups, inputs)),
            np.zeros((groups, inputs, inputs)),
            np.zeros((groups, outputs)),
            np.zeros((groups, inputs, outputs)),
            np.zeros((groups, outputs)),
        )

    def add(self, x: Array, y: Array | None = None) -> None:
        """x [g, p, K], y [g, p, O]. Products in the arrays' own precision (float32 at least), sums in float64."""
        x = x.astype(np.result_type(x.dtype, np.float32), copy=False)
        self.count += x.shape[1]
        turned = np.swapaxes(x, 1, 2)
        self.x += x.sum(axis=1, dtype=np.float64)
        if len(x) == 1:
            self.xx[0] += x[0].T @ x[0]  # a symmetric product: half the work
        else:
            self.xx += turned @ x
        if y is not None:
            y = y.astype(np.result_type(y.dtype, np.float32), copy=False)
            self.y += y.sum(axis=1, dtype=np.float64)
            self.xy += turned @ y
            self.yy += np.square(y, dtype=np.float64).sum(axis=1)

    def unfold(
        self,
        linear: Linear,
        x: Array,
        shape: Shape,
        picks: Picks,
        y: Array | None = None,
        theirs: Picks | None = None,
        *,
        waiting: Waiting | None = None,
    ) -> None:
        """Add a layer's inputs, and outputs of that shape, at picked positions; in parts, as unfolding multiplies them.

        theirs: the positions in `y`, where they are others there. waiting: where rows may wait for more of them, until its `finish`.
        """
        add = self.add if waiting is None else partial(waiting.add, self)
        if not picks.size:
            return
        groups, inputs = self.x.shape
        count = max(1, picks.size * inputs * groups // CHUNK)
        halves = (np.array_split(p, count) for p in (picks, picks if theirs is None else theirs))
        for mine, of_y in zip(*halves, strict=True):
            add(linear.rows(x, shape, mine), None if y is None else linear.targets(y, of_y))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.xx + other.xx,
            self.y + other.y,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    @property
    def mean_x(self) -> Floats:
        return self.x / max(self.count, 1)

    @property
    def mean_y(self) -> Floats:
        return self.y / max(self.count, 1)

    def covariance(self) -> Floats:
        """[g, K, K]; what is left of the moments once a bias takes the mean."""
        mean = self.mean_x
        return self.xx / max(self.count, 1) - mean[:, :, None] * mean[:, None, :]

    def covariance_of(self, group: int) -> Floats:
        """[K, K] of one group."""
        mean = self.mean_x[group]
        return np.asarray(self.xx[group] / max(self.count, 1) - np.outer(mean, mean))

    def cross_covariance(self) -> Floats:
        """[g, K, O]."""
        return self.xy / max(self.count, 1) - self.mean_x[:, :, None] * self.mean_y[:, None, :]

    def variance_y(self) -> Floats:
        """[g, O]."""
        return np.maximum(self.yy / max(self.count, 1) - self.mean_y**2, 0.0)

    def error(self, w: Array, b: Array) -> Floats:
        """Mean square error `[g, O]` of predicting Y by X w + b; w [g, K, O], b [g, O]."""
        n = max(self.count, 1)
        quadratic = np.einsum("gko,gko->go", w, self.xx @ w)
        cross = np.einsum("gko,gko->go", w, self.xy)
        linear = np.einsum("gk,gko->go", self.x, w)
        total = quadratic - 2 * cross + self.yy + 2 * b * linear - 2 * b * self.y + n * b**2
        return np.asarray(np.maximum(total / n, 0.0))


class Kept(MutableMapping[str, Moments]):
    """Moments of inputs, by layer key. Of each symmetric matrix X'X one triangle is kept; it is made whole again when it is read."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Moments, Floats]] = {}

    def __getitem__(self, key: str) -> Moments:
        rest, triangles = self._kept[key]
        size = rest.x.shape[1]
        whole = np.empty((len(triangles), size, size))
        for matrix, triangle in zip(whole, triangles, strict=True):
            first = 0
            for row in range(size):
                part = triangle[first : first + size - row]
                matrix[row, row:] = part
                matrix[row:, row] = part
                first += size - row
        return replace(rest, xx=whole)

    def __setitem__(self, key: str, moments: Moments) -> None:
        size = moments.x.shape[1]
        triangles = np.stack([np.concatenate([m[row, row:] for row in range(size)]) for m in moments.xx])
        self._kept[key] = replace(moments, xx=np.empty((len(moments.xx), 0, 0))), triangles

    def share(self, key: str, other: str) -> None:
        """`key` has the moments of `other`; they are kept once."""
        self._kept[key] = self._kept[other]

    def __delitem__(self, key: str) -> None:
        del self._kept[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


class Waiting:
    """Rows of layers' inputs, and outputs, that wait until there are enough for a product (`WORTH`).

    A product of few rows is quickly made, but adding it takes K x K numbers every time, however few rows it is of.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Moments, list[tuple[Array, Array | None]]]] = {}

    def add(self, into: Moments, x: Array, y: Array | None = None) -> None:
        """x [g, p, K], y [g, p, O], see `Moments.add`. They must not be changed afterwards."""
        _, rows = self._rows.setdefault(id(into), (into, []))
        rows.append((x, y))
        if WORTH * sum(r.shape[1] for r, _ in rows) >= x.shape[2]:
            self._enter(id(into))

    def finish(self) -> None:
        """Add all that still waits."""
        for key in list(self._rows):
            self._enter(key)

    def _enter(self, key: int) -> None:
        into, rows = self._rows.pop(key)
        if len(rows) == 1:
            into.add(*rows[0])
            return
        y = [b for _, b in rows if b is not None]
        into.add(np.concatenate([a for a, _ in rows], axis=1), np.concatenate(y, axis=1) if y else None)
