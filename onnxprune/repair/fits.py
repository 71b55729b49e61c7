"""What a repair did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fit:
    """What became of one layer: relative errors on held-out samples before and after, and the ridge.

    layer: the first one, where layers in different branches share their weight.
    ridge: None where the layer stayed as it was, infinite where only its bias was fitted.
    """

    layer: str
    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class Repair:
    """recover: how; changed: (node key, input) of every constant that was fitted; before, after: damage on held-out samples.

    unpaired: layers that were left out, as other values pick other rows for them than in the original.
    """

    recover: str
    fits: tuple[Fit, ...]
    changed: tuple[tuple[str, int], ...]
    before: float | None = None
    after: float | None = None
    unpaired: tuple[str, ...] = ()
