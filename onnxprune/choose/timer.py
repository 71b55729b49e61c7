"""Times small graphs, each form once, and remembers how their sum compares with the time of whole models.

    whole = gamma + alpha * sum of the pieces

alpha and gamma are fitted to the whole models that were timed: the original, and what a search has tried. Where few were, alpha is near 1
in proportion to the original, and gamma what a run of a model costs that computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import ceil
from statistics import median
from time import perf_counter

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune import runtime
from onnxprune.choose.kept_times import KeptTimes
from onnxprune.choose.small_graph import SmallGraph
from onnxprune.clock import Share, unshared
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.jobs import host
from onnxprune.model.loaded import Model

BLOCK = 1.0  # milliseconds of runs that make one time
BLOCKS, SLOW, FEWER = (
    5,
    10.0,
    3,
)  # times of a graph, of which the least counts; of one that takes longer than SLOW ms, so many
MOST = 100  # runs in a block
PRIOR = 0.1  # weight of what alpha and gamma are without a fit, a time of a whole model being 1
SECONDS = 150.0  # of measuring tables
NOTHING = "nothing"  # form of the graph that computes nothing


@dataclass(frozen=True)
class Fit:
    """What the sum of the pieces' times has to be multiplied by, and what is added, in milliseconds."""

    alpha: float = 1.0
    gamma: float = 0.0

    def __call__(self, total: float) -> float:
        return self.gamma + self.alpha * total

    def total(self, ms: float) -> float:
        """The sum of pieces of a model that takes so long."""
        return max(0.0, (ms - self.gamma) / self.alpha)


Elsewhere = Callable[[Sequence[SmallGraph]], Mapping[str, float | None]]
"""Milliseconds of small graphs by their form, measured on other machines of the same kind; None where the engine does not run one. Those
that are left out are measured here."""


class Timer:
    """runner: where models are timed. kept: times that are known. seconds: of measuring tables, at most. batch: samples of a run of a whole
    model, where not as in the inputs. warmup: rounds of it that do not count. elsewhere: measures so many small graphs (`at_once`) on other
    machines.
    share: told how much of a table is measured."""

    def __init__(
        self,
        runner: runtime.Runner,
        kept: KeptTimes | None = None,
        seconds: float = SECONDS,
        *,
        batch: int | None = None,
        warmup: int = 3,
        elsewhere: Elsewhere | None = None,
        at_once: int = 1,
    ) -> None:
        self.batch, self.warmup = batch, 0 if runner.warms_up else warmup
        self.runner, self.kept, self.seconds = runner, KeptTimes(runner.key) if kept is None else kept, seconds
        self.elsewhere, self.at_once = elsewhere, at_once
        self.fit = Fit()
        self.share: Share = unshared
        self.measured = self.found = 0
        self.spent = 0.0
        self._seen: set[str] = set()
        self._failed: set[str] = set()

    @property
    def is_spent(self) -> bool:
        """Is the time for measuring tables used up?"""
        return self.spent >= self.seconds

    def __call__(self, graphs: Sequence[SmallGraph]) -> list[float | None]:
        """Milliseconds of small graphs, without what a run costs that computes nothing; None where the engine does not run one."""
        self._know([_nothing(), *graphs])
        found = [self.kept.get(g.form) for g in graphs]
        return [None if ms is None else max(ms - self.overhead, 0.02 * ms) for ms in found]

    @property
    def overhead(self) -> float:
        """Milliseconds of a run that computes nothing."""
        self._know([_nothing()])
        return self.kept.get(NOTHING) or 0.0

    def _know(self, graphs: Sequence[SmallGraph]) -> None:
        """Measure what is not known: each form once."""
        new: dict[str, SmallGraph] = {}
        for graph in graphs:
            if self.kept.get(graph.form) is None:
                if graph.form not in self._failed:
                    new.setdefault(graph.form, graph)
            elif graph.form not in self._seen:
                self.found += 1
                self._seen.add(graph.form)
        if not new:
            return
        start = perf_counter()
        times = dict(self.elsewhere(list(new.values()))) if self.elsewhere is not None else {}
        for form, graph in new.items():
            ms = times[form] if form in times else attempted(self.runner, graph)
            if ms is None:
                self._failed.add(form)
                continue
            self.measured += 1
            self._seen.add(form)
            self.kept.put(form, ms)
        self.spent += perf_counter() - start

    def learn(self, whole: Sequence[tuple[float, float]]) -> None:
        """Fit alpha and gamma. whole: (sum of the pieces, time of the whole model), the original first. By least
        squares of relative errors.
        """
        total, ms = whole[0]
        base = self.overhead if self.overhead < 0.5 * ms else 0.0
        prior = Fit((ms - base) / max(total, 1e-9), base)
        rows = np.array([[s / t, 1 / t] for s, t in whole] + [[PRIOR * total / ms, 0], [0, PRIOR / ms]])
        aims = np.array([1.0] * len(whole) + [PRIOR * prior.alpha * total / ms, PRIOR * prior.gamma / ms])
        alpha, gamma = np.linalg.lstsq(rows, aims, rcond=None)[0].tolist()
        is_sound = alpha > 0.2 * prior.alpha and gamma > -0.2 * ms
        self.fit = Fit(alpha, gamma) if is_sound else prior


def attempted(runner: runtime.Runner, graph: SmallGraph) -> float | None:
    """Milliseconds of a small graph, while no job runs on this machine; None where the engine does not run it."""
    with host.alone(), suppress(BadInputError):
        return timed(runner, graph.model, graph.feeds)
    return None


def timed(runner: runtime.Runner, model: Model, feeds: Feeds) -> float:
    """Milliseconds of one run: the least of a few blocks of runs, as whatever else a machine does only adds. Raises `BadInputError`."""
    opened = runtime.opened(runner, model, feeds, "a piece of the model")
    try:
        first = _mean(opened.time(1))
        if runner.warms_up:
            return first
        first = min(first, _mean(opened.time(1)))
        runs = min(MOST, max(1, ceil(BLOCK / first)))
        blocks = BLOCKS if first < SLOW else FEWER
        return min(_mean(opened.time(runs)) for _ in range(blocks))
    finally:
        opened.close()


def _mean(times: Sequence[float]) -> float:
    checked = runtime.checked(times)
    return median(checked) if len(checked) > 2 else sum(checked) / len(checked)


@cache
def _nothing() -> SmallGraph:
    one = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", one[:1], one[1:])
    model = onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return SmallGraph(Model(model), {"x": np.zeros(1, np.float32)}, NOTHING)
