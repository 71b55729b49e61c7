"""What samples that no step has seen say about a loss: "with 90 % confidence it is at most D", and how many samples that takes.

A model passes where the chance to see as little loss as was seen, if the loss were D or more, is at most 10 %. Of losses that cannot
leave a range that holds for any number of samples:

- losses of 0 or 1 (another top class) are a biased coin: the exact binomial tail, `P(Binomial(n, D) <= seen)`;
- others (a drop of accuracy is -1, 0 or 1) are bet against: a gambler who stakes `l_k` on the loss being below D, with what was seen
  before, has `prod(1 + l_k (D - x_k))` times what he had, which grows ten times with a chance of 10 % at most if he is wrong
  (Waudby-Smith & Ramdas, arXiv 2010.09686; the stakes are theirs for a fixed number of samples).

A divergence has no such range, and a score such as F1 is no mean over samples. There the limit is Student's, of a jackknife over twenty
groups of samples: about right where no rare sample makes most of the loss, and said to be "about".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, exp, log

import numpy as np
from scipy.special import bdtr, stdtrit

from onnxprune.ops.linear import Floats

CONFIDENCE = 0.9
FEWEST = 20  # sources for a limit that is only about right, and groups of the jackknife
MANY = 1_000_000  # no more samples are asked for
STAKE = 0.75  # of all that the gambler has, at most
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """What a model lost on the sources set aside.

    each: `[n]`, the loss of each; or, without `bounds`, the values of the jackknife, `[FEWEST]`. bounds: what no loss is beyond.
    measured: the loss. sources: n.
    """

    each: Floats
    bounds: Bounds | None
    measured: float
    sources: int

    def shows(self, limit: float) -> bool:
        """Is the loss at most `limit`, with `CONFIDENCE`?"""
        return self._shows(limit, self.sources)

    def needed(self, limit: float) -> int | None:
        """How many sources like these would show it; None where none would, as the loss that was measured is above."""
        if not self.measured < limit:
            return None
        return _first(partial(self._shows, limit))

    def _shows(self, limit: float, count: int) -> bool:
        """With `count` sources like these."""
        if not np.isfinite(self.measured):
            return False
        if self.bounds is None:
            spread = float(self.each.std(ddof=1)) / len(self.each) ** 0.5 * (self.sources / count) ** 0.5
            return bool(self.measured + float(stdtrit(len(self.each) - 1, CONFIDENCE)) * spread <= limit)
        if limit >= self.bounds[1]:
            return True
        each = np.resize(self.each, count)
        if self.bounds[0] >= 0 and np.isin(self.each, (0.0, 1.0)).all():
            return bool(bdtr(np.floor(self.each.mean() * count + 1e-9), count, limit) <= 1 - CONFIDENCE)
        return winnings(each, limit, self.bounds) >= 1 / (1 - CONFIDENCE)


def winnings(each: Floats, limit: float, bounds: Bounds) -> float:
    """The most that a gambler against a mean loss of `limit` or more had on the way, who started with 1. each: losses, in chance order."""
    count = np.arange(1, len(each) + 1)
    before = np.concatenate([[0.0], np.cumsum(each)[:-1]])
    mean = (limit + before) / count
    squares = np.concatenate([[0.0], np.cumsum(np.square(each - mean))[:-1]])
    variance = (np.square((bounds[1] - bounds[0]) / 2) + squares) / count
    stake = np.minimum(np.sqrt(2 * log(1 / (1 - CONFIDENCE)) / (len(each) * variance)), STAKE / (bounds[1] - limit))
    had = float(np.log1p(stake * (limit - each)).cumsum().max(initial=0.0))
    return exp(min(had, 700.0))


def least(limit: float, bounds: Bounds | None, coin: bool) -> int | None:
    """How many sources show a limit even if nothing is lost; None where no number does. coin: are losses 0 or 1?"""
    if limit <= 0:
        return None
    if bounds is None or limit >= bounds[1]:
        return FEWEST
    if coin:
        return max(FEWEST, ceil(log(1 - CONFIDENCE) / log(1 - limit)))
    found = _first(lambda n: winnings(np.zeros(n), limit, bounds) >= 1 / (1 - CONFIDENCE))
    return None if found is None else max(FEWEST, found)


def _first(shows: Callable[[int], bool]) -> int | None:
    """The first number that shows it, to a per cent, where more do not show less."""
    low, high = 0, 1
    while not shows(high):
        low, high = high, 2 * high
        if high > MANY:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high
