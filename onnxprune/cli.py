"""The command line: arguments to options to pipeline, and exit codes.

0 done; 2 usage or bad input; 3 target not reachable; 4 verification failed; 5 nothing prunable. Only 0 writes anything.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from onnxprune import pipeline
from onnxprune.core.budget import Budget
from onnxprune.core.errors import BadInputError, OnnxPruneError
from onnxprune.core.version import __version__
from onnxprune.stages.feeds import parse_shapes
from onnxprune.stages.report import Report
from onnxprune.stages.score import CALIBRATED, IMPORTANCE

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """One sentence and the right exit code instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except OnnxPruneError as error:
            ERR.print(f"onnxprune: {error}", markup=False)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            sys.exit(1)
        except KeyboardInterrupt:
            ERR.print("onnxprune: interrupted; nothing was written.")
            sys.exit(130)
        except (OSError, MemoryError) as error:
            ERR.print(f"onnxprune: {type(error).__name__}: {error}; nothing was written.", markup=False)
            sys.exit(2)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="onnxprune")
def main() -> None:
    """Prune ONNX models: channels, heads, neurons; proved in ONNX Runtime."""


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write the pruned model.")
@click.option("--ratio", type=float, help="Remove this share of the units of every group.")
@click.option("--macs", type=float, help="Keep at most this share of the multiply-accumulates.")
@click.option("--params", type=float, help="Keep at most this share of the parameters.")
@click.option("--size", type=float, help="Keep at most this share of the weights' bytes.")
@click.option(
    "--max-drop", type=float, help="Keep as few multiply-accumulates as possible at this loss of the --metric or less."
)
@click.option(
    "--metric",
    default="kl",
    show_default=True,
    metavar="kl|cosine|top1|MODULE:FUNCTION",
    help="What --max-drop limits, on held-out samples.",
)
@click.option("--round-to", type=int, help="Keep multiples of N channels in convolutions [default: 8; 1 = off].")
@click.option(
    "--importance",
    type=click.Choice([CALIBRATED, *IMPORTANCE]),
    help="What makes a unit important [default: obs where there is calibration, else l2].",
)
@click.option(
    "--recover",
    type=click.Choice(["lsq", "bias", "none"]),
    help="Repair what is left [default: lsq; none with --ratio and no --data].",
)
@click.option(
    "--depth",
    type=click.Choice(["off", "auto", "only"]),
    default="off",
    show_default=True,
    help="Remove layers and nodes: beside channels where that loses less, or nothing else.",
)
@click.option("--samples", type=int, default=512, show_default=True, help="Use at most so many samples of --data.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only weights whose node or tensor name matches.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave nodes or tensors with these names alone.")
@click.option("--include-inexact", is_flag=True, help="Also prune axes that LayerNorm and its kin normalise over.")
@click.option("--plan", type=click.Path(path_type=Path), help="Write the plan (JSON).")
@click.option("--apply", type=click.Path(path_type=Path), help="Replay a plan instead of deciding.")
@click.option("--input-shape", multiple=True, metavar="NAME:D,D,…", help="Shape of an input with dynamic dimensions.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE.npz|DIR",
    help="Inputs to observe, calibrate and repair with.",
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.md|.json", help="Write a report.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every group and every pin.")
@_guarded
def prune(
    model: Path,
    output: Path,
    ratio: float | None,
    macs: float | None,
    params: float | None,
    size: float | None,
    max_drop: float | None,
    metric: str,
    round_to: int | None,
    importance: str | None,
    recover: str | None,
    depth: str,
    samples: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    include_inexact: bool,
    plan: Path | None,
    apply: Path | None,
    input_shape: tuple[str, ...],
    data: Path | None,
    report: Path | None,
    as_json: bool,
    seed: int,
    quiet: bool,
    verbose: bool,
) -> None:
    """Prune MODEL to a target and write OUTPUT once it is proved equal to the masked original."""
    named = {"ratio": ratio, "macs": macs, "params": params, "size": size, "max_drop": max_drop}
    targets = {k: v for k, v in named.items() if v is not None}
    if len(targets) + (apply is not None) != 1:
        raise BadInputError(
            "Give exactly one target: --ratio, --macs, --params, --size or --max-drop (or --apply a plan)."
        )
    if report is not None and report.suffix not in (".md", ".json"):
        raise BadInputError(f"--report {report} must end in .md or .json.")
    budget = Budget(*next(iter(targets.items()))) if targets else None  # type: ignore[arg-type]
    silent = quiet or as_json or not ERR.is_terminal
    with ERR.status("load") if not silent else _nothing() as status:
        result = pipeline.prune(
            model,
            budget,
            output=output,
            plan=plan,
            apply=apply,
            report=report,
            progress=(lambda stage: None) if silent else status.update,
            importance=importance,
            recover=recover,
            depth=depth,
            samples=samples,
            metric=metric,
            round_to=round_to,
            include=include,
            exclude=exclude,
            include_inexact=include_inexact,
            input_shapes=parse_shapes(input_shape),
            data=data,
            seed=seed,
        )
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        _show(result.report, output, verbose)


class _nothing:
    """No status line."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _show(report: Report, output: Path, verbose: bool) -> None:
    data = report.data
    groups = data["groups"]
    units, gone = sum(g["units"] for g in groups), sum(g["removed"] for g in groups)
    exact = sum(g["exact"] for g in groups)
    OUT.print(f"found     {len(groups)} prunable groups ({exact} exact) with {units:,} units")
    hit = sum(1 for g in groups if g["removed"])
    OUT.print(f"removed   {gone:,} units from {hit} groups")
    declined = data["declined"]
    OUT.print(f"declined  {sum(d['units'] for d in declined):,} units in {sum(d['groups'] for d in declined)} groups")
    for d in declined if verbose else declined[:5]:
        remedy = f" [{d['remedy']}]" if d["remedy"] else ""
        OUT.print(f"          - {d['units']}: {d['reason']}{remedy}", markup=False)
    if not verbose and len(declined) > 5:
        OUT.print(f"          - and {len(declined) - 5} more reasons (-v shows all)")
    for k, line in enumerate(report.depth_lines()):
        OUT.print(f"{'          ' if k else 'layers    '}{line}", markup=False)
    OUT.print(f"checked   {report.check_line()}")
    for line in report.repair_lines():
        OUT.print(f"repaired  {line}" if not line.startswith("warning") else line, markup=False)
    if verbose:
        OUT.print(_group_table(groups))
    table = Table(box=None, pad_edge=False)
    for name, justify in (("", "left"), ("before", "right"), ("after", "right"), ("kept", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in report.summary_rows():
        table.add_row(*row)
    OUT.print(table)
    OUT.print(f"wrote     {output}", markup=False)


def _group_table(groups: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("group", "left"),
        ("kind", "left"),
        ("where", "left"),
        ("units", "right"),
        ("removed", "right"),
        ("exact", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for g in groups:
        table.add_row(
            g["id"], g["kind"], _plain(g["origin"]), str(g["units"]), str(g["removed"]), "yes" if g["exact"] else "no"
        )
    return table


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--input-shape", multiple=True, metavar="NAME:D,D,…", help="Shape of an input with dynamic dimensions.")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE.npz|DIR", help="Inputs to observe the model with."
)
@click.option("--include-inexact", is_flag=True, help="Count axes that LayerNorm normalises over as prunable.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, members included.")
@click.option("-v", "--verbose", is_flag=True, help="Also print the members of each group.")
@_guarded
def inspect(
    model: Path, input_shape: tuple[str, ...], data: Path | None, include_inexact: bool, as_json: bool, verbose: bool
) -> None:
    """Show what can be removed from MODEL, what each group carries, and every pin with its reason and remedy."""
    found = pipeline.inspect(model, input_shapes=parse_shapes(input_shape), data=data, include_inexact=include_inexact)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    OUT.print(f"{found['macs']:,} MACs, {found['params']:,} parameters, {len(found['groups'])} groups")
    table = Table(box=None, pad_edge=False)
    names = ("group", "kind", "where", "units", "removable", "exact", "members", "MACs", "parameters")
    for name in names:
        table.add_column(name, justify="left" if name in ("group", "kind", "where", "exact") else "right")
    for g in found["groups"]:
        table.add_row(
            g["id"],
            g["kind"],
            _plain(g["origin"]),
            str(g["units"]),
            str(g["removable"]),
            "yes" if g["exact"] else "no",
            str(len(g["members"])),
            f"{g['macs']:,}",
            f"{g['params']:,}",
        )
    OUT.print(table)
    for g in found["groups"]:
        for pin in g["pins"]:
            remedy = f" [{pin['remedy']}]" if pin["remedy"] else ""
            OUT.print(f"{g['id']} pinned: {pin['reason']}{remedy}", markup=False)
        for m in g["members"] if verbose else []:
            OUT.print(f"{g['id']} member: {m['tensor']} axis {m['axis']} ({m['positions']} positions)", markup=False)
    for name in found["unknown_operators"]:
        OUT.print(f"no rule for {name}: it keeps what it touches", markup=False)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_guarded
def ops(as_json: bool) -> None:
    """List every operator and how it is treated."""
    from onnxprune.ops.listing import listing

    rows = listing()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("domain", "operator", "treated as", "note"):
        table.add_column(name)
    for row in rows:
        table.add_row(row["domain"], row["operator"], row["kind"], row["note"])
    OUT.print(table)


@main.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option("--plan", required=True, type=click.Path(path_type=Path), help="The plan that made PRUNED.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.npz|DIR", help="Inputs to compare on.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_guarded
def verify(original: Path, pruned: Path, plan: Path, data: Path | None, seed: int, as_json: bool) -> None:
    """Check that PRUNED equals ORIGINAL with the removed units forced to zero."""
    found = pipeline.verify(original, pruned, plan, data=data, seed=seed)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "error": found.error,
                    "tolerance": found.tolerance,
                    "exact": found.exact,
                    "masked_activations": found.masked,
                }
            )
        )
        return
    OUT.print(
        f"equal to {found.error:.1e} of the output's scale (allowed {found.tolerance:.0e}), {found.masked} activations masked"
    )


@main.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--input-shape", multiple=True, metavar="NAME:D,D,…")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.npz|DIR")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--runs", type=int, default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_guarded
def bench(
    models: tuple[Path, ...], input_shape: tuple[str, ...], data: Path | None, threads: int, runs: int, as_json: bool
) -> None:
    """Latency of models in ONNX Runtime, run in turn; ratios are against the first."""
    rows = pipeline.bench(models, parse_shapes(input_shape), data, threads, runs)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("model", "median ms", "min", "max", "speedup"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for r in rows:
        table.add_row(
            _plain(r["model"]),
            f"{r['median_ms']:.3f}",
            f"{r['min_ms']:.3f}",
            f"{r['max_ms']:.3f}",
            f"{r['speedup']:.2f}x",
        )
    OUT.print(table)
