"""What reports say of latency."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any


def summary(times: Sequence[Sequence[float]]) -> dict[str, Any]:
    """times: milliseconds per run, before and after. Medians, their ratio, and the least and most of each."""
    before, after = (median(t) for t in times)
    return {
        "before": round(before, 3),
        "after": round(after, 3),
        "speedup": round(before / after, 3),
        "runs": len(times[0]),
        "spread": [[round(min(t), 3), round(max(t), 3)] for t in times],
    }
