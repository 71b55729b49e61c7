"""What ONNX Runtime's profiler wrote, read: what each kernel took in a run.

The profiler writes a list of events: one for every run ("model_run") and one for every kernel of it ("NAME_kernel_time"), with the
operator, the provider, shapes and types, bytes, and what the threads did. Times are whole microseconds. Each kernel's is the mean of the
faster half of its runs, and a run is what its kernels and the time outside of them add up to: another program, which interrupts
some kernel in every run, is left out of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxprune.runtime.attribution import Kernel

SUFFIX = "_kernel_time"
SIZES = ("activation_size", "parameter_size", "output_size")
Event = Mapping[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Timed:
    """A kernel and what it took in a run.

    ms: without the kernels that it runs itself (If, Loop). calls: how often it runs. bytes: of inputs, weights and outputs, of all calls.
    threaded: does it split its work over threads, in half of its calls or more? None where one thread was given, or the provider does
        not say.
    types: of the inputs. inputs, outputs: shapes of its first call.
    """

    kernel: Kernel
    provider: str
    ms: float
    calls: float
    bytes: float
    threaded: bool | None = None
    types: tuple[str, ...] = ()
    inputs: tuple[Shape, ...] = ()
    outputs: tuple[Shape, ...] = ()


@dataclass
class _Seen:
    """A kernel in all runs. ms, calls, bytes: of each run; splits: of each call."""

    first: Event
    ms: list[float]
    calls: list[int]
    bytes: list[int]
    splits: list[bool] = field(default_factory=list)


def read(
    events: Iterable[Event], kernels: Sequence[Kernel], unknown: Callable[[str, str], Kernel], warmup: int = 0
) -> tuple[float, list[Timed]]:
    """Milliseconds of a run outside of its kernels, and the kernels in the order in which they run.

    kernels: those of the graph that runs. unknown: makes one of a name and an operator that are not among them.
    warmup: so many runs do not count. A list without runs gives (0, []).
    """
    runs = _runs(events)[warmup:]
    seen: dict[tuple[str, str, str], _Seen] = {}
    outside = []
    for r, (run, inside) in enumerate(runs):
        own = _own(inside)
        outside.append(run["dur"] / 1000 - sum(ms for _, ms in own))
        for e, ms in own:
            found = seen.setdefault(_id(e), _Seen(e, [0.0] * len(runs), [0] * len(runs), [0] * len(runs)))
            found.ms[r] += ms
            found.calls[r] += 1
            found.bytes[r] += sum(int(e["args"].get(k) or 0) for k in SIZES)
            found.splits += _splits(e)
    named = _matched(seen, kernels, unknown)
    return max(0.0, typical(outside)), [_timed(named[k], s) for k, s in seen.items()]


def typical(values: Sequence[float]) -> float:
    """The mean of the lower half: other programs only make a kernel slower. Finer than the clock, and no single lucky run."""
    lower = sorted(values)[: (len(values) + 1) // 2]
    return sum(lower) / len(lower) if lower else 0.0


def corrected(kernels: Sequence[Timed], run_ms: float, cost_ms: float) -> list[Timed]:
    """Times without what the profiler itself takes, which together are no more than a run without it.

    cost_ms: what it adds to a kernel of one input at least. Where kernels are more than the run with that taken off, as those of many
    inputs cost it more, up to twice as much is taken off; and what is left over is scaled.
    """

    def without(cost: float) -> list[float]:
        return [max(k.ms - k.calls * cost, k.ms / 20) for k in kernels]

    low, high = cost_ms, 2 * cost_ms
    if sum(without(low)) > run_ms:
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(without(middle)) > run_ms else (low, middle)
    times = without(high if low > cost_ms else low)
    scale = min(1.0, run_ms / max(sum(times), 1e-12))
    return [replace(k, ms=t * scale) for k, t in zip(kernels, times, strict=True)]


def _runs(events: Iterable[Event]) -> list[tuple[Event, list[Event]]]:
    """Each run with the kernels in it, in the order in which they start."""
    listed = list(events)
    runs = sorted((e for e in listed if e.get("name") == "model_run"), key=lambda e: int(e["ts"]))
    inside = [e for e in listed if e.get("cat") == "Node" and str(e.get("name", "")).endswith(SUFFIX)]
    inside.sort(key=lambda e: (int(e["ts"]), -int(e["dur"])))
    found: list[tuple[Event, list[Event]]] = []
    at = 0
    for run in runs:
        end = run["ts"] + run["dur"]
        own = []
        while at < len(inside) and inside[at]["ts"] <= end:
            if inside[at]["ts"] >= run["ts"]:
                own.append(inside[at])
            at += 1
        found.append((run, own))
    return found


def _own(events: Sequence[Event]) -> list[tuple[Event, float]]:
    """Milliseconds of each without those that run inside it. events: in the order in which they start, the longer one first."""
    taken = [float(e["dur"]) for e in events]
    open_: list[int] = []
    for k, e in enumerate(events):
        end = e["ts"] + e["dur"]
        while open_ and not (
            events[open_[-1]]["ts"] + events[open_[-1]]["dur"] >= end
            and events[open_[-1]]["args"].get("op_name") in HOLDERS
        ):
            open_.pop()
        if open_:
            taken[open_[-1]] -= e["dur"]
        open_.append(k)
    return [(e, max(0.0, t) / 1000) for e, t in zip(events, taken, strict=True)]


HOLDERS = ("If", "Loop", "Scan", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch", "SequenceMap")
"""Operators whose kernels run others, and whose times hold theirs."""


def _id(event: Event) -> tuple[str, str, str]:
    name = str(event["name"]).removesuffix(SUFFIX)
    return name, str(event["args"].get("op_name", "")), str(event["args"].get("node_index", ""))


def _splits(event: Event) -> Iterator[bool]:
    """Did it split its work into blocks for several threads? Nothing where one thread was given."""
    stats = event["args"].get("thread_scheduling_stats")
    if isinstance(stats, dict) and stats.get("sub_threads"):
        yield bool(stats.get("main_thread", {}).get("block_size"))


def _matched(
    seen: Mapping[tuple[str, str, str], _Seen], kernels: Sequence[Kernel], unknown: Callable[[str, str], Kernel]
) -> dict[tuple[str, str, str], Kernel]:
    """Kernels by what the profiler calls them. Of several with one name, the first that runs is the first of the graph."""
    waiting: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        waiting[kernel.name, kernel.op].append(kernel)
    found = {}
    for key in seen:
        name, op, index = key
        own = (
            name if waiting.get((name, op)) or name != f"{op}_{index}" else ""
        )  # what has no name is called OPERATOR_INDEX
        there = waiting.get((own, op))
        found[key] = there.pop(0) if there else unknown(name, op)
    return found


def _timed(kernel: Kernel, found: _Seen) -> Timed:
    args = found.first["args"]
    shapes = [next(iter(x.items())) for x in args.get("input_type_shape") or () if x]
    return Timed(
        kernel,
        str(args.get("provider", "")),
        typical(found.ms),
        typical(found.calls),
        typical(found.bytes),
        2 * sum(found.splits) >= len(found.splits) if found.splits else None,
        tuple(t for t, _ in shapes),
        tuple(tuple(s) for _, s in shapes),
        tuple(tuple(s) for x in args.get("output_type_shape") or () for s in x.values()),
    )
