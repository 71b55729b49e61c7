"""Asked against measured time, and what is lost at equal time: python -m onnxprune.bench speed [--models DIR]... [--only NAME]

For every model and each of 1.3, 1.5 and 2 times: the model of `--speedup`, as it was told and as it is timed again, in turn with the original,
when all is done, and the model of a MACs target of which the share is lowered until it is as fast, both on inputs that the pruning has not
seen. "Score" is the share of those on which the top class is the original's; of the models that `models/fetch.py` has fetched, what
`models/scores.py` says. Where the packages of the extra `peers` are there, onnxsim's output is timed beside them. Run it on a machine that
does nothing else.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

import onnxprune
from models import scores
from onnxprune import Budget, OnnxPruneError, runtime
from onnxprune.analyse.observe import feeds_of
from onnxprune.analyse.scope import Scope
from onnxprune.model.load import load
from tests.benchmarks.stripped import SUFFIX, load_graph

ROOT = Path(__file__).resolve().parents[2]
NETS = ROOT.parent / "shared" / "nets"
ZOO = ROOT.parent / "shared" / "zoo"
SPEEDS = (1.3, 1.5, 2.0)
SHAPES = (
    "tv__resnet18__legacy",
    "tv__mobilenet_v3_small__legacy",
    "timm__deit_tiny_patch16_224__legacy",
    "tv__densenet121__legacy",
)
HEAD = (
    "| model | asked | told | by time: measured | within | score | MACs kept | by MACs, as fast: measured | score | MACs kept | onnxsim | seconds |\n"
    "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|"
)
INPUTS = 64
STEPS = 6  # of the bisection for the MACs target that is as fast


Judge = Callable[[onnx.ModelProto], float]


class Case(NamedTuple):
    """judge: the score of a pruned model; None where nothing true can be said."""

    name: str
    model: Any
    data: Path | None = None
    judge: Judge | None = None


def models(folders: list[Path], only: str) -> Iterator[Case]:
    data = ROOT / "models" / "digits_calib.npz"
    for name in ("digits", "digits_vit"):
        if only in name:
            with np.load(ROOT / "models" / "digits_test.npz") as test:
                model = ROOT / "models" / f"{name}.onnx"
                yield Case(name, model, data, partial(agreement, model, {"x": test["x"]}))
    if NETS.exists():
        with np.load(NETS / "digits.npz") as nets, tempfile.TemporaryDirectory() as place:
            scaled = {k: (nets[k] / 255 * 3 - 1).astype(np.float32).reshape(-1, 1, 32, 32) for k in ("Xtr", "Xte")}
            for path in sorted(NETS.glob("*.onnx")):
                if only in path.stem:
                    name = onnx.load(path, load_external_data=False).graph.input[0].name
                    given = Path(place) / f"{path.stem}.npz"
                    np.savez(given, **{name: scaled["Xtr"][:256]})
                    yield Case(path.stem, path, given, partial(agreement, path, {name: scaled["Xte"][:1000]}))
    for path in sorted(scores.REAL.glob("*.onnx")):
        if only in path.stem and path.stem in scores.TASKS:
            yield from fetched(path)
    for folder in folders:
        for path in sorted(folder.glob("*.onnx")):
            if only in path.stem:
                calib = path.with_suffix(".npz")
                yield Case(path.stem, path, calib if calib.exists() else None)
    for stem in SHAPES:
        path = ZOO / f"{stem}{SUFFIX}"
        if path.exists() and only in stem:
            yield Case(stem, load_graph(path))


def fetched(path: Path) -> Iterator[Case]:
    """A real model with its unlabelled inputs and its score."""
    with tempfile.TemporaryDirectory() as place:
        for k, feed in enumerate(scores.calibration(path.stem, INPUTS)):
            np.savez(Path(place) / f"{k:03d}.npz", **feed)
        made = Path(place) / "made.onnx"

        def judge(pruned: onnx.ModelProto) -> float:
            onnx.save(pruned, made)
            return scores.score(path.stem, made)

        yield Case(path.stem, path, Path(place), judge)


def agreement(original: Path, inputs: dict[str, Any], pruned: onnx.ModelProto) -> float:
    """Share of equal top classes on inputs that nothing has seen."""
    a, b = (runtime.Session(m).run(inputs)[0].argmax(axis=-1) for m in (load(original), load(pruned)))
    return float((a == b).mean())


def speed_of(original: Any, data: Path | None, made: list[onnx.ModelProto]) -> list[runtime.Speedup]:
    """Of each model against the original, in turn, on inputs of the sizes that the target was timed with."""
    loaded = load(original)
    feeds = feeds_of(loaded, Scope(data=data))[0]
    found = []
    for model in made:  # two at a time, as `--speedup` does it: more of them would share the caches
        times = runtime.latency(runtime.OnnxRuntime(), [loaded, loaded.beside(model)], feeds, repeats=60)
        found.append(runtime.speedup(times[0].rounds, times[1].rounds))
    return found


def by_macs(model: Any, data: Path | None, least: float) -> onnxprune.PruneResult | None:
    """The largest share of the MACs that is at least so fast."""
    low, high, best = 0.02, 1.0, None
    for _ in range(STEPS):
        share = (low + high) / 2
        try:
            found = onnxprune.prune(model, Budget("macs", share), data=data, benchmark=False)
        except OnnxPruneError:
            low = share
            continue
        if speed_of(model, data, [found.model])[0].ratio >= least:
            low, best = share, found
        else:
            high = share
    return best


def simplified(model: Any) -> onnx.ModelProto | None:
    try:
        import onnxsim
    except ImportError:
        return None
    try:
        return onnxsim.simplify(load(model).proto)[0]
    except Exception as problem:  # it gives up on models with branches, with errors of several kinds
        print(f"onnxsim: {type(problem).__name__}", file=sys.stderr)
        return None


def kept(result: onnxprune.PruneResult) -> str:
    macs = result.report.cost.macs
    return "-" if macs is None else f"{macs.after / macs.before:.3f}"


def row(case: Case, asked: float, rival: bool) -> str:
    name, model, data, judge = case
    start = time.perf_counter()
    try:
        timed = onnxprune.prune(model, Budget("speedup", asked), data=data, benchmark=False)
    except OnnxPruneError as refusal:
        return f"| {name} | {asked:g} | {str(refusal).split(' Most of')[0]} | | | | | | | | | {time.perf_counter() - start:.0f} |"
    seconds = time.perf_counter() - start
    counted = by_macs(model, data, timed.report.pace.measured) if rival else None
    others_made = [m for m in (counted and counted.model, simplified(model) if rival else None) if m is not None]
    speeds = speed_of(model, data, [timed.model, *others_made])
    own = speeds[0]
    within = "yes" if asked * 0.95 <= own.ratio <= asked * 1.05 else "faster" if own.ratio > asked else "NO"
    cells = [
        name,
        f"{asked:g}",
        f"{timed.report.pace.measured:.2f}",
        f"{own.ratio:.2f} ({own.low:.2f} to {own.high:.2f})",
        within,
        _score(judge, timed.model),
        kept(timed),
    ]
    if counted is not None:
        cells += [f"{speeds[1].ratio:.2f}", _score(judge, counted.model), kept(counted)]
    else:
        cells += ["-"] * 3
    sim = len(others_made) > (counted is not None)
    return f"| {' | '.join([*cells, f'{speeds[-1].ratio:.2f}' if sim else '-', f'{seconds:.0f}'])} |"


def _score(judge: Judge | None, pruned: onnx.ModelProto) -> str:
    return "-" if judge is None else f"{judge(pruned):.3f}"


def measure(folders: list[Path], only: str, speeds: tuple[float, ...], rival: bool) -> None:
    print(HEAD)
    for case in models(folders, only):
        for asked in speeds:
            try:
                print(row(case, asked, rival), flush=True)
            except OnnxPruneError as problem:
                print(f"{case.name} at {asked:g}: {problem}", file=sys.stderr)
