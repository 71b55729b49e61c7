"""How long models take, in turn, and what their times say about which is faster: on a machine that does other things, too.

A round times every model once, each in a block of runs that takes a millisecond at least, in an order that turns from round to round. Load
hits both blocks of a round, so the ratio within a round says more than the times: the speedup is the median of the ratios, with the
interval that holds the median of 95 of 100 such measurements (order statistics, no assumption on the distribution).

    before, after = latency(OnnxRuntime(), [model, small], feeds)
    speedup(before.rounds, after.rounds).ratio
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil, isfinite, sqrt
from statistics import median
from typing import Literal, TypeAlias

from onnxprune.clock import Share, unshared
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.jobs import host
from onnxprune.model.interface import cut_feeds, interface_of, unmarked
from onnxprune.model.loaded import Model
from onnxprune.runtime.runner import Opened, Runner

BLOCK = 1.0  # milliseconds
MOST = 200  # runs in a block
LEAST = 3  # rounds
NOISY = 0.1  # width of an interval, as a share of what lies in it, that still says "equal"
Comparison: TypeAlias = Literal["faster", "slower", "equal", "too noisy"]


@dataclass(frozen=True)
class Times:
    """Milliseconds of one model.

    rounds: one number for each round, the median of its block of runs, which a run that was interrupted does not change. runs: of every
    counted run that the runner tells of.
    """

    rounds: tuple[float, ...]
    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return median(self.rounds)

    @property
    def is_noisy(self) -> bool:
        """Is it uncertain by more than a tenth how long a run takes?"""
        low, high = interval(self.rounds)
        return high - low > NOISY * self.median


def opened(runner: Runner, model: Model, feeds: Feeds, what: str = "the model") -> Opened:
    """A model opened where it is timed. feeds: may be those of its original, whose inputs may be larger (`model/interface.py`)."""
    fed = cut_feeds(interface_of(model.proto), feeds)
    return runner.open(model.beside(unmarked(model.proto)), fed, what)


@contextmanager
def opened_all(
    runner: Runner, models: Sequence[Model], feeds: Feeds, names: Sequence[str] = ()
) -> Iterator[list[Opened]]:
    """Several models, opened for as long as the block lasts. names: how messages call them."""
    with ExitStack() as stack:
        ready: list[Opened] = []
        for k, model in enumerate(models):
            ready.append(opened(runner, model, feeds, names[k] if names else "the model"))
            stack.callback(ready[-1].close)
        yield ready


def latency(
    runner: Runner,
    models: Sequence[Model],
    feeds: Feeds,
    *,
    repeats: int = 30,
    warmup: int = 3,
    seconds: float = 10.0,
    share: Share = unshared,
    names: Sequence[str] = (),
) -> list[Times]:
    """Open the models, time them in turn (`in_turn`) and close them. names: how messages call them. Raises `BadInputError`."""
    with opened_all(runner, models, feeds, names) as ready:
        return in_turn(ready, repeats, 0 if runner.warms_up else warmup, seconds, share)


def in_turn(
    models: Sequence[Opened], repeats: int = 30, warmup: int = 3, seconds: float = 10.0, share: Share = unshared
) -> list[Times]:
    """Times of each model in each of `repeats` rounds, after `warmup` rounds that do not count.

    Stops early, after at least three counted rounds, once `seconds` have passed. share: told how much is done. Waits until no job runs
    on this machine, and keeps those waiting that come (`jobs/host.py`).
    """
    with host.alone():
        return _in_turn(models, repeats, warmup, seconds, share)


def _in_turn(models: Sequence[Opened], repeats: int, warmup: int, seconds: float, share: Share) -> list[Times]:
    rounds: list[list[float]] = [[] for _ in models]
    single: list[list[float]] = [[] for _ in models]
    begin = time.perf_counter()
    runs = [1] * len(models)
    for k in range(warmup + repeats):
        if k >= warmup + LEAST and time.perf_counter() - begin > seconds:
            break
        share(max(k / (warmup + repeats), min(1.0, (time.perf_counter() - begin) / seconds)))
        order = range(len(models)) if k % 2 else reversed(range(len(models)))
        for m in order:
            times = checked(models[m].time(runs[m]))
            if k >= warmup:
                rounds[m].append(median(times))
                single[m].extend(times)
            else:
                runs[m] = min(MOST, max(1, ceil(BLOCK / median(times))))
    return [Times(tuple(r), tuple(s)) for r, s in zip(rounds, single, strict=True)]


def checked(times: Sequence[float]) -> Sequence[float]:
    """What a runner gave, if that can be milliseconds. Raises `BadInputError`."""
    if not len(times) or not all(isfinite(t) and t > 0 for t in times):
        shown = ", ".join(f"{t:g}" for t in times[:4]) or "no number"
        raise BadInputError(f"The runner gave {shown} as milliseconds; a time is a number above zero.")
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

    @property
    def verdict(self) -> Comparison:
        """What can be said of the second."""
        if self.is_measurable:
            return "faster" if self.ratio > 1 else "slower"
        return "too noisy" if self.high - self.low > NOISY * self.ratio else "equal"


def speedup(before: Sequence[float], after: Sequence[float]) -> Speedup:
    """before, after: milliseconds of the rounds, in their order. With fewer than six rounds the interval is all of them."""
    ratios = [a / max(b, 1e-9) for a, b in zip(before, after, strict=True)]
    return Speedup(median(ratios), *interval(ratios))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """From where to where a median is certain to 95 %."""
    ordered, n = sorted(values), len(values)
    # 1.96 standard deviations of a binomial number, counted from the middle
    first = max(0, int(n / 2 - 0.98 * sqrt(n)))
    return ordered[first], ordered[n - 1 - first]


def quantile(values: Sequence[float], share: float) -> float | None:
    """What so large a share of the values does not exceed, such as 0.99; None where there are too few for a value beyond it."""
    if len(values) * (1 - share) < 1 - 1e-9:
        return None
    return sorted(values)[ceil(share * len(values) - 1e-9) - 1]
