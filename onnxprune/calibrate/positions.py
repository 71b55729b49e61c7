"""Which positions of a layer's output are looked at."""

from __future__ import annotations

import numpy as np

from onnxprune.analyse.samples import Place
from onnxprune.ops.linear import Picks

POSITIONS = 40_000
ELEMENTS = 20_000_000
WHOLE = Place(0)


def allotted(inputs: int, groups: int, portions: int) -> int:
    """Positions to take per portion of samples, for a layer with so many inputs per output.

    Enough for the fit (twice the inputs at least), and the unfolded inputs stay bounded.
    """
    wanted = max(2 * inputs, min(POSITIONS, ELEMENTS // (inputs * groups)))
    return -(-wanted // portions)


def pick(positions: int, count: int, seed: tuple[int, ...], place: Place = WHOLE) -> Picks:
    """`count` positions of a portion spread evenly, each at random within its stretch, in order; those of them that a run has.

    positions: of the run; place: of the run in its portion, which has as many for each piece.
    """
    every, before = (positions * n // place.count for n in (place.of, place.first))
    if count >= every:
        return np.arange(positions)
    edges = np.linspace(0, every, count + 1)
    found = np.asarray(edges[:-1] + np.random.default_rng(seed).random(count) * np.diff(edges), np.int64) - before
    return found[(found >= 0) & (found < positions)]
