"""Which point of a trade-off is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxprune.choose.explore_options import COSTS, Condition, parsed
from onnxprune.errors import BadInputError, TargetNotReachableError
from onnxprune.report.explore import Point


def _latency(p: Point) -> float | None:
    return None if p.latency_ms is None else p.latency_ms.after


def _speedup(p: Point) -> float | None:
    return None if p.latency_ms is None else p.latency_ms.speedup


OF: dict[str, Callable[[Point], float | None]] = {
    "drop": lambda p: p.drop,
    "divergence": lambda p: p.divergence,
    "agreement": lambda p: p.agreement,
    "macs": lambda p: p.macs.after,
    "params": lambda p: p.params.after,
    "size": lambda p: p.bytes.after,
    "speedup": _speedup,
    "latency": _latency,
}
BEFORE: dict[str, Callable[[Point], float]] = {
    "macs": lambda p: p.macs.before,
    "params": lambda p: p.params.before,
    "size": lambda p: p.bytes.before,
    "latency": lambda p: p.latency_ms.before if p.latency_ms else 1.0,
}


def picked(points: Sequence[Point], text: str) -> Point:
    """The point of that number; or, of those that keep all conditions, the one that loses least where only costs are limited, else the one
    with the fewest multiply-accumulates.

    Raises `BadInputError`, and `TargetNotReachableError` where no point keeps them, with the nearest.
    """
    check_pick(text, True, len(points))
    asked = parsed(text)
    if isinstance(asked, int):
        return points[asked - 1]
    found = [p for p in points if all(c.holds(_value(p, c)) for c in asked)]
    if not found:
        nearest = min(points, key=lambda p: max(c.misses(_value(p, c)) for c in asked))
        told = ", ".join(f"{c.name} {_value(nearest, c):.4g}" for c in dict.fromkeys(asked))
        raise TargetNotReachableError(
            f"--pick '{text}': no point keeps that; the nearest is point {nearest.number} ({told}). Allow more, or look at other sizes "
            "with --at."
        )
    if all(c.name in COSTS and c.sign[0] == "<" for c in asked):
        return min(found, key=lambda p: (p.drop if p.drop is not None else -p.macs.after, p.macs.after))
    return min(found, key=lambda p: (p.macs.after, p.bytes.after))


def check_pick(text: str, is_timed: bool, count: int) -> None:
    """Raise `BadInputError` for conditions on times where none are measured, and for a number beyond the count of points."""
    asked = parsed(text)
    if isinstance(asked, int) and not 1 <= asked <= count:
        raise BadInputError(f"--pick {asked}: there is no such point; they are numbered from 1 to {count}.")
    names = () if isinstance(asked, int) else tuple(c.name for c in asked)
    if not is_timed and {"speedup", "latency"} & {*names}:
        raise BadInputError(f"--pick '{text}' is about times; give --benchmark, so that they are measured.")


def _value(p: Point, c: Condition) -> float:
    value = OF[c.name](p)
    if value is None:
        raise BadInputError(
            f"--pick '{c.text}': no {c.name} was measured; it needs calibration (--data), and agreement an output with classes."
        )
    return float(value) if c.is_absolute or c.name not in BEFORE else value / max(BEFORE[c.name](p), 1e-30)
