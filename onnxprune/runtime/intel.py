"""OpenVINO as a `Runner`: the package `openvino`, which reads ONNX, on the CPU or another device of its own.

OpenVino({"INFERENCE_PRECISION_HINT": "f32"})     an option is a property of the device; `DEVICE` names the device itself
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.model.loaded import Model
from onnxprune.model.save import save_model, tensors
from onnxprune.model.tensors import is_external
from onnxprune.runtime.runner import Calls, here


@dataclass(frozen=True)
class OpenVino:
    """options: properties of the device, as OpenVINO's documentation lists them. threads: of one inference, 0 as OpenVINO likes.

    One inference at a time, as with `benchmark_app -api sync -hint latency`; inputs are set once. Where the processor has bfloat16, that
    is what OpenVINO computes with unless told otherwise. Raises `BadInputError` where the package is missing.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1

    warms_up = False

    def __post_init__(self) -> None:
        _package()

    @property
    def name(self) -> str:
        threads = {0: "threads as it likes", 1: "1 thread"}.get(self.threads, f"{self.threads} threads")
        return f"OpenVINO {_version()}, {self._device}, {threads}"

    @cached_property
    def key(self) -> dict[str, str]:
        return {
            "engine": "openvino",
            "version": _version(),
            "provider": self._device,
            "options": ",".join(f"{k}={v}" for k, v in sorted(self._properties.items())),
            "threads": str(self.threads),
            **here(),
            **({} if self._device == "CPU" else {"device": _device_name(self._device)}),
        }

    def open(self, model: Model, feeds: Feeds, what: str) -> Calls:
        if not any(is_external(t) for t in tensors(model.proto.graph)):
            return self._opened(model.proto.SerializeToString(), feeds, what)
        with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            save_model(model, path)
            return self._opened(str(path), feeds, what)

    def open_file(self, path: Path, feeds: Feeds, what: str) -> Calls:
        """`open`, straight from the file, as a deployed program does."""
        return self._opened(str(path), feeds, what)

    @property
    def _device(self) -> str:
        return next((v for k, v in self.options.items() if k.upper() == "DEVICE"), "CPU")

    @property
    def _properties(self) -> dict[str, str]:
        threads = {"INFERENCE_NUM_THREADS": str(self.threads)} if self.threads and self._device == "CPU" else {}
        given = {k: v for k, v in self.options.items() if k.upper() != "DEVICE"}
        return {"PERFORMANCE_HINT": "LATENCY", **threads, **given}

    def _opened(self, source: str | bytes, feeds: Feeds, what: str) -> Calls:
        package = _package()
        try:
            compiled = _core().compile_model(_core().read_model(source), self._device, self._properties)
            request = compiled.create_infer_request()
            for name, array in feeds.items():
                request.set_tensor(name, package.Tensor(np.ascontiguousarray(array)))
        except Exception as error:  # openvino raises RuntimeError, and others from its bindings
            raise BadInputError(
                f"OpenVINO {_version()} cannot load {what} on {self._device}: {_gist(error)}; give a model and options that it takes."
            ) from None
        count = len(compiled.outputs)

        def infer() -> Sequence[Any]:
            try:
                request.infer()
            except Exception as error:  # as above
                raise BadInputError(
                    f"OpenVINO {_version()} cannot run {what}: {_gist(error)}; give inputs that fit (--data, --input-shape)."
                ) from None
            return _Outputs(request, count)

        return Calls(infer)


class _Outputs(Sequence[Any]):
    """Outputs of the last inference, copied when they are read, which timed runs do not."""

    def __init__(self, request: Any, count: int) -> None:
        self._request, self._count = request, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._request.get_output_tensor(index).data.copy()


def _package() -> Any:
    try:
        import openvino
    except ImportError:
        raise BadInputError(
            "--runner openvino needs the package openvino; install it with pip install 'onnxprune[openvino]'."
        ) from None
    return openvino


@cache
def _core() -> Any:
    return _package().Core()


def _version() -> str:
    return str(_package().__version__).split("-", 1)[0]


def _device_name(device: str) -> str:
    try:
        return str(_core().get_property(device, "FULL_DEVICE_NAME"))
    except Exception:  # a device that is not there is refused when a model is opened
        return device


def _gist(error: BaseException) -> str:
    """What OpenVINO says, without where in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said[0] if said else type(error).__name__)[:300].rstrip(". ")
