"""A model beside others: what it weighs, how fast it is and what it loses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One of the four. bytes: of the file; ms: median per run; divergence, top1: from the original, on held-out samples.

    top1: share of positions with another largest entry; None where the outputs have no classes. loss: by `--metric`.
    """

    name: str
    bytes: int
    ms: float
    divergence: float
    top1: float | None
    loss: float
