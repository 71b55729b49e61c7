"""Whole models that were made and judged on the way to the one that is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["chosen", "passed", "failed", "slower", "not taken"]


@dataclass(frozen=True)
class Tried:
    """One of them.

    asked: what it was made for, in words.
    macs: share of the original's multiply-accumulates that it keeps.
    time: share of the original's time that it takes; null where it was not timed.
    loss: what it loses; null where that was not measured.
    measure: what the loss is: a metric's name, or `expected damage` (that of every group alone, added up).
    outcome: `chosen`, `passed` (it keeps to the limit, but a smaller one does, too), `failed` (it loses too much), `slower` (than was asked
        for) or `not taken` (another is as fast and loses less, or is nearer to what was asked).
    """

    asked: str
    macs: float
    time: float | None
    loss: float | None
    measure: str
    outcome: Outcome
