"""Set weights of one layer to zero and let the others make up for it, from second moments of its inputs.

With inputs of second moments H and W [K, O], setting row k of some outputs to zero is repaired best by

    w -= w_k / [G]_kk  G_:k,     G = H^-1,       at the cost  w_k^2 / [G]_kk

(Hassibi & Stork 1993). Going through the inputs in order, with the inputs before k no longer changed, G is that of the inputs
left; the rows of the Cholesky factor U of H^-1 = U' U are all of them at once, for all outputs (SparseGPT, Frantar & Alistarh
2023). Which weights of the next few inputs go is decided on what they have become by then.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.core.classes import Bools
from onnxprune.core.linear import Floats
from onnxprune.core.observation import Array
from onnxprune.core.sparsity import Pattern, outside_pattern, smallest

DAMPING = 1e-2  # of the mean of H's diagonal
BLOCK = 64  # inputs that are decided together
SINGLE = 1500  # inputs above which single precision has to do
Chooser = Callable[[int, int, Array], Bools]


def factor(h: Floats) -> Floats:
    """U [g, K, K], upper triangular, with U' U the inverse of the damped h [g, K, K]."""
    size = h.shape[1]
    damping = DAMPING * np.trace(h, axis1=1, axis2=2) / size + 1e-10
    if size > SINGLE:
        h = h.astype(np.float32)
    inverse = np.linalg.inv(h + (damping[:, None, None] * np.eye(size)).astype(h.dtype))
    inverse = (inverse + np.swapaxes(inverse, 1, 2)) / 2
    return np.swapaxes(np.linalg.cholesky(inverse), 1, 2)


def costs(w: Array, u: Floats) -> Floats:
    """What each weight's loss costs after the repair of all inputs: w^2 / [H^-1]_kk, [g, K, O]."""
    return np.asarray(np.square(w) / np.square(u).sum(axis=1)[:, :, None])


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


def by_mask(mask: Bools) -> tuple[Chooser, NDArray[np.int64]]:
    """What was decided before."""
    return (lambda first, last, scores: mask[:, first:last]), np.arange(0, mask.shape[1], BLOCK)
