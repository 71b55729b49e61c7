"""ONNX Runtime as a `Runner`: on any execution provider that the installed one has, optimized as it is deployed.

OnnxRuntime()                                   one thread of the CPU
OnnxRuntime("openvino", {"device_type": "CPU"}) another provider, with an option of it
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxprune.errors import BadInputError, quoted
from onnxprune.groups.observation import Feeds
from onnxprune.model.loaded import Model
from onnxprune.runtime.refusal import first_line, refusal
from onnxprune.runtime.runner import Calls, here
from onnxprune.runtime.session import REMEDY, VERSION, session_options, share_arena

CPU = "CPUExecutionProvider"
SUFFIX = "ExecutionProvider"
PLACE = re.compile(r"^\S+\.(?:cc|cpp|h):\d+ [^()]*(?:\([^()]*\))? ")
NVIDIA = ("cuda", "tensorrt", "nvtensorrtrtx")


def providers() -> dict[str, str]:
    """Execution providers of the installed ONNX Runtime: short name, such as `cpu` -> its own, such as `CPUExecutionProvider`."""
    return {p.removesuffix(SUFFIX).lower(): p for p in ort.get_available_providers()}


def provider_named(name: str) -> str:
    """ONNX Runtime's name of a provider. name: short or long, in any case. Raises `BadInputError` where it is not installed."""
    known = providers()
    short = name.strip().lower().removesuffix(SUFFIX.lower())
    if short not in known:
        raise BadInputError(
            f"ONNX Runtime {VERSION} as it is installed has no provider {quoted(name)}; it has {', '.join(sorted(known))}. "
            "Choose one of them, or install the package of ONNX Runtime that brings it."
        )
    return known[short]


@dataclass(frozen=True)
class OnnxRuntime:
    """provider: short or long name. options: of the provider, as its documentation lists them. threads: of one operator, 0 for one per
    core. Raises `BadInputError` for a provider that is not installed.

    What the provider does not take runs on the CPU, as ONNX Runtime does it. Inputs and outputs are numpy arrays: on other devices the
    times include copying them. Idle threads keep their cores busy and models keep the memory of their largest run, as deployed ones do;
    models that are timed in turn on the CPU share that memory.
    """

    provider: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1

    warms_up = False

    def __post_init__(self) -> None:
        if provider_named(self.provider) == CPU and self.options:
            raise BadInputError(
                "--provider-option: ONNX Runtime's CPU provider has no options; give another --provider."
            )

    @cached_property
    def name(self) -> str:
        threads = {0: "a thread per core", 1: "1 thread"}.get(self.threads, f"{self.threads} threads")
        return f"ONNX Runtime {VERSION}, {self._short}, {threads}"

    @cached_property
    def key(self) -> dict[str, str]:
        gpu = {"device": _nvidia()} if self._short in NVIDIA else {}
        options = ",".join(f"{k}={v}" for k, v in sorted(self.options.items()))
        return {
            "engine": "onnxruntime",
            "version": VERSION,
            "provider": self._short,
            "options": options,
            "threads": str(self.threads),
            **here(),
            **gpu,
        }

    def open(self, model: Model, feeds: Feeds, what: str) -> Calls:
        settings = self.settings(model)
        return self._opened(model, model.proto.SerializeToString(), settings, feeds, what)

    def open_file(self, path: Path, feeds: Feeds, what: str) -> Calls:
        """`open`, straight from the file, as a deployed program does."""
        return self._opened(None, str(path), self.settings(None), feeds, what)

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime's own name of the provider."""
        return provider_named(self.provider)

    @cached_property
    def _short(self) -> str:
        return provider_named(self.provider).removesuffix(SUFFIX).lower()

    def settings(self, model: Model | None) -> ort.SessionOptions:
        """Of a session as it is deployed."""
        settings = session_options(None if model is None else model.folder, self.threads)
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1")
        if self._short == "cpu":
            share_arena(settings)
        return settings

    def session(self, model: Model | None, source: str | bytes, settings: Any, what: str) -> ort.InferenceSession:
        """A loaded model. Raises `BadInputError`."""
        wanted = provider_named(self.provider)
        listed = [(wanted, dict(self.options))] if wanted == CPU else [(wanted, dict(self.options)), (CPU, {})]
        try:
            session = ort.InferenceSession(source, settings, providers=listed, enable_fallback=0)
        except Exception as error:  # onnxruntime raises many unrelated types
            if model is None or wanted != CPU:
                reason = (
                    f"ONNX Runtime {VERSION} cannot load {what} on {self._short}: {first_line(_without_place(error))}"
                )
                raise BadInputError(f"{reason} Check --provider and --provider-option, or choose another.") from None
            raise BadInputError(refusal(model.proto, what, error)) from None
        if (
            session.get_providers()[0] != wanted
        ):  # a provider whose libraries are missing is left out with a warning only
            raise BadInputError(
                f"ONNX Runtime {VERSION} lists the provider {self._short} but cannot start it here and would run {what} on the CPU;"
                " check that its libraries and device are there, or choose another --provider."
            )
        return session

    def _opened(self, model: Model | None, source: str | bytes, settings: Any, feeds: Feeds, what: str) -> Calls:
        session = self.session(model, source, settings, what)
        outputs = [o.name for o in session.get_outputs()]

        def call() -> Sequence[Any]:
            try:
                found: Sequence[Any] = session.run(outputs, feeds)
                return found
            except Exception as error:  # as above
                raise BadInputError(
                    f"ONNX Runtime {VERSION} cannot run {what} on {self._short}: {first_line(error)}{REMEDY}"
                ) from None

        return Calls(call)


def _without_place(error: Exception) -> Exception:
    """An error of a provider, without the line of its source and the function there."""
    return RuntimeError(PLACE.sub("", str(error).strip()))


@cache
def _nvidia() -> str:
    """Names of the GPUs, as the driver's own program tells them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    try:
        asked = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
