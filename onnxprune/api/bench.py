"""How fast models are: load -> each alone -> in turn -> what the times say."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from statistics import mean
from typing import Any

from onnxprune import runtime
from onnxprune.analyse.observe import feeds_of
from onnxprune.choose.field import several
from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import BenchOptions
from onnxprune.clock import Progress, Step, silent
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.jobs import host
from onnxprune.model.interface import cut_feeds, interface_of, marked, resized
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.model.save import save_model
from onnxprune.proof.elsewhere import difference

MEGABYTE = 1e6


@dataclass(frozen=True)
class BenchRow:
    """One model in one setting.

    model: its path, or which of the models it is. runner: where it was timed. threads: of it, 0 as the engine likes. batch: samples of a
    run (`runtime/batches.py` says how that is read from the model).
    median_ms, mean_ms, min_ms, max_ms: of the counted runs. p90_ms, p99_ms: what 90 or 99 of 100 runs do not exceed; None with fewer than
    10 or 100 of them. median_low_ms, median_high_ms: 95 % interval of the median.
    inferences_per_second, samples_per_second: of one run after the other, from the mean.
    speedup: against the first model in the same setting; speedup_low, speedup_high: its 95 % interval.
    verdict: `faster`, `slower`, `equal` (the interval holds 1 and is at most a tenth wide) or `too noisy` to tell; of the first model
    `equal`, or `too noisy` where the interval of its median is wider than a tenth.
    load_ms, first_run_ms, memory_mb (of 10^6 bytes): in a process of its own (`runtime/alone.py`); a runner of one's own loads and runs
    first in this one, its memory is None; all three are None for a command. file_bytes: with external data.
    runs: rounds. counted_runs: of this model, in all rounds. difference: of the outputs there from those on ONNX Runtime's CPU provider,
    relative to their scale; None on it. note: what else is to be said.
    """

    model: str
    runner: str
    threads: int
    batch: int
    median_ms: float
    p90_ms: float | None
    p99_ms: float | None
    mean_ms: float
    min_ms: float
    max_ms: float
    median_low_ms: float
    median_high_ms: float
    inferences_per_second: float
    samples_per_second: float
    speedup: float
    speedup_low: float
    speedup_high: float
    verdict: runtime.Comparison
    load_ms: float | None
    first_run_ms: float | None
    memory_mb: float | None
    file_bytes: int
    runs: int
    counted_runs: int
    difference: float | None
    note: str


@dataclass(frozen=True)
class _Listed:
    """A model to time. path: where a process of its own finds it."""

    name: str
    loaded: LoadedModel
    model: Model
    path: Path


@dataclass(frozen=True)
class _Setting:
    """How all models are timed once."""

    runner: runtime.Runner
    threads: int
    batch: int
    feeds: Feeds


def bench(models: Source | Sequence[Source], *, progress: Progress = silent, **options: Any) -> list[dict[str, Any]]:
    """Time models on the same inputs, run in turn (`runtime/timing.py`): one row per setting and model, with the fields of `BenchRow`.

    models: paths or ModelProtos, with the same inputs; where those of a later one are declared smaller (`--free`), it is fed the first
    positions of the first one's. options: the fields of `BenchOptions` (runs, seconds, threads, batch), of `Place` (runner, provider,
    provider_options, warmup), and those of `Options` that go with it: input_shapes, data, custom_ops, seed.
    Raises `BadInputError`.
    """
    how, place, settings = several((BenchOptions, Place, Options), options, "bench")
    sources: list[Source] = list(models) if isinstance(models, list | tuple) else [models]
    if not sources:
        raise BadInputError("There is no model to time; give at least one.")
    runtime.load_custom_ops(settings.custom_ops)
    runners = {t: place.made(t) for t in how.threads or (1,)}
    with ExitStack() as stack:
        listed = _listed(sources, stack)
        first = listed[0].loaded
        for batch in how.batch:
            runtime.check_batch(first.proto, batch)
        feeds = feeds_of(first, settings.scope)[0]
        chosen = [
            _Setting(runner, threads, runtime.samples_in(first.proto, fed), fed)
            for batch in how.batch or (None,)
            for fed in (runtime.with_batch(first.proto, feeds, batch),)
            for threads, runner in runners.items()
        ]
        rows: list[BenchRow] = []
        for k, setting in enumerate(chosen):
            progress(Step("bench", k / len(chosen)))
            rows += _rows(listed, setting, how, place)
    return [asdict(row) for row in rows]


def _listed(sources: Sequence[Source], stack: ExitStack) -> list[_Listed]:
    loaded = [load(source) for source in sources]
    found = []
    for k, (source, model) in enumerate(zip(sources, loaded, strict=True), 1):
        name = str(source) if isinstance(source, str | PathLike) else f"model {k}"
        # the other model takes the inputs of the first: times do not depend on which positions it is fed
        fitted = model.beside(marked(model.proto, resized(loaded[0].proto, model.proto)))
        path = model.path
        if path is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxprune-"))
            path = Path(folder) / "model.onnx"
            save_model(model, path)
        found.append(_Listed(name, model, fitted, path))
    return found


def _rows(listed: Sequence[_Listed], setting: _Setting, how: BenchOptions, place: Place) -> Iterator[BenchRow]:
    """All models in one setting."""
    runner, names = setting.runner, [m.name for m in listed]
    with ExitStack() as stack:
        stack.enter_context(host.alone())
        single = [_alone(m, setting, place) for m in listed]
        opened, differences = [], []
        for k, m in enumerate(listed):
            start = time.perf_counter()
            there = runtime.opened(runner, m.model, setting.feeds, names[k])
            opened.append(there)
            stack.callback(there.close)
            loaded = time.perf_counter()
            if single[k] is None and not runner.warms_up:
                runtime.checked(there.time(1))
                first_ms = 1000 * (time.perf_counter() - loaded)
                single[k] = runtime.Alone(1000 * (loaded - start), first_ms)
            differences.append(difference(runner, there, m.model, setting.feeds))
        warmup = 0 if runner.warms_up else place.warmup
        times = runtime.in_turn(opened, max(3, how.runs), warmup, how.seconds)
    for k, m in enumerate(listed):
        yield replace(_row(m, setting, times[0], times[k], single[k] or runtime.Alone()), difference=differences[k])


def _alone(listed: _Listed, setting: _Setting, place: Place) -> runtime.Alone | None:
    if place.spec is None:
        return None
    fed = cut_feeds(interface_of(listed.model.proto), setting.feeds)
    return runtime.alone(place.spec, setting.threads, listed.path, fed)


def _row(
    listed: _Listed, setting: _Setting, first: runtime.Times, own: runtime.Times, single: runtime.Alone
) -> BenchRow:
    average, ratio = mean(own.runs), runtime.speedup(first.rounds, own.rounds)
    low, high = runtime.interval(own.rounds)
    return BenchRow(
        model=listed.name,
        runner=setting.runner.name,
        threads=setting.threads,
        batch=setting.batch,
        median_ms=runtime.quantile(own.runs, 0.5) or own.median,
        p90_ms=runtime.quantile(own.runs, 0.9),
        p99_ms=runtime.quantile(own.runs, 0.99),
        mean_ms=average,
        min_ms=min(own.runs),
        max_ms=max(own.runs),
        median_low_ms=low,
        median_high_ms=high,
        inferences_per_second=1000 / average,
        samples_per_second=1000 * setting.batch / average,
        speedup=ratio.ratio,
        speedup_low=ratio.low,
        speedup_high=ratio.high,
        verdict=ratio.verdict if own is not first else "too noisy" if own.is_noisy else "equal",
        load_ms=single.load_ms,
        first_run_ms=single.first_ms,
        memory_mb=None if single.memory_bytes is None else single.memory_bytes / MEGABYTE,
        file_bytes=listed.loaded.size_bytes,
        runs=len(own.rounds),
        counted_runs=len(own.runs),
        difference=None,
        note=f"not measured alone: {single.problem}" if single.problem else "",
    )
