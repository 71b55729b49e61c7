"""One loaded model, and the time that models take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from os import PathLike

import onnxruntime as ort
from onnx import ModelProto

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.loaded import LoadedModel

ort.set_default_logger_severity(4)

VERSION: str = ort.__version__


_LIBRARIES: list[str] = []


def load_custom_ops(paths: Sequence[str | PathLike[str]]) -> None:
    """From now on, every session loads these libraries of operators. Raises `BadInputError` where ONNX Runtime cannot."""
    for path in paths:
        text = str(path)
        if text in _LIBRARIES:
            continue
        try:
            ort.SessionOptions().register_custom_ops_library(text)
        except Exception as error:
            raise BadInputError(f"--custom-ops {path} cannot be loaded: {first_line(error)}") from None
        _LIBRARIES.append(text)


class Session:
    """One loaded model; errors of ONNX Runtime come out as one-sentence `BadInputError`s."""

    def __init__(
        self,
        proto: ModelProto | bytes,
        folder: str | None = None,
        *,
        optimized: bool = False,
        threads: int = 0,
        what: str = "the model",
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        for library in _LIBRARIES:
            options.register_custom_ops_library(library)
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        data = proto if isinstance(proto, bytes) else proto.SerializeToString()
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many unrelated types
            raise BadInputError(
                f"ONNX Runtime {VERSION} cannot load {what}: {first_line(error)} Give a model that it can load."
            ) from None
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]
        self.output_types: dict[str, str] = {o.name: o.type for o in self._session.get_outputs()}

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Array]:
        """The values of `outputs` (all by default)."""
        try:
            return list(self._session.run(outputs, feeds))
        except Exception as error:
            raise BadInputError(
                f"ONNX Runtime {VERSION} cannot run the model: {first_line(error)} "
                "Give a model that it can run, or inputs that fit (--data, --input-shape)."
            ) from None

    def accepts(self, feeds: Feeds) -> bool:
        """Does the model run on these?"""
        try:
            self.run(feeds)
        except BadInputError:
            return False
        return True


def folder_of(model: LoadedModel) -> str | None:
    return str(model.folder) if model.has_external_data and model.folder else None


def first_line(error: BaseException) -> str:
    """The gist of a runtime error: its first line, without the status prefix."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    line = text[0].split("] : ")[-1]
    if " : " in line and line.startswith("[ONNXRuntimeError]"):
        line = line.split(" : ", 3)[-1]
    return line[:300].rstrip(". ") + "."


def latency(
    sessions: Sequence[Session], feeds: Feeds, repeats: int = 20, warmup: int = 3, seconds: float = 10.0
) -> list[list[float]]:
    """Milliseconds per run of each session, taken in turn so that drift of the machine hits all of them.

    Stops early, after at least three counted rounds, once `seconds` have passed.
    """
    times: list[list[float]] = [[] for _ in sessions]
    begin = time.perf_counter()
    for k in range(warmup + repeats):
        if k >= warmup + 3 and time.perf_counter() - begin > seconds:
            break
        for session, series in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            if k >= warmup:
                series.append(1000 * (time.perf_counter() - start))
    return times
