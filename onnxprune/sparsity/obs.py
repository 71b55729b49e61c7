"""Set weights of one layer to zero and let the others make up for it, from second moments of its inputs.

With inputs of second moments H and W [K, O], setting row k of some outputs to zero is repaired best by

    w -= w_k / [G]_kk  G_:k,     G = H^-1,       at the cost  w_k^2 / [G]_kk

(Hassibi & Stork 1993). Going through the inputs in order, with the inputs before k no longer changed, G is that of the inputs
left; the rows of the Cholesky factor U of H^-1 = U' U are all of them at once, for all outputs (SparseGPT, Frantar & Alistarh
2023). Which weights of the next few inputs go is decided on what they have become by then.

Going in order, the last inputs have nobody left to make up for them. So once it is settled which weights stay, they are brought to the
minimum of the same square, tr((W - W*)' H (W - W*)), by conjugate gradients, all outputs at once (`refined`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array
from onnxprune.ops.linear import Floats
from onnxprune.sparsity.targets import Pattern, outside_pattern, smallest

DAMPING = 1e-2  # of the mean of H's diagonal
STEPS = 30
CONVERGED = 1e-16  # of the first residual, squared
BLOCK = 64  # inputs that are decided together
SINGLE = 1500  # inputs above which single precision has to do
Chooser = Callable[[int, int, Array], Bools]


def factor(h: Floats) -> Floats:
    """U [g, K, K], upper triangular, with U' U the inverse of the damped h [g, K, K]."""
    h = damped(h, DAMPING)
    inverse = np.linalg.inv(h.astype(np.float32) if h.shape[1] > SINGLE else h)
    inverse = (inverse + np.swapaxes(inverse, 1, 2)) / 2
    try:
        return np.swapaxes(np.linalg.cholesky(inverse), 1, 2)
    except np.linalg.LinAlgError:  # inputs too alike for single precision: then none makes up for another
        diagonal = np.maximum(np.diagonal(h, axis1=1, axis2=2), 1e-10)
        return np.asarray(np.eye(h.shape[1]) / np.sqrt(diagonal)[:, :, None])


def sweep(w: Array, u: Floats, choose: Chooser, starts: NDArray[np.int64]) -> Array:
    """w [g, K, O] with zeros where `choose` says, and the rest repaired.

    starts: first inputs of the stretches that are decided together; `choose(first, last, scores)` gives the mask [g, last - first, O] of
    one, on scores w^2 / u_kk^2 as they are by then.
    """
    w = w.astype(u.dtype)
    mask = np.zeros(w.shape, bool)
    diagonal = np.diagonal(u, axis1=1, axis2=2)[:, :, None]
    for block in _blocks(starts.tolist(), w.shape[1]):
        begin, end = block[0], block[-1]
        errors = np.zeros((w.shape[0], end - begin, w.shape[2]), w.dtype)
        for first, last in pairwise(block):
            part = slice(first, last)
            mask[:, part] = choose(first, last, np.square(w[:, part] / diagonal[:, part]))
            for k in range(first, last):
                error = np.where(mask[:, k], w[:, k], 0) / diagonal[:, k]
                w[:, k + 1 : end] -= u[:, k, k + 1 : end, None] * error[:, None, :]
                errors[:, k - begin] = error
        w[:, end:] -= np.swapaxes(u[:, begin:end, end:], 1, 2) @ errors
    w[mask] = 0
    return w


def _blocks(starts: list[int], inputs: int) -> list[list[int]]:
    """Edges of stretches, gathered until a block has `BLOCK` inputs; what is behind a block is updated once for all of it."""
    blocks, edges = [], [0]
    for edge in [*starts[1:], inputs]:
        edges.append(edge)
        if edge - edges[0] >= BLOCK or edge == inputs:
            blocks.append(edges)
            edges = [edge]
    return blocks


def damped(h: Floats, damping: float) -> Floats:
    """h [g, K, K] with `damping`, in units of the mean of its diagonal, added to it."""
    size = h.shape[1]
    added = damping * np.trace(h, axis1=1, axis2=2)[:, None, None] / size + 1e-10
    result: Floats = h + added * np.eye(size)
    return result


def refined(w: Array, best: Array, h: Floats, steps: int = STEPS) -> Array:
    """The weights of w [g, K, O] that are not zero, moved to minimise tr((w - best)' h (w - best)); zeros stay.

    Conjugate gradients with the diagonal of h as preconditioner, one problem per output.
    """
    w, h = w.astype(np.float64), h.astype(np.float64)
    free = w != 0
    scale = 1 / np.diagonal(h, axis1=1, axis2=2)[:, :, None]
    residual = np.where(free, h @ (best - w), 0)
    direction = scale * residual
    size = (residual * direction).sum(axis=1, keepdims=True)
    enough = CONVERGED * size
    for _ in range(steps):
        turned = np.where(free, h @ direction, 0)
        curve = (direction * turned).sum(axis=1, keepdims=True)
        open_ = (size > enough) & (curve > 0)
        along = np.divide(size, curve, out=np.zeros_like(size), where=open_)
        w += along * direction
        residual -= along * turned
        solved = scale * residual
        before, size = size, (residual * solved).sum(axis=1, keepdims=True)
        direction = solved + np.divide(size, before, out=np.zeros_like(size), where=open_) * direction
    return np.where(free, w, 0)


def by_count(count: int, shape: tuple[int, ...]) -> tuple[Chooser, NDArray[np.int64]]:
    """`count` weights of a matrix of this shape [g, K, O], the same share of every stretch."""
    rate = count / max(prod(shape), 1)
    per_input = shape[0] * shape[2]

    def choose(first: int, last: int, scores: Array) -> Bools:
        return smallest(scores, round(rate * last * per_input) - round(rate * first * per_input))

    return choose, np.arange(0, shape[1], BLOCK)


def by_pattern(pattern: Pattern, run: int, inputs: int) -> tuple[Chooser, NDArray[np.int64]]:
    """What is outside the pattern, stretch by stretch of `pattern.of` inputs."""

    def choose(first: int, last: int, scores: Array) -> Bools:
        return outside_pattern(scores, pattern, last - first)

    within = np.arange(0, run, pattern.of)
    return choose, (np.arange(0, inputs, run)[:, None] + within).ravel()


def sparing(plan: tuple[Chooser, NDArray[np.int64]], zeros: Bools) -> tuple[Chooser, NDArray[np.int64]]:
    """The same choice, after what is zero [g, K, O] already: that counts first, and stays."""
    choose, starts = plan

    def chosen(first: int, last: int, scores: Array) -> Bools:
        here = zeros[:, first:last]
        return choose(first, last, np.where(here, -1, scores)) | here

    return chosen, starts


def by_mask(mask: Bools) -> tuple[Chooser, NDArray[np.int64]]:
    """What was decided before."""
    return (lambda first, last, scores: mask[:, first:last]), np.arange(0, mask.shape[1], BLOCK)
