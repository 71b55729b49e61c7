"""`onnxprune bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import BenchOptions
from onnxprune.cli.common import FILE, OUT, guarded, json_option, options, table
from onnxprune.cli.progress import progress

Row = dict[str, Any]


@click.command()
@click.argument("models", nargs=-1, required=True, type=FILE)
@options(BenchOptions, "bench")
@options(Place, "bench")
@options(Options, "bench", data="Inputs to run the models on.")
@json_option()
@guarded
def bench(*, models: tuple[Path, ...], as_json: bool, **given: Any) -> None:
    """Time MODELS on the same inputs, in turn after a warm-up; ratios are against the first.

    Loading, the first run and memory are measured in a process of its own for each model.
    """
    from onnxprune.api.bench import bench as run

    with progress(as_json) as told:
        rows = run(models, progress=told, **given)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for text in dict.fromkeys(r["runner"] for r in rows):
        OUT.print(f"timed in  {text}", markup=False)
    OUT.print(_table(rows))
    for line in _notes(rows):
        OUT.print(line, markup=False)


def _table(rows: Sequence[Row]) -> Any:
    """Settings that are the same everywhere are left out."""
    swept = [n for n in ("threads", "batch") if len({r[n] for r in rows}) > 1]
    heads = (
        "model",
        *swept,
        "median ms",
        "p90",
        "p99",
        "samples/s",
        "load ms",
        "first ms",
        "memory MB",
        "file MB",
        "speedup",
    )
    lines = [
        (
            r["model"],
            *(str(r[n]) for n in swept),
            *(_number(r[n]) for n in ("median_ms", "p90_ms", "p99_ms")),
            f"{r['samples_per_second']:,.4g}" if r["samples_per_second"] < 1e4 else f"{r['samples_per_second']:,.0f}",
            *(_number(r[n], 1) for n in ("load_ms", "first_run_ms", "memory_mb")),
            _number(r["file_bytes"] / 1e6, 2),
            speedup(r),
        )
        for r in rows
    ]
    return table(heads, lines, ("model",))


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def speedup(row: Row) -> str:
    """Of a model against the first one; a range that holds 1 says that nothing is certain."""
    low, high = row["speedup_low"], row["speedup_high"]
    return f"{row['speedup']:.2f}x" + (f" ({low:.2f} to {high:.2f})" if high > low else "")


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    for r in rows:
        where = f"{r['model']}, threads {r['threads']}, batch {r['batch']}"
        if r["note"]:
            yield f"note      {where}: {r['note']}"
        if r["difference"] is not None:
            yield f"outputs   {where}: {r['difference']:.1e} of their scale from ONNX Runtime's on the CPU"
    noisy = [r for r in rows if r["verdict"] == "too noisy"]
    if noisy:
        from onnxprune.runtime.timing import NOISY

        width = max((r["median_high_ms"] - r["median_low_ms"]) / r["median_ms"] for r in noisy)
        what = ", ".join(dict.fromkeys(r["model"] for r in noisy))
        yield (
            f"noisy     the machine is too noisy to tell: {what} (medians are uncertain by up to {width:.0%}, or ratios by more than "
            f"{NOISY:.0%}); stop what else runs, or give more --runs and --seconds"
        )


COMMANDS = (bench,)
