"""A node as a matrix product, so that its weights can be scored and re-fitted from second moments of its inputs.

    Y[g] = X[g] W[g] + b[g]        X [g, P, K], W [g, K, O], Y [g, P, O]

P counts positions of the output (samples x space), K the inputs of one output, g the groups of a grouped convolution.
For a convolution X is the im2col of its input, zeros of the padding included. Rules of operators build these
(`Rule.linear`); calibration, scores and repair work with them. A `Linear` has

    x, w, b         input positions of the node; b is None where the operator has no bias
    groups          g; channel_axis: of x; channels [g, K]: the channel of x that each column reads
    positions(y)    P for an output of shape y
    rows(x, y, picks), targets(y, picks)         X [g, p, K] and Y [g, p, O] at picked positions
    matrix(w), kernel(matrix)                    W [g, K, O] and back
    bias(b), stored_bias(values)                 b [g, O] (None where it is not one number per output) and back
    is_rounded      w is kept in codes, so that matrix(kernel(W)) is W rounded
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.groups.maps import Shape
from onnxprune.groups.observation import Array

Floats = NDArray[np.float64]
Picks = NDArray[np.int64]


@dataclass(frozen=True)
class LinearContext:
    """What a `linear` rule sees: attributes and concrete shapes of the inputs (None where skipped); `is_constant` per input.

    value: of a constant input; None where only shapes are looked at.
    """

    attrs: dict[str, Any]
    shapes: tuple[Shape | None, ...]
    is_constant: tuple[bool, ...]
    value: Callable[[int], Array | None] = lambda i: None

    def has(self, i: int) -> bool:
        return i < len(self.shapes) and self.shapes[i] is not None

    def shape(self, i: int) -> Shape:
        found = self.shapes[i]
        assert found is not None
        return found


@dataclass(frozen=True)
class Product:
    """y = x W: the contracted axis is the last of x (`x_first`: the one before), weights [K, O] or transposed.

    `alpha`, `beta`: scales of Gemm. `left`: the weight is the left operand, y = W x.
    """

    width: int
    transposed: bool = False
    x_transposed: bool = False
    left: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    b: int | None = None

    groups = 1
    is_rounded = False

    @property
    def x(self) -> int:
        return 1 if self.left else 0

    @property
    def w(self) -> int:
        return 0 if self.left else 1

    @property
    def channel_axis(self) -> int:
        return -2 if self.left or self.x_transposed else -1

    @property
    def channels(self) -> NDArray[np.int64]:
        return np.arange(self.width)[None]

    def positions(self, y: Shape) -> int:
        return prod(y) // y[-2 if self.left else -1]

    def rows(self, x: Array, y: Shape, picks: Picks) -> Array:
        rows = np.moveaxis(x, self.channel_axis, -1)
        if self.left and rows.ndim < len(y):
            rows = np.broadcast_to(rows, (*y[: len(y) - rows.ndim], *rows.shape))
        return np.asarray(rows.reshape(-1, self.width)[picks][None])

    def targets(self, y: Array, picks: Picks) -> Array:
        y = np.moveaxis(y, -2, -1) if self.left else y
        return np.asarray(y.reshape(-1, y.shape[-1])[picks][None])

    def matrix(self, w: Array) -> Array:
        return np.asarray((w.T if self.transposed else w)[None] * self.alpha)

    def kernel(self, matrix: Array) -> Array:
        kernel = matrix[0] / self.alpha
        return np.ascontiguousarray(kernel.T if self.transposed else kernel)

    def bias(self, b: Array) -> Array | None:
        flat = b.size == b.shape[-1] if b.ndim else False
        return np.asarray(b.reshape(1, -1) * self.beta) if flat else None

    def stored_bias(self, values: Array) -> Array:
        return np.asarray(values.reshape(-1) / self.beta)


def unpacked(stored: Array, bits: int) -> Array:
    """Codes of 2, 4 or 8 bits `[.., bytes * 8 / bits]` of bytes `[.., bytes]`, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = stored[..., None] >> shifts & np.uint8((1 << bits) - 1)
    return np.asarray(codes.reshape(*stored.shape[:-1], -1))


def packed(codes: Array, bits: int) -> Array:
    """Bytes of codes: `unpacked` backwards."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = codes.reshape(*codes.shape[:-1], -1, shifts.size).astype(np.uint8) << shifts
    return np.asarray(np.bitwise_or.reduce(parts, axis=-1))


@dataclass(frozen=True)
class Blocks(Product):
    """y = x W with W kept as codes `[O, blocks, bytes]`: W[k, o] = (code - zero) * scale, with one of each per block of `size` inputs.

    stored: shape of the codes. scales, zeros: `[O, blocks]`.
    """

    bits: int = 4
    size: int = 32
    stored: Shape = ()
    scales: Floats = field(default_factory=lambda: np.ones((1, 1)), repr=False, compare=False)
    zeros: Floats = field(default_factory=lambda: np.zeros((1, 1)), repr=False, compare=False)

    is_rounded = True

    def matrix(self, w: Array) -> Array:
        codes = unpacked(w.astype(np.uint8).reshape(*self.scales.shape, -1), self.bits)
        values = (codes - self.zeros[..., None]) * self.scales[..., None]
        return np.ascontiguousarray(values.reshape(len(self.scales), -1)[:, : self.width].T)[None]

    def kernel(self, matrix: Array) -> Array:
        """The nearest codes; the scales stay."""
        outputs, blocks = self.scales.shape
        values = np.zeros((outputs, blocks * self.size))
        values[:, : self.width] = matrix[0].T
        scales = np.where(self.scales == 0, 1.0, self.scales)[..., None]
        found = np.rint(values.reshape(outputs, blocks, -1) / scales + self.zeros[..., None])
        return packed(np.clip(found, 0, (1 << self.bits) - 1), self.bits).reshape(self.stored)


@dataclass(frozen=True)
class Sliding:
    """A convolution of any rank: x [N, g*i, S...], W [g*o, i, k...]; `before` is the padding in front of each spatial axis.

    `auto_pad`: SAME_UPPER or SAME_LOWER, then the padding follows from the sizes.
    `upsampled`: a ConvTranspose, W [g*i, o, k...], seen as a convolution of the input with zeros between its elements.
    """

    groups: int
    channels_in: int
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    upsampled: tuple[int, ...] | None = None
    auto_pad: str = ""
    b: int | None = 2

    x = 0
    w = 1
    channel_axis = 1
    is_rounded = False

    @property
    def channels(self) -> NDArray[np.int64]:
        inner = self.channels_in // self.groups
        within = np.tile(np.arange(inner), prod(self.kernel_shape))
        return within[None] + np.arange(self.groups)[:, None] * inner

    def positions(self, y: Shape) -> int:
        return y[0] * prod(y[2:])

    def rows(self, x: Array, y: Shape, picks: Picks) -> Array:
        x = np.moveaxis(x, 1, -1)
        if self.upsampled is not None:
            spread = np.zeros(
                (
                    x.shape[0],
                    *((n - 1) * s + 1 for n, s in zip(x.shape[1:-1], self.upsampled, strict=True)),
                    x.shape[-1],
                ),
                x.dtype,
            )
            spread[(slice(None), *(slice(None, None, s) for s in self.upsampled))] = x
            x = spread
        at = np.unravel_index(picks, (y[0], *y[2:]))
        rows = self._windows(x, y, at).reshape(
            picks.size, prod(self.kernel_shape), self.groups, self.channels_in // self.groups
        )
        return np.ascontiguousarray(rows.transpose(2, 0, 1, 3)).reshape(self.groups, picks.size, -1)

    def _windows(self, x: Array, y: Shape, at: tuple[Picks, ...]) -> Array:
        """`[positions, kernel, channels]` of x [N, S..., C], from the padded input as one list of pixels."""
        before = self._before(x.shape[1:-1], y[2:])
        pads = []
        for axis, size in enumerate(x.shape[1:-1]):
            reach = (self.kernel_shape[axis] - 1) * self.dilations[axis] - before[axis]
            last = (y[axis + 2] - 1) * self.strides[axis] + reach
            pads.append((max(0, before[axis]), max(0, last - size + 1)))
        if prod(self.kernel_shape) == 1 and not any(map(any, pads)):
            return np.asarray(x[(at[0], *(a * s - b for a, s, b in zip(at[1:], self.strides, before, strict=True)))])
        x = np.pad(x, ((0, 0), *pads, (0, 0)))
        first = at[0]
        taps = np.zeros((), np.int64)
        for axis, size in enumerate(x.shape[1:-1]):
            first = first * size + at[axis + 1] * self.strides[axis] + pads[axis][0] - before[axis]
            taps = np.add.outer(taps * size, np.arange(self.kernel_shape[axis]) * self.dilations[axis])
        return x.reshape(-1, x.shape[-1]).take(np.add.outer(first, taps.ravel()), axis=0)

    def _before(self, size: Shape, out: Shape) -> tuple[int, ...]:
        if not self.auto_pad:
            return self.before
        each = zip(size, out, self.strides, self.kernel_shape, self.dilations, strict=True)
        total = [max(0, (o - 1) * s + (k - 1) * d + 1 - n) for n, o, s, k, d in each]
        return tuple(t // 2 if self.auto_pad == "SAME_UPPER" else t - t // 2 for t in total)

    def targets(self, y: Array, picks: Picks) -> Array:
        at = np.unravel_index(picks, (y.shape[0], *y.shape[2:]))
        rows = np.moveaxis(y, 1, -1)[at]
        return np.asarray(rows.reshape(picks.size, self.groups, -1).transpose(1, 0, 2))

    def matrix(self, w: Array) -> Array:
        inner = self.channels_in // self.groups
        if self.upsampled is None:
            w = w.reshape(self.groups, -1, inner, prod(self.kernel_shape))  # g o i k
            return np.ascontiguousarray(w.transpose(0, 3, 2, 1)).reshape(self.groups, -1, w.shape[1])
        w = w.reshape(self.groups, inner, -1, prod(self.kernel_shape))[..., ::-1]  # g i o k
        return np.ascontiguousarray(w.transpose(0, 3, 1, 2)).reshape(self.groups, -1, w.shape[2])

    def kernel(self, matrix: Array) -> Array:
        inner, outer = self.channels_in // self.groups, matrix.shape[-1]
        w = matrix.reshape(self.groups, prod(self.kernel_shape), inner, outer)
        if self.upsampled is None:
            return np.ascontiguousarray(w.transpose(0, 3, 2, 1)).reshape(self.groups * outer, inner, *self.kernel_shape)
        return np.ascontiguousarray(w.transpose(0, 2, 3, 1)[..., ::-1]).reshape(
            self.channels_in, outer, *self.kernel_shape
        )

    def bias(self, b: Array) -> Array | None:
        return b.reshape(self.groups, -1)

    def stored_bias(self, values: Array) -> Array:
        return values.reshape(-1)


Linear = Product | Sliding
LinearRule = Callable[[LinearContext], Linear | None]
