"""Whole models that were timed on the way to a target of time, and which sum of pieces to try next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from onnxprune import runtime
from onnxprune.choose.allocate import remedies
from onnxprune.choose.budget import Budget, flag_of
from onnxprune.choose.layers import Choice
from onnxprune.choose.timer import Timer
from onnxprune.choose.tried import Tried
from onnxprune.errors import TargetNotReachableError

TOLERANCE = 0.05
"""How much faster than asked a model may be, as a share of the time asked for, before a slower one is looked for."""

NAMED = 3  # pieces in a message
CLOSE = 0.002  # sums of pieces that differ by less are one


@dataclass(frozen=True, eq=False)
class Trial:
    """choice: what was timed. total: the sum of its pieces. speed: against the original. excess: its time by the one asked for.
    rounds: milliseconds of the original and of it. damage: what is expected of it; None where that was not measured.
    """

    choice: Choice
    total: float
    expected: float
    speed: runtime.Speedup
    excess: float
    rounds: tuple[tuple[float, ...], tuple[float, ...]]
    damage: float | None = None

    @property
    def is_fast(self) -> bool:
        """Is it as fast as asked?"""
        return self.excess <= 1

    @property
    def is_met(self) -> bool:
        """Is it as fast as asked, and not much faster?"""
        return 1 - TOLERANCE <= self.excess <= 1


class Between:
    """Sums of pieces between which a model as fast as asked lies: above `fast`, below `slow`."""

    def __init__(self) -> None:
        self.fast, self.slow = 0.0, inf

    def add(self, total: float, is_fast: bool) -> None:
        if is_fast:
            self.fast = max(self.fast, total)
        else:
            self.slow = min(self.slow, total)

    def nearest(self, total: float) -> float:
        """This sum, where it lies between; else one that does."""
        if self.fast < total < self.slow:
            return total
        if self.slow == inf:
            return self.fast * (1 + TOLERANCE / 2)
        return (self.fast + self.slow) / 2 if self.fast else self.slow * (1 - TOLERANCE / 2)

    @property
    def is_closed(self) -> bool:
        return self.slow < inf and self.slow - self.fast <= CLOSE * self.slow


def least_harm(trials: list[Trial]) -> Trial:
    """Of models that are fast enough, the one of which least damage is expected; where that is unknown, the slowest."""
    known = [t for t in trials if t.damage is not None]
    if known:
        return min(known, key=lambda t: (t.damage, -t.excess))
    return max(trials, key=lambda t: t.excess)


def is_same(a: Choice, b: Choice) -> bool:
    return a.subject.mark == b.subject.mark and np.array_equal(a.removed, b.removed)


def tried_models(trials: Sequence[Trial], best: Trial, macs: int) -> tuple[Tried, ...]:
    """All that were timed, in the order of their times. macs: of the original."""
    return tuple(
        Tried(
            asked=f"{t.expected:.3g} ms expected",
            macs=round(t.choice.subject.costs.macs(t.choice.removed) / max(1, macs), 4),
            time=round(1 / t.speed.ratio, 4),
            loss=t.damage,
            measure="expected damage",
            outcome="chosen" if t is best else "not taken" if t.is_fast else "slower",
        )
        for t in sorted(trials, key=lambda t: t.speed.ratio)
    )


def unreachable(
    flag: str, trial: Trial, problem: str, ms: float, timer: Timer, ways: Sequence[str]
) -> TargetNotReachableError:
    """How far it gets, and why. trial: the fastest. problem: what the table said. ms: of the original. ways: what else can be done."""
    costs = trial.choice.subject.costs
    pieces = sorted(costs.of("latency").per_node(trial.choice.removed).items(), key=lambda x: -x[1])
    left = timer.fit(trial.total)
    nodes = {n.key: n for n in costs.analysis.view.graph.walk()}
    most = ", ".join(f"{nodes[key]} ({taken / max(left, 1e-12):.0%})" for key, taken in pieces[:NAMED])
    held = problem[problem.find("What is left is held by") :].split(" Try ")[0] if "held by" in problem else ""
    return TargetNotReachableError(
        f"{flag} cannot be reached: the fastest model found is {trial.speed.ratio:.2f} times as fast as the original "
        f"({trial.speed.low:.2f} to {trial.speed.high:.2f}; {ms / trial.speed.ratio:.3g} of {ms:.3g} ms, {timer.runner.name}). Most of its "
        f"time is left in {most}.{f' {held}' if held else ''} {remedies(costs.analysis, *ways)}."
    )


def check_faster(budget: Budget, found: runtime.Speedup) -> None:
    """Raise `TargetNotReachableError` where the finished model, with its final weights, is certainly slower than the original."""
    if found.high < 1:
        raise TargetNotReachableError(
            f"{flag_of(budget.metric)} {budget.amount:g} was not kept: the finished model is {found.ratio:.2f} times as fast as the "
            f"original ({found.low:.2f} to {found.high:.2f}), so it is slower. Time it where nothing else runs."
        )
