"""One loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import onnxruntime as ort

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.draws import drawn, draws
from onnxprune.model.interface import Interface, cut_feeds, filled_values, interface_of
from onnxprune.model.loaded import Model
from onnxprune.runtime.refusal import first_line, refusal
from onnxprune.runtime.values import as_arrays

ort.set_default_logger_severity(4)

VERSION: str = ort.__version__
REMEDY = " Give a model that it can run, or inputs that fit (--data, --input-shape)."
# libraries that every session gets; ONNX Runtime itself keeps a loaded library until the process ends
_custom_ops: list[str] = []


def load_custom_ops(paths: Sequence[str | Path]) -> None:
    """Let every session from here on know the operators of these shared libraries, and of no others.

    paths: libraries that export `RegisterCustomOps`, as ONNX Runtime's documentation of custom operators describes. They run native
    code in this process. Raises `BadInputError` for a file that is not there or no such library; then nothing changes.
    """
    found = []
    for path in paths:
        if not Path(path).is_file():
            raise BadInputError(f"The custom operator library {path} does not exist; check the path (--custom-ops).")
        name = str(Path(path).resolve())
        try:
            ort.SessionOptions().register_custom_ops_library(name)
        except Exception as error:  # onnxruntime raises many unrelated types
            raise BadInputError(
                f"ONNX Runtime {VERSION} cannot load {path} as a custom operator library: {first_line(error)} "
                "Give a shared library that exports RegisterCustomOps (--custom-ops)."
            ) from None
        found.append(name)
    _custom_ops[:] = dict.fromkeys(found)


def custom_ops() -> list[str]:
    """The libraries that every session gets."""
    return list(_custom_ops)


def session_options(folder: Path | None, threads: int) -> ort.SessionOptions:
    """What every session has: no log, the user's operators, the folder of external data."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    for library in _custom_ops:
        options.register_custom_ops_library(library)
    return options


def share_arena(options: ort.SessionOptions) -> None:
    """One memory arena for all sessions of the process with these options: those that are timed run in turn, and each would keep one
    as large.
    """
    _make_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")


@cache
def _make_arena() -> None:
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    as_requested = 1  # grow by what is asked for, not to the next power of two
    ort.create_and_register_allocator(where, ort.OrtArenaCfg(0, as_requested, -1, -1))


class Session:
    """One loaded model; errors of ONNX Runtime come out as one-sentence `BadInputError`s.

    threads: of one operator; 0 for a thread per core. Between runs it takes neither cores nor the memory of its last run, as several
    models are loaded at once; what is timed does both, and is opened elsewhere (`runtime/engine.py`).

    shapes_first: a `Shape` node runs as soon as its tensor is there, so that no tensor is kept for it until the end of the run.

    draws: the model draws random numbers. They are the same in every run and in every model that was made of it
    (`model/draws.py`).

    interface: where the model's inputs and outputs are smaller than those of its original (`model/interface.py`).
    """

    def __init__(
        self,
        model: Model,
        *,
        optimized: bool = False,
        threads: int = 0,
        shapes_first: bool = False,
        what: str = "the model",
    ) -> None:
        options = session_options(model.folder, threads)
        options.enable_cpu_mem_arena = False
        if shapes_first:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.draws = draws(model.proto)
        proto = drawn(model.proto) if self.draws else model.proto
        self._redraws = self.draws and draws(proto)
        data = proto.SerializeToString()
        self._make = partial(ort.InferenceSession, data, options, providers=["CPUExecutionProvider"])
        try:
            self._session = self._make()
        except Exception as error:  # onnxruntime raises many unrelated types
            raise BadInputError(refusal(model.proto, what, error)) from None
        if not self._redraws:
            del self._make
        self._is_fresh = True
        self.interface: Interface = interface_of(model.proto)
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]
        self.output_types: dict[str, str] = {o.name: o.type for o in self._session.get_outputs()}

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Array]:
        """The values of `outputs` (all by default), as the model gives them. feeds: may be those of its original."""
        feeds = cut_feeds(self.interface, feeds) if self.interface else feeds
        if self._redraws and not self._is_fresh:  # a session goes on drawing where its last run stopped
            self._session = self._make()
        self._is_fresh = False
        try:
            return list(self._session.run(outputs, feeds))
        except Exception as error:
            raise BadInputError(f"ONNX Runtime {VERSION} cannot run the model: {first_line(error)}{REMEDY}") from None

    def run_whole(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Array]:
        """`run`, with outputs as large as the original's: zeros where positions have left."""
        return filled_values(self.interface, outputs or self.outputs, self.run(feeds, outputs))

    def answers(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Array]:
        """`run`, with every output as one array of numbers, to judge the model by (`runtime/values.py`)."""
        return as_arrays(self.run(feeds, outputs))
