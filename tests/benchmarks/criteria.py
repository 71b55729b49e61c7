"""Criteria and closed-form repairs of papers (`papers.py`) and onnxprune on the same models, inputs and MACs, as one table:

    python tests/benchmarks/peers.py --criteria --nets ../shared/nets --models digits digits_vit efficientnet_lite0

--nets: a folder of `*.onnx` classifiers and `digits.npz`, as in `peers.py`; the first 128 of `Xtr` calibrate, the test images score.
--models: names of `models/scores.py`, with its inputs and its scores; the real ones must have been fetched.

What makes the comparison fair:
- All get the same unlabelled inputs, 128 of the small networks and 64 of the real models. The papers' methods use all of them in one pass;
  onnxprune holds a fourth of them out, and makes more out of the rest, as its defaults are.
- All cut with the same index maps, so that no method fails on a graph, and may take any number of units of any group. onnxprune keeps
  multiples of 8 channels in convolutions where it can, as its defaults are, so it has a little less left.
- Every method keeps at most the target's MACs, and as nearly that many as its own way to spread the cut lets it. Nobody trains.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's, whatever is installed

import onnxprune  # noqa: E402
from models import scores  # noqa: E402
from onnxprune import Budget, OnnxPruneError, runtime  # noqa: E402
from onnxprune.analyse import feeds as feeding  # noqa: E402
from onnxprune.analyse.observe import analysis_of  # noqa: E402
from onnxprune.analyse.runs import taking  # noqa: E402
from onnxprune.calibrate.calibrate import calibrate  # noqa: E402
from onnxprune.calibrate.calibration import Calibration  # noqa: E402
from onnxprune.calibrate.judging import judged_by  # noqa: E402
from onnxprune.choose.channels import keeps_size  # noqa: E402
from onnxprune.choose.costs import CostModel  # noqa: E402
from onnxprune.choose.options import options_of  # noqa: E402
from onnxprune.groups.analysis import Analysis  # noqa: E402
from onnxprune.model.load import load  # noqa: E402
from tests.benchmarks import papers  # noqa: E402

SMALL, REAL = 128, 64  # inputs to calibrate with
OURS = "onnxprune"
MODELS = ("digits", "digits_vit")


@dataclass(frozen=True)
class Case:
    """A model with inputs to calibrate on (a file or a folder, as `--data`), and its score, from 0 to 1."""

    name: str
    path: Path
    data: Path
    score: Callable[[Path], float]


@dataclass(frozen=True)
class Cell:
    """What a method made of a model at a target. note: why it made nothing."""

    model: str
    original: float
    method: str
    target: float
    score: float | None = None
    kept: float | None = None
    seconds: float | None = None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.score:.3f} ({self.kept:.3f})" if self.score is not None else self.note


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--criteria", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--nets", type=Path, metavar="DIR", help="folder of .onnx classifiers and digits.npz")
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME", help="names of models/scores.py")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.7, 0.5], metavar="F", help="shares to keep")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="only methods with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number, and read those that are there")
    given = parser.parse_args(arguments)
    names = [n for n in [*papers.METHODS, OURS] if any(text.lower() in n.lower() for text in given.only)]
    cells = [Cell(**c) for c in json.loads(given.json.read_text())] if given.json and given.json.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(given.nets, given.models, Path(folder)):
            for cell in measured(case, names, given.macs, Path(folder)):
                print(f"{cell.model}, {cell.method}, {cell.target}: {cell} {cell.seconds}", file=sys.stderr, flush=True)
                cells = [c for c in cells if (c.model, c.method, c.target) != (cell.model, cell.method, cell.target)]
                cells.append(cell)
                if given.json:
                    given.json.write_text(json.dumps([asdict(c) for c in cells], indent=1) + "\n", encoding="utf-8")
    print(table(cells, names, given.macs))


def cases(nets: Path | None, names: list[str], folder: Path) -> list[Case]:
    found = []
    if nets is not None:
        with np.load(nets / "digits.npz") as file:
            train, test = (file[k].astype(np.float32) / 255 * 3 - 1 for k in ("Xtr", "Xte"))
            labels = file["yte"].astype(np.int64)
        np.savez(folder / "nets.npz", input=train[:SMALL])

        def top1(path: Path) -> float:
            session = runtime.Session(load(path))
            return float((session.run({"input": test})[0].argmax(axis=1) == labels).mean())

        found += [Case(p.stem, p, folder / "nets.npz", top1) for p in sorted(nets.glob("*.onnx"))]
    return found + [named(name, folder) for name in names]


def named(name: str, folder: Path) -> Case:
    """A model of `models/scores.py`; its inputs one a file."""
    path = scores.unpruned_path(name)
    data = folder / name
    data.mkdir()
    if name in MODELS:
        data = ROOT / "models" / "digits_calib.npz"
    else:
        for k, feed in enumerate(scores.calibration(name, REAL)):
            np.savez(data / f"{k:04}.npz", **feed)  # type: ignore[arg-type]
    return Case(name, path, data, lambda made: scores.score(name, made))


def measured(case: Case, names: list[str], targets: list[float], folder: Path) -> Iterator[Cell]:
    """All methods on one model. Where one cannot reach a target, the cell says so."""
    original = case.score(case.path)
    analysis, calibration, costs = None, None, None
    for name in names:
        for target in targets:
            cell = Cell(case.name, original, name, target)
            start = time.perf_counter()
            try:
                if name == OURS:
                    model = onnxprune.prune(case.path, Budget("macs", target), data=case.data, benchmark=False).model
                else:
                    if analysis is None or calibration is None or costs is None:
                        analysis, calibration = observed(case)
                        costs = CostModel(analysis)
                    model = papers.pruned(analysis, calibration, papers.METHODS[name], costs.of("macs"), target)
            except OnnxPruneError as error:
                yield replace(cell, note=f"{type(error).__name__}: {str(error)[:80]}")
                continue
            seconds = time.perf_counter() - start
            file = folder / "pruned.onnx"
            onnx.save(model, file)
            kept = macs(model) / macs(onnx.load(case.path))
            yield replace(cell, score=case.score(file), kept=kept, seconds=round(seconds, 1))


def macs(model: onnx.ModelProto) -> int:
    return int(onnxprune.inspect(model)["macs"])


def observed(case: Case) -> tuple[Analysis, Calibration]:
    """The model's groups, and the moments of what its layers read on all inputs: none held out, none made up."""
    settings = options_of({"data": case.data})
    loaded = load(case.path)
    analysis = analysis_of(loaded, settings.scope)
    inputs = runtime.graph_inputs(loaded.proto)
    session = runtime.Session(analysis.model)
    given = feeding.load_data(case.data, inputs)
    samples = feeding.samples_of(given, inputs, None, 0, 0, session, taking=taking(analysis))
    samples = replace(samples, held=(False,) * len(samples.held))
    judged = judged_by(analysis.model, keeps_size(analysis), (), leads=True)
    return analysis, calibrate(analysis, samples, judged)


def table(cells: list[Cell], names: list[str], targets: list[float]) -> str:
    """Markdown: a line per model and target, a column per method."""
    lines = [f"| model | original | MACs | {' | '.join(names)} | best other | ours over it |"]
    lines.append(f"|---|---:|---:|{'---:|' * len(names)}---|---:|")
    for model in dict.fromkeys(c.model for c in cells):
        for target in targets:
            row = {c.method: c for c in cells if (c.model, c.target) == (model, target)}
            if not row:
                continue
            others = {n: c.score for n, c in row.items() if n != OURS and c.score is not None}
            best = max(others, key=lambda n: others[n]) if others else ""
            ours = row[OURS].score if OURS in row else None
            over = f"{ours - others[best]:+.3f}" if ours is not None and best else ""
            texts = [str(row[n]) if n in row else "" for n in names]
            original = next(iter(row.values())).original
            lines.append(f"| `{model}` | {original:.3f} | {target:g} | {' | '.join(texts)} | {best} | {over} |")
    return "\n".join(
        [*lines, "", f"Score (MACs kept); onnxprune {onnxprune.__version__}, onnxruntime {runtime.VERSION}."]
    )


if __name__ == "__main__":
    main()
