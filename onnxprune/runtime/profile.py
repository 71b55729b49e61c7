"""Where the time of a run goes, by ONNX Runtime's own profiler.

A model runs in two sessions in turn: one with the profiler, which says what every kernel takes (`runtime/events.py`), and one without,
which says what a run takes, as the profiler itself takes a microsecond or two for every kernel.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from onnxprune.clock import Share, unshared
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.jobs import host
from onnxprune.model.interface import cut_feeds, interface_of, unmarked
from onnxprune.model.loaded import Model
from onnxprune.runtime.attribution import Kernel, attributed, named, unattributed
from onnxprune.runtime.engine import OnnxRuntime
from onnxprune.runtime.events import Timed, corrected, read, typical
from onnxprune.runtime.refusal import first_line
from onnxprune.runtime.session import VERSION

WARMUP = 3
LEAST = 3  # runs
SECONDS = 60.0
CHAIN = 100  # kernels
RAN = "ran.onnx"


@dataclass(frozen=True)
class Recording:
    """What a model takes.

    measured_ms: of a run without the profiler, the median.
    outside_ms: of a run, outside of kernels. Together with them it is a run that nothing interrupts.
    load_ms: until the model is loaded. runs: that were profiled. is_mapped: the graph that runs could be read.
    kernels: without what the profiler takes.
    launch_ms: what a kernel takes at least, as one of a chain of kernels with nothing to do.
    """

    measured_ms: float
    outside_ms: float
    load_ms: float
    runs: int
    is_mapped: bool
    kernels: tuple[Timed, ...]
    launch_ms: float


def record(
    models: Sequence[Model],
    feeds: Feeds,
    runner: OnnxRuntime,
    names: Sequence[str],
    runs: int = 30,
    warmup: int = WARMUP,
    *,
    seconds: float = SECONDS,
    share: Share = unshared,
) -> list[Recording]:
    """Profile models in turn. feeds: of the first. runs: of each, after `warmup` that do not count; fewer once
    `seconds` have passed. share: told how much is done.

    Nothing is left on disk. Raises `BadInputError` where ONNX Runtime refuses a model.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-profile-") as folder, host.alone():
        each = []
        for k, (model, name) in enumerate(zip(models, names, strict=True)):
            place = Path(folder) / str(k)
            place.mkdir()
            own = cut_feeds(interface_of(model.proto), feeds)
            each.append(_Profiled(runner, model.beside(unmarked(model.proto)), own, place, name))
        place = Path(folder) / "chain"
        place.mkdir()
        each.append(_Profiled(OnnxRuntime(), Model(_chain()), {"t0": np.zeros((1, 4), np.float32)}, place, "a chain"))
        begin = time.perf_counter()
        for k in range(warmup + runs):
            if k >= warmup + LEAST and time.perf_counter() - begin > seconds:
                break
            share(min(1.0, max(k / (warmup + runs), (time.perf_counter() - begin) / seconds)))
            for one in each if k % 2 else reversed(each):
                one.run(counts=k >= warmup)
        *found, chain = [one.finish() for one in each]
    launch = chain.measured_ms / CHAIN
    inside = max(0.0, sum(k.ms for k in chain.kernels) / CHAIN - launch)
    return [_without_profiler(r, launch, inside, chain.outside_ms / CHAIN) for r in found]


def _without_profiler(r: Recording, launch: float, inside: float, outside: float) -> Recording:
    """What the profiler takes goes. inside, outside: of a kernel and beside it. launch: what a kernel takes at least."""
    left = max(0.0, r.outside_ms - outside * sum(k.calls for k in r.kernels))
    kernels = corrected(r.kernels, max(r.measured_ms - left, r.measured_ms / 2), inside)
    return replace(r, outside_ms=left, kernels=tuple(kernels), launch_ms=launch)


def _chain() -> ModelProto:
    """Kernels that have nothing to do, one after the other: what is left is what each of them costs ONNX Runtime and its profiler."""
    ends = [helper.make_tensor_value_info(f"t{k}", TensorProto.FLOAT, [1, 4]) for k in (0, CHAIN)]
    nodes = [helper.make_node("Neg" if k % 2 else "Relu", [f"t{k}"], [f"t{k + 1}"]) for k in range(CHAIN)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class _Profiled:
    """One model in two sessions. folder: an empty one of its own."""

    def __init__(self, runner: OnnxRuntime, model: Model, feeds: Feeds, folder: Path, what: str) -> None:
        self._feeds, self._folder, self._what = feeds, folder, what
        begin = time.perf_counter()
        self._plain = runner.open(model, feeds, what)
        self._load_ms = 1000 * (time.perf_counter() - begin)
        self._times: list[float] = []
        copy, self._known = named(model.proto)
        self._session = _session(runner, model.beside(copy), folder, what)
        self._runs = 0

    def run(self, counts: bool) -> None:
        taken = self._plain.time(1)
        if counts:
            self._times += taken
        try:
            self._session.run(None, self._feeds)
        except Exception as error:  # onnxruntime raises many unrelated types
            reason = f"ONNX Runtime {VERSION} cannot run {self._what} with its profiler: {first_line(error)}"
            raise BadInputError(f"{reason} Try another --provider.") from None
        self._runs += 1

    def finish(self) -> Recording:
        self._plain.close()
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8", errors="replace"))
        kernels, is_mapped = self._kernels()
        warmup = self._runs - len(self._times)
        outside, timed = read(events, kernels, lambda name, op: unattributed(self._known, name, op), warmup)
        return Recording(median(self._times), outside, self._load_ms, len(self._times), is_mapped, tuple(timed), 0.0)

    def _kernels(self) -> tuple[list[Kernel], bool]:
        file = self._folder / RAN
        if not file.exists():
            return [], False
        return attributed(self._known, onnx.load(str(file), load_external_data=False).graph), True


def _session(runner: OnnxRuntime, model: Model, folder: Path, what: str) -> ort.InferenceSession:
    """With the profiler, and the graph that runs written to the folder; without that where a provider compiles nodes and cannot say."""
    data = model.proto.SerializeToString()
    for writes in (True, False):
        settings = runner.settings(model)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(folder / "profile")
        if writes:
            settings.optimized_model_filepath = str(folder / RAN)
            settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "ran.data")
        try:
            return runner.session(model, data, settings, what)
        except BadInputError:
            if not writes:
                raise
    raise AssertionError("unreachable")


# ---------------------------------------------------------------- the machine


def block() -> int:
    """Channels that ONNX Runtime's convolutions on the CPU take together here (8 or 16); 0 where they work on single ones.

    A convolution of 4 channels is loaded: its reordered weight has as many as a block.
    """
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4, 1, 1], [1.0] * 16)
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 4, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", sides[:1], sides[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory(prefix="onnxprune-profile-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "ran.onnx")
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        ran = onnx.load(options.optimized_model_filepath).graph
    if not any(node.domain.endswith("nchwc") for node in ran.node):
        return 0
    return max(int(t.dims[0]) for t in ran.initializer)


def copied_per_ms(size: int = 1 << 26, piece: int = 1 << 20) -> float:
    """Bytes that one thread reads and writes per millisecond here, in arrays larger than most caches. Pieces: little interrupts them."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    times = []
    for at in range(0, size, piece):
        begin = time.perf_counter()
        target[at : at + piece] = source[at : at + piece]
        times.append(1000 * (time.perf_counter() - begin))
    return 2 * piece / max(typical(times), 1e-9)
