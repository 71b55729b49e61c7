"""How long models take, in turn, and what their times say about which is faster: on a machine that does other things, too.

A round times every model once, each in a block of runs that takes a millisecond at least, in an order that turns from round to round. Load
hits both blocks of a round, so the ratio within a round says more than the times: the speedup is the median of the ratios, with the
interval that holds the median of 95 of 100 such measurements (order statistics, no assumption on the distribution).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import median

from onnxprune.clock import Share, unshared
from onnxprune.groups.observation import Feeds
from onnxprune.model.interface import cut_feeds
from onnxprune.runtime.session import Session

BLOCK = 1e-3  # seconds
MOST = 200  # runs in a block


def latency(
    sessions: Sequence[Session],
    feeds: Feeds,
    repeats: int = 30,
    warmup: int = 3,
    seconds: float = 10.0,
    share: Share = unshared,
) -> list[list[float]]:
    """Milliseconds per run of each session, one number for each of `repeats` rounds.

    Stops early, after at least three counted rounds, once `seconds` have passed. share: told how much is done.
    """
    times: list[list[float]] = [[] for _ in sessions]
    fed = [cut_feeds(s.interface, feeds) for s in sessions]
    begin = time.perf_counter()
    runs = [1] * len(sessions)
    for k in range(warmup + repeats):
        if k >= warmup + 3 and time.perf_counter() - begin > seconds:
            break
        share(max(k / (warmup + repeats), min(1.0, (time.perf_counter() - begin) / seconds)))
        order = range(len(sessions)) if k % 2 else reversed(range(len(sessions)))
        for s in order:
            start = time.perf_counter()
            for _ in range(runs[s]):
                sessions[s].run(fed[s])
            taken = (time.perf_counter() - start) / runs[s]
            if k >= warmup:
                times[s].append(1000 * taken)
            else:
                runs[s] = min(MOST, max(1, ceil(BLOCK / max(taken, 1e-9))))
    return times


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the second of two models is: the median of the rounds' ratios, and its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_measurable(self) -> bool:
        """Is it certain which of the two is faster?"""
        return self.low > 1 or self.high < 1


def speedup(before: Sequence[float], after: Sequence[float]) -> Speedup:
    """before, after: milliseconds of the rounds, in their order. With fewer than six rounds the interval is all of them."""
    ratios = sorted(a / max(b, 1e-9) for a, b in zip(before, after, strict=True))
    n = len(ratios)
    # 1.96 standard deviations of a binomial number, counted from the middle
    first = max(0, int(n / 2 - 0.98 * sqrt(n)))
    return Speedup(median(ratios), ratios[first], ratios[n - 1 - first])
