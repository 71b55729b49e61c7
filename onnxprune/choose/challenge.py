"""Other ways to choose widths challenge the best model: whoever is as fast in the whole model with less damage takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from onnxprune.choose.layers import Choice
from onnxprune.choose.trials import Trial

CHALLENGES, HALVINGS = 5, 8  # whole models of one kind that are timed to beat the best, and steps to the first one
BETTER = 0.98  # of the damage of the best: what the first of them must promise

Ask: TypeAlias = Callable[[float], Choice]
"""A choice by a share, of which less is bolder."""

Expected: TypeAlias = Callable[[float], tuple[Choice, float] | None]
"""The same with the damage that is expected of it; None where there is no such choice."""


class Measure(Protocol):
    """Times a choice; known: as it was timed before, whose rounds count, too."""

    def __call__(self, choice: Choice, known: Trial | None = None) -> Trial: ...


def challenged(
    best: Trial, expected: Expected, mildest: float, measured: Measure, known: Callable[[Choice], Trial | None]
) -> Trial:
    """The best, or what beats it: as fast as asked with less damage, in the whole model. known: a choice as it was timed before."""
    assert best.damage is not None
    found = _boldest_within(BETTER * best.damage, expected, mildest)
    fast, slow = 0.0, mildest
    for _ in range(CHALLENGES):
        if found is None or known(found[0]) is not None:
            break
        choice, share = found
        trial = measured(choice)
        if trial.is_fast:
            trial = measured(choice, trial)
        if trial.is_fast:
            best, fast = trial, share
        elif not fast:  # the boldest that is milder than the best is too slow
            break
        else:
            slow = share
        if trial.is_met:
            break
        share = (fast + slow) / 2
        milder = expected(share)
        found = (milder[0], share) if milder is not None and milder[1] < (best.damage or 0.0) else None
    return best


def _boldest_within(damage: float, expected: Expected, mildest: float) -> tuple[Choice, float] | None:
    """The choice by the least share of which no more damage is expected, and the share."""
    found, low, high = None, 0.0, mildest
    for _ in range(HALVINGS):
        share = (low + high) / 2
        asked = expected(share)
        if asked is not None and asked[1] <= damage:
            found, high = (asked[0], share), share
        else:
            low = share
    return found
