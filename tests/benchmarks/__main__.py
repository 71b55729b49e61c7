"""`python -m onnxprune.bench`: what can be removed from a folder of graphs, and how long it takes.

zoo DIR   every .onnx or .onnx.z of a folder at one ratio: groups, MACs and parameters kept, oracle error, seconds, reasons
seconds   analysis + plan + rewrite of a ResNet-50 and of a 5,000-node graph
speed     asked against measured time, and what is lost at equal time, of ten models (tests/benchmarks/speed.py)
linear    the same for chains of n and 2n nodes
explore   what 8 sizes cost beside one prune; workers: how well two Dask workers share the work (tests/benchmarks/explore.py)
steps     times of one convolution and one matrix product at every width, as a table and a picture
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import onnx
from rich.console import Console
from rich.table import Table

from onnxprune import runtime
from onnxprune.api import prune as pipeline
from onnxprune.choose.budget import Budget
from onnxprune.errors import OnnxPruneError
from onnxprune.report.report import Report
from onnxprune.version import __version__
from tests.benchmarks import explore, made, steps
from tests.benchmarks.stripped import SUFFIX, load_graph

OUT = Console(highlight=False, soft_wrap=True, width=200)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Benchmarks of onnxprune."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--ratio", type=float, default=0.5, show_default=True)
@click.option("--round-to", type=int, default=1, show_default=True)
@click.option("--include-inexact", is_flag=True)
@click.option("--only", default="", help="Only files whose name contains this.")
@click.option("--json", "as_json", is_flag=True)
def zoo(folder: Path, ratio: float, round_to: int, include_inexact: bool, only: str, as_json: bool) -> None:
    """Prune every model of FOLDER and check it."""
    files = sorted(p for p in folder.iterdir() if p.name.endswith((SUFFIX, ".onnx")) and only in p.name)
    rows = []
    for path in files:
        row = _one(path, ratio, round_to, include_inexact)
        rows.append(row)
        if not as_json:
            OUT.print(_line(row), markup=False)
    summary = _summary(rows)
    if as_json:
        click.echo(
            json.dumps(
                {"onnxprune": __version__, "onnxruntime": runtime.VERSION, "rows": rows, "summary": summary}, indent=1
            )
        )
    else:
        OUT.print(json.dumps(summary), markup=False)


def _one(path: Path, ratio: float, round_to: int, include_inexact: bool) -> dict[str, Any]:
    name = path.name.removesuffix(SUFFIX).removesuffix(".onnx")
    begin = time.perf_counter()
    try:
        source: Any = load_graph(path) if path.name.endswith(SUFFIX) else path
        begin = time.perf_counter()
        result = pipeline.prune(
            source, Budget("ratio", ratio), round_to=round_to, include_inexact=include_inexact, benchmark=False
        )
        onnx.checker.check_model(result.model, full_check=True)
    except (OnnxPruneError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return {"model": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
    found = result.report
    macs, params = found.cost.macs, found.cost.params
    held = found.declined[0].reason if found.declined else ""
    kept = macs.after / max(1, macs.before)
    return {
        "model": name,
        "groups": len(found.groups),
        "exact": sum(g.exact for g in found.groups),
        "declined": sum(d.groups for d in found.declined),
        "macs_kept": round(kept, 4),
        "params_kept": round(params.after / max(1, params.before), 4),
        "error": found.check.error,
        "tolerance": found.check.tolerance,
        "seconds": round(time.perf_counter() - begin, 2),
        "stages": found.seconds,
        "attention": any("MatMul" in g.origin and g.kind == "rows" for g in found.groups) or _normalises(found),
        "reason": held if kept > 0.5 else "",
    }


def _normalises(report: Report) -> bool:
    """Transformers without prunable heads are told by what holds their width."""
    return any("LayerNormalization" in d.reason or "Softmax" in d.reason for d in report.declined)


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['model']:<42} FAILED {row['failed']}"
    return (
        f"{row['model']:<42} groups {row['exact']:>3}/{row['groups']:<3} declined {row['declined']:>3} "
        f"MACs {row['macs_kept']:.3f} params {row['params_kept']:.3f} error {row['error']:.1e} "
        f"{row['seconds']:6.2f} s  {row['reason'][:90]}"
    )


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = [r for r in rows if "failed" not in r]
    convolutional = [r["macs_kept"] for r in good if not r["attention"]]
    attention = [r["macs_kept"] for r in good if r["attention"]]
    return {
        "models": len(rows),
        "failed": len(rows) - len(good),
        "unchanged": sum(r["macs_kept"] >= 1 for r in good),
        "median_macs_kept": round(statistics.median([r["macs_kept"] for r in good]), 3) if good else None,
        "median_convolutional": round(statistics.median(convolutional), 3) if convolutional else None,
        "median_attention": round(statistics.median(attention), 3) if attention else None,
        "worst_error": max((r["error"] for r in good), default=None),
        "seconds": round(sum(r["seconds"] for r in good), 1),
    }


def _seconds(model: onnx.ModelProto) -> dict[str, float]:
    """Seconds of load + analyse (observation included) + score, allocate + rewrite, without the ONNX Runtime checks."""
    begin = time.perf_counter()
    result = pipeline.prune(model, Budget("macs", 0.5), recover="none", check=False, benchmark=False)
    stages: dict[str, float] = result.report.seconds
    return {"total": time.perf_counter() - begin} | stages


@main.command()
@click.option("--repeats", type=int, default=3, show_default=True)
def seconds(repeats: int) -> None:
    """Seconds for a ResNet-50 and a 5,000-node graph (median of the repeats)."""
    table = Table("model", "nodes", "total s", "load", "analyse", "score", "allocate", "rewrite", box=None)
    for name, model in (("resnet50", made.resnet50()), ("chain", made.chain(5000))):
        runs = sorted((_seconds(model) for _ in range(repeats)), key=lambda r: r["total"])
        median = runs[len(runs) // 2]
        stages = [f"{median[k]:.2f}" for k in ("total", "load", "analyse", "score", "allocate", "rewrite")]
        table.add_row(name, str(len(model.graph.node)), *stages)
    OUT.print(table)


@main.command()
@click.option("--nodes", type=int, default=2500, show_default=True)
@click.option("--repeats", type=int, default=3, show_default=True)
def linear(nodes: int, repeats: int) -> None:
    """Time for n nodes against 2n nodes, alternating in one run."""
    small, large = made.chain(nodes), made.chain(2 * nodes)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for model, series in zip((small, large), times, strict=True):
            series.append(_seconds(model)["total"])
    a, b = (statistics.median(t) for t in times)
    OUT.print(f"{len(small.graph.node)} nodes {a:.2f} s, {len(large.graph.node)} nodes {b:.2f} s: ratio {b / a:.2f}")


main.add_command(steps.main, "steps")
main.add_command(explore.explore, "explore")
main.add_command(explore.workers, "workers")


@main.command()
@click.option(
    "--models",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Folders of .onnx (with .npz).",
)
@click.option("--only", default="", help="Only models whose name contains this.")
@click.option("--at", "speeds", multiple=True, type=float, help="Speedups to ask for [default: 1.3, 1.5, 2].")
@click.option(
    "--rival/--no-rival", default=True, show_default=True, help="Also search the MACs target that is as fast."
)
def speed(folders: tuple[Path, ...], only: str, speeds: tuple[float, ...], rival: bool) -> None:
    """Asked against measured time, beside a MACs target that is as fast (Markdown)."""
    from tests.benchmarks import speed as table

    real = Path(__file__).resolve().parents[2] / "models" / "real"
    listed = list(folders) or ([real] if real.exists() else [])
    table.measure(listed, only, speeds or table.SPEEDS, rival)


if __name__ == "__main__":
    main()
