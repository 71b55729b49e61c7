"""How fast models are in ONNX Runtime: load -> run in turn -> medians."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import feeds_of
from onnxprune.choose.field import both
from onnxprune.choose.options import Options
from onnxprune.choose.sparsify_options import BenchOptions
from onnxprune.errors import BadInputError
from onnxprune.model.interface import marked, resized
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import Model

LIMIT = 120  # seconds of all runs together


def bench(models: Source | Sequence[Source], **options: Any) -> list[dict[str, Any]]:
    """Latency of models on the same inputs, run in turn: milliseconds per run; `speedup` is against the first (`runtime/timing.py`).

    models: paths or ModelProtos, with the same inputs; where those of a later one are declared smaller (`--free`), it is fed the first
    positions of the first one's. options: the fields of `BenchOptions`, and those of `Options` that go with it:
    input_shapes, data, custom_ops, seed. Gives one row per model: model, median_ms, min_ms, max_ms, speedup, speedup_low,
    speedup_high (its 95 % interval), runs, threads.
    Raises `BadInputError`.
    """
    how, settings = both(BenchOptions, Options, options, "bench")
    listed: list[Source] = list(models) if isinstance(models, list | tuple) else [models]
    if not listed:
        raise BadInputError("There is no model to time; give at least one.")
    runtime.load_custom_ops(settings.custom_ops)
    names = [str(m) if isinstance(m, str | PathLike) else f"model {k}" for k, m in enumerate(listed, 1)]
    loaded = [load(m) for m in listed]
    feeds = feeds_of(loaded[0], settings.scope)[0]
    sized = [_sized(loaded[0], m) for m in loaded]
    runner = runtime.OnnxRuntime(threads=how.threads)
    times = runtime.latency(runner, sized, feeds, repeats=max(3, how.runs), seconds=LIMIT, names=names)
    ratios = [runtime.speedup(times[0].rounds, t.rounds) for t in times]
    return [
        {
            "model": name,
            "median_ms": t.median,
            "min_ms": min(t.rounds),
            "max_ms": max(t.rounds),
            "speedup": found.ratio,
            "speedup_low": found.low,
            "speedup_high": found.high,
            "runs": len(t.rounds),
            "threads": how.threads,
        }
        for name, t, found in zip(names, times, ratios, strict=True)
    ]


def _sized(first: Model, other: Model) -> Model:
    """The other model, which takes the inputs of the first: times do not depend on which positions it is fed."""
    return other.beside(marked(other.proto, resized(first.proto, other.proto)))
