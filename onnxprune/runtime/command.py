"""Any program as a `Runner`: it is given a model, runs it where it likes, and prints milliseconds.

    Command("ssh-time.sh {model} {inputs}")       a board, by a script of one's own
    Command("benchmark_app -m {model} -t 2")      a tool that prints "Median: 1.54 ms"

The command is split as a shell splits words, and run without a shell. What is replaced in its words: `{model}` by the path of a temporary
.onnx, in which the sizes of the inputs are filled in where they were dynamic, with its external data beside it; `{inputs}` by an .npz of
the inputs; `{threads}` by their number. The files are there as long as the model is timed. How often it runs the model is the program's.

Of what the program prints on its standard output, one line counts: the last one that is nothing but numbers (spaces or commas between
them), or `NAME: NUMBERS ms`; lines whose name says "median" go before others. Several numbers are runs, one each. A unit may be `us`, `ms`
or `s`; without one, numbers are milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from onnx import ModelProto, ValueInfoProto

from onnxprune.errors import BadInputError, quoted
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.loaded import Model
from onnxprune.model.save import save_model
from onnxprune.runtime.runner import here

PLACES = ("{model}", "{inputs}", "{threads}")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
NUMBERS = rf"{NUMBER}(?:[\s,;]+{NUMBER})*"
UNITS = {"": 1.0, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
UNIT = "us|µs|μs|ms|s"
BARE = re.compile(rf"^(?P<name>)(?P<numbers>{NUMBERS})\s*(?P<unit>{UNIT}|)$")
NAMED = re.compile(rf"^(?P<name>.*?)[:=]\s*(?P<numbers>{NUMBERS})\s*(?P<unit>{UNIT})$")
LARGEST_SCRIPT = 1 << 20


@dataclass(frozen=True)
class Command:
    """command: with `{model}` in it. threads: what `{threads}` stands for. timeout: seconds of one call of the program.

    Raises `BadInputError` for a command without `{model}`, or whose program is not there.
    """

    command: str
    threads: int = 1
    timeout: float = 600.0

    warms_up = True

    def __post_init__(self) -> None:
        words = self.words
        if "{model}" not in self.command:
            raise BadInputError(
                f"--runner {quoted(self.command)} does not say where the model goes; write {{model}} there."
            )
        if self.threads != 1 and "{threads}" not in self.command:
            raise BadInputError(
                f"--runner {quoted(self.command)} does not say where --threads {self.threads} goes; write {{threads}} there."
            )
        if shutil.which(words[0]) is None:
            raise BadInputError(
                f"--runner: the program {quoted(words[0])} is not there or cannot be run; check its path and that it is executable."
            )

    @cached_property
    def words(self) -> list[str]:
        """Of the command."""
        try:
            found = shlex.split(self.command)
        except ValueError as error:
            raise BadInputError(f"--runner {quoted(self.command)} cannot be split into words: {error}.") from None
        if not found:
            raise BadInputError("--runner is empty; give a command such as 'time-it.sh {model} {inputs}'.")
        return found

    @property
    def name(self) -> str:
        return f"command {quoted(self.command)}"

    @cached_property
    def key(self) -> dict[str, str]:
        """`files`: digests of the files that the command names, as a changed script measures something else."""
        named = [Path(shutil.which(self.words[0]) or self.words[0]), *map(Path, self.words[1:])]
        texts = [p.read_bytes() for p in named if p.is_file() and p.stat().st_size <= LARGEST_SCRIPT]
        return {
            "engine": "command",
            "command": self.command,
            "files": ",".join(hashlib.sha256(t).hexdigest()[:16] for t in texts),
            "threads": str(self.threads),
            **here(),
        }

    def open(self, model: Model, feeds: Feeds, what: str) -> Program:
        """Write the model, and the inputs where they are asked for."""
        folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
        try:
            path, inputs = Path(folder.name) / "model.onnx", Path(folder.name) / "inputs.npz"
            save_model(model.beside(with_sizes(model.proto, feeds)), path)
            if "{inputs}" in self.command:
                np.savez(inputs, **{name: _plain(array) for name, array in feeds.items()})  # type: ignore[arg-type]
        except BaseException:
            folder.cleanup()
            raise
        return Program(
            self, folder, {"{model}": str(path), "{inputs}": str(inputs), "{threads}": str(self.threads)}, what
        )


class Program:
    """An `Opened` that starts the program anew for every call of `time`. what: how messages call the model."""

    def __init__(
        self, command: Command, folder: tempfile.TemporaryDirectory[str], values: dict[str, str], what: str
    ) -> None:
        self._command, self._folder, self._values, self._what = command, folder, values, what

    def time(self, runs: int) -> list[float]:
        out, err = self._called([_filled(word, self._values) for word in self._command.words])
        times = times_of(out)
        if times is None:
            raise self._failed("printed no line that is a number of milliseconds", err, out)
        if not all(0 < t < float("inf") for t in times):
            shown = ", ".join(f"{t:g}" for t in times[:4])
            raise self._failed(f"printed {shown} as milliseconds, which must be above zero", err)
        return times

    def run(self) -> None:
        """What the program makes of the model stays where it is."""

    def close(self) -> None:
        self._folder.cleanup()

    def _called(self, words: list[str]) -> tuple[str, str]:
        """What the program prints on its standard output, and on the other. It ends with all that it has started when its time is up."""
        pipe, group = subprocess.PIPE, os.name == "posix"
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=group
            )
        except OSError as error:
            raise self._failed(f"cannot be started ({error.strerror or type(error).__name__})") from None
        try:
            out, err = (b.decode("utf-8", "replace") for b in process.communicate(timeout=self._command.timeout))
        except BaseException as error:
            _end(process, group)
            if isinstance(error, subprocess.TimeoutExpired):
                late = process.communicate()[1].decode("utf-8", "replace")
                raise self._failed(f"took longer than {self._command.timeout:g} seconds", late) from None
            raise
        if process.returncode:
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            raise self._failed(f"ended with {how}", err, out)
        return out, err

    def _failed(self, why: str, err: str = "", out: str = "") -> BadInputError:
        said = _end_of(err) or _end_of(out)
        stream = "standard error" if _end_of(err) else "output"
        tail = f"; its {stream} ends with {said}" if said else "; it printed nothing"
        return BadInputError(f"The command {quoted(self._command.command)} (--runner) {why} on {self._what}{tail}.")


def times_of(text: str) -> list[float] | None:
    """Milliseconds in what a program printed; None where no line has any (the module's docstring says which line counts)."""
    found = [m for line in text.splitlines() if (m := BARE.match(line.strip()) or NAMED.match(line.strip()))]
    chosen = [m for m in found if "median" in m["name"].lower()] or found
    if not chosen:
        return None
    factor = UNITS[chosen[-1]["unit"]]
    return [factor * float(n) for n in re.findall(NUMBER, chosen[-1]["numbers"])]


def with_sizes(proto: ModelProto, feeds: Feeds) -> ModelProto:
    """The model with the sizes of these inputs declared; itself where they are."""
    if not any(_is_dynamic(value) for value in proto.graph.input if value.name in feeds):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.input:
        if value.name in feeds and value.type.HasField("tensor_type"):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in feeds[value.name].shape:
                shape.dim.add(dim_value=size)
    return copy


def _is_dynamic(value: ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return not tensor.HasField("shape") or any(d.dim_value <= 0 for d in tensor.shape.dim)


def _plain(array: Array) -> Array:
    """Texts as fixed-size strings, which an .npz has without pickles."""
    return array.astype(str) if array.dtype.kind == "O" else array


def _filled(word: str, values: dict[str, str]) -> str:
    for place in PLACES:
        word = word.replace(place, values[place])
    return word


def _end(process: subprocess.Popen[bytes], group: bool) -> None:
    """Kill a program and what it has started."""
    try:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except ProcessLookupError:
        pass
    process.wait()


def _end_of(text: str) -> str:
    """The last lines, fit for a message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = " / ".join(lines[-3:])
    return repr(joined if len(joined) <= 300 else f"...{joined[-297:]}") if joined else ""
