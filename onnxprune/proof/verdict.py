"""What the comparison with the masked original found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The oracle's finding: the largest deviation relative to the output's scale, and what was allowed."""

    error: float
    tolerance: float
    exact: bool
    noise: float | None
    masked: int


@dataclass(frozen=True)
class Drop:
    """The loss of the finished model by `metric` on `samples` samples that no step has seen."""

    metric: str
    allowed: float
    measured: float
    samples: int
