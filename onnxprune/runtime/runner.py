"""Where a model is timed: an engine in this process, a program, a board at the end of a cable. A `Runner` opens a model there.

One's own runner is an object with four things, here ONNX's reference evaluator:

    class Reference:
        name, warms_up = "reference", False
        key = {"engine": "onnx.reference", "version": onnx.__version__}

        def open(self, model, feeds, what):
            evaluator = ReferenceEvaluator(model.proto)  # from onnx.reference
            return Calls(lambda: evaluator.run(None, feeds))  # from onnxprune.runtime.runner

    onnxprune.bench(["model.onnx", "small.onnx"], runner=Reference())

`Calls` times a function. What is not called in this process has an `Opened` of its own: `onnxprune/runtime/command.py`, which starts a
program, is one. Everything that times models (`runtime/timing.py`) goes through this; correctness is always proved in ONNX Runtime.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from onnxprune.groups.observation import Feeds
from onnxprune.model.loaded import Model


@runtime_checkable
class Opened(Protocol):
    """A model, ready to run on the inputs that it was opened with."""

    def time(self, runs: int) -> Sequence[float]:
        """Run so many times, one after the other: milliseconds of each run, or fewer numbers that stand for all, such as their median.

        Every number is above zero. What warms up by itself may choose how many runs it makes. Raises `BadInputError` where it fails.
        """
        ...

    def run(self) -> Sequence[Any] | None:
        """The outputs, in the model's order; None where the engine does not give them. Not timed."""
        ...

    def close(self) -> None:
        """Let go of memory, files and processes; nothing is called after it."""
        ...


@runtime_checkable
class Runner(Protocol):
    """Where models are timed."""

    @property
    def name(self) -> str:
        """What reports and messages call it, such as `ONNX Runtime 1.32.0, cpu, 1 thread`."""
        ...

    @property
    def key(self) -> Mapping[str, str]:
        """All that a time depends on besides model and inputs: engine, version, provider, options, threads, machine. Times that are
        kept on disk are found again where this is equal (`here` gives the part that is the machine's).
        """
        ...

    @property
    def warms_up(self) -> bool:
        """Is every call of `Opened.time` a measurement of its own, warmed up already? Then no runs are made ahead of those that count."""
        ...

    def open(self, model: Model, feeds: Feeds, what: str) -> Opened:
        """Load a model. feeds: by name, as this model takes them. what: how messages call the model.

        model: its external data, if it has any, lie in `model.folder`. Raises `BadInputError`, one sentence, where the engine does not
        take it. Hundreds of small models may be opened one after the other.
        """
        ...


class Calls:
    """An `Opened` that calls a function in this process. call: one run; gives the outputs."""

    def __init__(self, call: Callable[[], Sequence[Any]]) -> None:
        self._call: Callable[[], Sequence[Any]] | None = call

    def time(self, runs: int) -> list[float]:
        call, now, marks = self._open(), time.perf_counter, [0.0] * (runs + 1)
        marks[0] = now()
        for k in range(1, runs + 1):
            call()
            marks[k] = now()
        return [1000 * max(b - a, 1e-9) for a, b in pairwise(marks)]

    def run(self) -> Sequence[Any]:
        return self._open()()

    def close(self) -> None:
        self._call = None

    def _open(self) -> Callable[[], Sequence[Any]]:
        assert self._call is not None, "closed"
        return self._call


@cache
def here() -> dict[str, str]:
    """This machine, as far as times depend on it: processor, cores, operating system."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": str(os.cpu_count() or 1),
        "system": platform.system(),
    }


def _processor() -> str:
    """The processor's name; of Linux from /proc/cpuinfo, as Python does not know it there."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model", "cpu model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
