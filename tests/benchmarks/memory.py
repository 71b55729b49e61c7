"""Peak memory of `inspect` and `prune --ratio 0.5 --recover none`, stage by stage: python -m tests.benchmarks.memory [NAME...]

Every graph of a folder of stripped graphs (`--zoo`, weights are drawn at random) or `.onnx` file whose name contains a NAME, each measured
in processes of its own. A peak is the largest resident size (VmHWM in /proc, Linux only) since the stage began, imports and all.

What is allowed is 4 x the file + 3 x what one inference takes + 200 MB. One inference is a process that loads the file in ONNX Runtime
as it is by default and runs it once: its peak, less what it had before it loaded the file. It is taken with one sample (the natural size)
and with the larger of the two inputs that onnxprune observes the model with; the table says with which of them it holds. Markdown goes to stdout.

`--macs` measures `prune --macs 0.5` with data instead, all other settings as they are by default: 32 random samples of the natural size.
What is allowed then is 6 x the file + the 1 GB of layers' inputs that calibration may read at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
HEADS = ("graph", "file", "inference", "at observed size", "allowed", "inspect", "prune", "largest stage", "holds")
CALIBRATED = ("graph", "file", "allowed", "prune", "largest stage", "holds")
SAMPLES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names (default: all)")
    parser.add_argument("--zoo", type=Path, default=ROOT / "tests/zoo", help="folder of .onnx.z and .onnx files")
    parser.add_argument("--stages", action="store_true", help="also the peak of every stage")
    parser.add_argument("--macs", action="store_true", help="calibration: `prune --macs 0.5` with 32 random samples")
    how = parser.parse_args()
    heads, measure = (CALIBRATED, calibrated) if how.macs else (HEADS, measured)
    files = sorted([*how.zoo.glob("*.onnx.z"), *how.zoo.glob("*.onnx")])
    chosen = [f for f in files if not how.names or any(n in f.name for n in how.names)]
    print("in MB\n\n| " + " | ".join(heads) + " |\n|---|" + "---:|" * (len(heads) - 3) + "---|---|", flush=True)
    staged: list[str] = []
    for file in chosen:
        name = file.name.split(".onnx")[0]
        with tempfile.TemporaryDirectory() as folder:
            path = file
            if file.suffix == ".z":
                path = Path(folder) / "model.onnx"
                _part("draw", file, path)
            row, stages = measure(path, Path(folder))
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)
        staged += [f"| {name} | " + ", ".join(f"{s} {p:,.0f}" for s, p in stages.items()) + " |"]
    if how.stages:
        print("\n| graph | peak of each stage |\n|---|---|\n" + "\n".join(staged))


def measured(path: Path, folder: Path) -> tuple[list[str], dict[str, float]]:
    """One row of the table; the peak of every stage of `prune`."""
    size = _size(path)
    _part("feeds", path, folder)
    natural, observed = (_part("infer", path, folder / f"{n}.npz")["peak"] for n in ("natural", "observed"))
    allowed = 4 * size + 3 * natural + 200
    looked, pruned = _part("inspect", path), _part("prune", path, folder / "small.onnx")
    stages: dict[str, float] = pruned.get("stages", {})
    highest = max([*looked.get("stages", {}).values(), *stages.values()], default=float("nan"))
    where = max(stages, key=lambda s: stages[s]) if stages else "-"
    wider = allowed + 3 * (observed - natural)
    holds = "yes" if highest <= allowed else "at observed size" if highest <= wider else "**no**"
    numbers = (size, natural, observed, allowed, looked.get("peak"), pruned.get("peak"))
    row = ["failed" if x is None else f"{x:,.0f}" for x in numbers]
    return [*row, where, holds], stages


def calibrated(path: Path, folder: Path) -> tuple[list[str], dict[str, float]]:
    """One row of the table of calibration; the peak of every stage."""
    _part("feeds", path, folder)
    size = _size(path)
    allowed = 6 * size + 1024
    stages: dict[str, float] = _part("macs", path, folder / "small.onnx", folder / "natural.npz").get("stages", {})
    if not stages:
        return [f"{size:,.0f}", f"{allowed:,.0f}", "failed", "-", "**no**"], {}
    where = max(stages, key=lambda s: stages[s])
    holds = "yes" if stages[where] <= allowed else "**no**"
    return [f"{size:,.0f}", f"{allowed:,.0f}", f"{stages[where]:,.0f}", where, holds], stages


def _size(path: Path) -> float:
    """Of a model's files, in MB."""
    return sum(f.stat().st_size for f in [path, *path.parent.glob(path.name + ".data")]) / MB


def _part(*arguments: object) -> dict[str, Any]:
    """One measurement in a process of its own; {} where it failed."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--part", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(f"{arguments}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---------------------------------------------------------------- in the other processes


def draw(file: str, path: str) -> dict[str, Any]:
    """A stripped graph with weights."""
    import onnx

    from tests.benchmarks.stripped import load_graph

    onnx.save(load_graph(Path(file)), path)
    return {}


def feeds(path: str, folder: str) -> dict[str, Any]:
    """Write the larger of the inputs that the model is observed with, and one sample of them."""
    import numpy as np

    from onnxprune import runtime
    from onnxprune.analyse.feeds import take
    from onnxprune.model.load import load

    model = load(path)
    pair = runtime.find_feeds(model)
    inputs = runtime.graph_inputs(model.proto)
    largest = max(pair, key=lambda f: sum(a.nbytes for a in f.values()))
    np.savez(Path(folder) / "observed.npz", **largest)
    one = take(pair[0], inputs, 1)
    try:
        runtime.Session(model).run(one)
    except Exception:
        one = pair[0]
    np.savez(Path(folder) / "natural.npz", **one)
    return {}


def infer(path: str, data: str) -> dict[str, Any]:
    """ONNX Runtime alone: loads the file, runs it once."""
    import numpy as np
    import onnxruntime as ort

    fed = dict(np.load(data))
    before = _resident("VmRSS")
    ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, fed)
    return {"peak": _resident("VmHWM") - before}


def inspect(path: str) -> dict[str, Any]:
    import onnxprune

    return _staged(lambda told: onnxprune.inspect(path, progress=told))


def prune(path: str, output: str) -> dict[str, Any]:
    import onnxprune

    ratio = onnxprune.Budget("ratio", 0.5)
    return _staged(lambda told: onnxprune.prune(path, ratio, recover="none", output=output, progress=told))


def macs(path: str, output: str, natural: str) -> dict[str, Any]:
    """natural: a file with one sample; those of the calibration are of its sizes. Integers are its own, in another order."""
    import numpy as np

    import onnxprune

    rng = np.random.default_rng(0)

    def drawn(value: Any) -> Any:
        like = value[:1] if value.ndim else value
        many = [
            rng.standard_normal(like.shape)
            if like.dtype.kind == "f"
            else rng.permutation(like.ravel()).reshape(like.shape)
            for _ in range(SAMPLES if value.ndim else 1)
        ]
        return (np.concatenate(many) if value.ndim else many[0]).astype(value.dtype)

    data = Path(output).with_name("samples.npz")
    np.savez(data, **{name: drawn(value) for name, value in np.load(natural).items()})
    half = onnxprune.Budget("macs", 0.5)
    return _staged(lambda told: onnxprune.prune(path, half, data=data, output=output, progress=told))


def _staged(run: Callable[[Callable[[str], None]], Any]) -> dict[str, Any]:
    """The peak of every stage that `run` tells of."""
    from onnxprune.cli.allocation import give_back_large_blocks

    give_back_large_blocks()  # as the command line does
    stages: dict[str, float] = {}
    name = ["imports"]

    def told(text: str) -> None:
        stage = getattr(text, "stage", text)
        if stage == name[0]:
            return
        stages[name[0]] = max(stages.get(name[0], 0.0), _resident("VmHWM"))
        print(f"{name[0]} {stages[name[0]]:,.0f}", file=sys.stderr, flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        name[0] = stage

    run(told)
    told("end")
    return {"stages": stages, "peak": max(stages.values())}


def _resident(field: str) -> float:
    """VmRSS, what this process has in memory now, or VmHWM, the most that it had; in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        parts = {"draw": draw, "feeds": feeds, "infer": infer, "inspect": inspect, "prune": prune, "macs": macs}
        print(json.dumps(parts[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
