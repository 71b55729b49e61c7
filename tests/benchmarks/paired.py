"""Time of a typical run against another copy of the package, in turn: `python -m tests.benchmarks.paired FOLDER [ROUNDS]`.

Both copies run as an installed package does, from compiled modules: those lie in a temporary folder, made by one run before the rounds.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
IN_PROCESS = """
import sys, time, onnxprune
prune, budget = onnxprune.prune, onnxprune.Budget("macs", 0.5)  # imported now, which is no part of the run
start = time.perf_counter()
prune(sys.argv[1], budget, data=sys.argv[2])
print(time.perf_counter() - start)
"""


def measure(folder: Path, compiled: str) -> tuple[float, float, float]:
    """Seconds: of the whole process, of its processors (user and system), of `onnxprune.prune` alone in another process."""
    model, data = (str(HERE / "models" / x) for x in ("digits.onnx", "digits_calib.npz"))
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONPYCACHEPREFIX": compiled,
        "PYTHONDONTWRITEBYTECODE": "",
    }
    with tempfile.TemporaryDirectory() as place:
        command = ["-m", "onnxprune", "prune", model, "-o", f"{place}/small.onnx", "--macs", "0.5", "--data", data]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *command], env=environment, cwd=place, check=True, capture_output=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        alone = subprocess.run(
            [sys.executable, "-c", IN_PROCESS, model, data], env=environment, cwd=place, check=True, capture_output=True
        )
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, float(alone.stdout)


def main() -> None:
    other, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 7
    with tempfile.TemporaryDirectory() as compiled:
        pairs = [(measure(other, compiled), measure(HERE, compiled)) for _ in range(rounds + 1)][1:]
    for k, name in enumerate(("wall of the process", "user and system", "prune() alone")):
        theirs, ours = (statistics.median(pair[side][k] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(ours[k] / theirs[k] for theirs, ours in pairs)
        print(f"{name:<20} {theirs:6.2f} s -> {ours:6.2f} s   median of the paired ratios {ratio:.2f}")


if __name__ == "__main__":
    main()
