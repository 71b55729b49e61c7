"""One model in a process of its own: how long loading and the first run take, and how much memory.

In one process models add up, and caches are warm after the first. The process is this module, run by the same Python:

    alone({"runner": None, "provider": "cpu", "options": {}}, 1, Path("model.onnx"), feeds)

It is told on its standard input what to do, and prints what it has measured as JSON. Memory is resident memory at its peak, less what the
process held before the model was loaded: Python, the engine and the inputs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from onnxprune.errors import OnnxPruneError
from onnxprune.groups.observation import Feeds
from onnxprune.runtime.places import runner_of
from onnxprune.runtime.session import custom_ops, load_custom_ops

TIMEOUT = 600  # seconds
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Alone:
    """load_ms: from the file to a session. first_ms: the first run. memory_bytes: None where the system does not tell.

    problem: why nothing was measured; empty where it was.
    """

    load_ms: float | None = None
    first_ms: float | None = None
    memory_bytes: int | None = None
    problem: str = ""


def alone(spec: Mapping[str, Any], threads: int, path: Path, feeds: Feeds) -> Alone:
    """spec: arguments of `runner_of`, as JSON has them. feeds: as this model takes them. Raises nothing: see `Alone.problem`."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        inputs = Path(folder) / "inputs.pb"
        tensors = [numpy_helper.from_array(array, name) for name, array in feeds.items()]
        inputs.write_bytes(onnx.GraphProto(initializer=tensors).SerializeToString())
        told = {"runner": {**spec, "threads": threads}, "model": str(path.resolve()), "inputs": str(inputs)}
        told["custom_ops"] = custom_ops()
        here = str(Path(__file__).resolve().parents[2])
        paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "onnxprune.runtime.alone"],
                input=json.dumps(told),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
            found = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            return Alone(problem=f"it took longer than {TIMEOUT} seconds")
        except (OSError, ValueError, IndexError) as error:
            ended = f"exit code {done.returncode}" if not isinstance(error, OSError) else str(error)
            return Alone(problem=f"the process ended with {ended}")
    return Alone(**found)


def _measured(told: Mapping[str, Any]) -> Alone:
    """What the process of its own does."""
    graph = onnx.GraphProto.FromString(Path(told["inputs"]).read_bytes())
    feeds = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    load_custom_ops(told["custom_ops"])
    runner: Any = runner_of(**told["runner"])
    before = _memory(reset=True)
    start = time.perf_counter()
    opened = runner.open_file(Path(told["model"]), feeds, "the model")
    loaded = time.perf_counter()
    opened.time(1)
    first = time.perf_counter()
    opened.time(1)
    after = _memory()
    memory = None if before is None or after is None else max(0, after - before)
    return Alone(1000 * (loaded - start), 1000 * (first - loaded), memory)


def _memory(reset: bool = False) -> int | None:
    """Peak of resident memory so far, in bytes. reset: what is resident now, from which a new peak is counted where the system can."""
    if STATUS.exists():
        if reset:
            with contextlib.suppress(OSError):  # a peak of before may then hide what a small model takes
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        line = next(x for x in STATUS.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main(arguments: Sequence[str] = ()) -> None:
    """Read what to do, do it, print what came out."""
    try:
        found = _measured(json.loads(sys.stdin.read()))
    except OnnxPruneError as error:
        found = Alone(problem=str(error))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
