"""Which positions of a layer's output are looked at."""

from __future__ import annotations

import numpy as np

from onnxprune.ops.linear import Picks

POSITIONS = 40_000
ELEMENTS = 20_000_000


def allotted(inputs: int, groups: int, samples: int) -> int:
    """Positions to take per portion of samples, for a layer with so many inputs per output.

    Enough for the fit (twice the inputs at least), and the unfolded inputs stay bounded.
    """
    wanted = max(2 * inputs, min(POSITIONS, ELEMENTS // (inputs * groups)))
    return -(-wanted // samples)


def pick(positions: int, count: int, seed: tuple[int, ...]) -> Picks:
    """`count` positions spread evenly, each at random within its stretch, in order."""
    if count >= positions:
        return np.arange(positions)
    edges = np.linspace(0, positions, count + 1)
    return np.asarray(edges[:-1] + np.random.default_rng(seed).random(count) * np.diff(edges), np.int64)
