"""From what a user writes to the `Runner` that it means."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.errors import BadInputError, quoted
from onnxprune.runtime.command import Command
from onnxprune.runtime.engine import OnnxRuntime
from onnxprune.runtime.intel import OpenVino
from onnxprune.runtime.runner import Runner

ENGINES = ("onnxruntime", "openvino")


def runner_of(
    runner: str | Runner | None = None,
    provider: str | None = None,
    options: Mapping[str, str] | None = None,
    threads: int = 1,
) -> Runner:
    """A runner by name (`onnxruntime`, `openvino`) or by command (`Command`); a runner is itself.

    provider: of ONNX Runtime, `cpu` where none is given. options: of the provider, or of OpenVINO's device. Raises `BadInputError`, in
    one sentence, for what is unknown, not installed, or does not go together.
    """
    engine = "onnxruntime" if runner is None else runner
    if provider is not None and engine != "onnxruntime":
        raise BadInputError("--provider is one of ONNX Runtime's; leave it out, or leave out --runner.")
    given = dict(options or {})
    if engine == "onnxruntime":
        return OnnxRuntime(provider or "cpu", given, threads)
    if engine == "openvino":
        return OpenVino(given, threads)
    if given:
        raise BadInputError("--provider-option goes with --provider or --runner openvino; leave it out.")
    if not isinstance(engine, str):
        return engine
    if "{" not in engine and len(engine.split()) == 1:
        raise BadInputError(
            f"Unknown --runner {quoted(engine)}; choose {' or '.join(ENGINES)}, or give a command such as 'time-it.sh {{model}}'."
        )
    return Command(engine, threads)
