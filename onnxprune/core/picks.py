"""Which positions of a layer's output are looked at."""

from __future__ import annotations

import numpy as np

from onnxprune.core.linear import Picks

POSITIONS = 40_000


def allotted(inputs: int, samples: int) -> int:
    """Positions to take per sample, for a layer with this many inputs per output: enough for the fit, bounded in work."""
    wanted = max(2 * inputs, min(POSITIONS, int(2e11 / inputs**2)))
    return -(-wanted // samples)


def pick(positions: int, count: int, seed: tuple[int, ...]) -> Picks:
    """`count` positions without repetition, in order."""
    if count >= positions:
        return np.arange(positions)
    return np.sort(np.random.default_rng(seed).choice(positions, count, replace=False, shuffle=False))
