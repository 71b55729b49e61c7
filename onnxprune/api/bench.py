"""How fast models are in ONNX Runtime: load -> run in turn -> medians."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import feeds_of
from onnxprune.analyse.scope import Scope
from onnxprune.model.load import load

LIMIT = 120  # seconds of all runs together


def bench(
    models: Sequence[Path], shapes: dict[str, tuple[int, ...]], data: str | Path | None, threads: int, runs: int
) -> list[dict[str, Any]]:
    """Latency of several models on the same inputs, in turn: milliseconds per run; `speedup` is against the first."""
    loaded = [load(m) for m in models]
    feeds = feeds_of(loaded[0], Scope(input_shapes=shapes, data=data))[0]
    sessions = [
        runtime.Session(m, optimized=True, threads=threads, what=str(p)) for m, p in zip(loaded, models, strict=True)
    ]
    times = runtime.latency(sessions, feeds, repeats=max(3, runs), seconds=LIMIT)
    first = median(times[0])
    return [
        {
            "model": str(path),
            "median_ms": median(t),
            "min_ms": min(t),
            "max_ms": max(t),
            "speedup": first / median(t),
            "runs": len(t),
            "threads": threads,
        }
        for path, t in zip(models, times, strict=True)
    ]
