"""The commands that only look: `inspect`, `ops`, `verify`, `bench`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from onnxprune.analyse.feeds import parse_shapes
from onnxprune.api.bench import bench as timed
from onnxprune.api.inspect import inspect as inspected
from onnxprune.api.verify import verify as verified
from onnxprune.cli.common import (
    FILE,
    OUT,
    data_option,
    guarded,
    input_shape_option,
    json_option,
    seed_option,
    table,
)
from onnxprune.model.json_text import to_json
from onnxprune.model.typed_json import plain
from onnxprune.ops.listing import listing


@click.command()
@click.argument("model", type=FILE)
@input_shape_option
@data_option("observe the model with")
@click.option("--include-inexact", is_flag=True, help="Count axes that LayerNorm normalises over as prunable.")
@json_option("Print everything as JSON, members included.")
@click.option("-v", "--verbose", is_flag=True, help="Also print the members of each group.")
@guarded
def inspect(
    model: Path, input_shape: tuple[str, ...], data: Path | None, include_inexact: bool, as_json: bool, verbose: bool
) -> None:
    """Show what can be removed from MODEL, what each group carries, and every pin with its reason and remedy."""
    found = inspected(model, input_shapes=parse_shapes(input_shape), data=data, include_inexact=include_inexact)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    OUT.print(f"{found['macs']:,} MACs, {found['params']:,} parameters, {len(found['groups'])} groups")
    heads = ("group", "kind", "where", "units", "removable", "exact", "members", "MACs", "parameters")
    rows = [
        (
            g["id"],
            g["kind"],
            g["origin"],
            str(g["units"]),
            str(g["removable"]),
            "yes" if g["exact"] else "no",
            str(len(g["members"])),
            f"{g['macs']:,}",
            f"{g['params']:,}",
        )
        for g in found["groups"]
    ]
    OUT.print(table(heads, rows, ("group", "kind", "where", "exact")))
    for g in found["groups"]:
        for pin in g["pins"]:
            remedy = f" [{pin['remedy']}]" if pin["remedy"] else ""
            OUT.print(f"{g['id']} pinned: {pin['reason']}{remedy}", markup=False)
        for m in g["members"] if verbose else []:
            OUT.print(f"{g['id']} member: {m['tensor']} axis {m['axis']} ({m['positions']} positions)", markup=False)
    for name in found["unknown_operators"]:
        OUT.print(f"no rule for {name}: it keeps what it touches", markup=False)
    for text in found["failed_rules"]:
        OUT.print(f"warning: {text}", markup=False)


@click.command()
@json_option()
@click.option("-v", "--verbose", is_flag=True, help="Also print what each operator's rule gives, and what is missing.")
@guarded
def ops(as_json: bool, verbose: bool) -> None:
    """List every operator and how it is treated.

    \b
    A rule can give (all of it counts for a contraction, such as Conv; others need less):
      maps      how channels pass through; without it, what the operator touches stays
      adjust    which attributes and shapes follow a removal
      macs      its multiply-accumulates
      linear    the form in which its weights can be scored and re-fitted
      weights   which axes it contracts, for sparsity and dead channels
      gradient  what fine-tuning needs
    """
    rows = listing()
    if as_json:
        click.echo(json.dumps([asdict(r) for r in rows], indent=1))
        return
    heads = ("domain", "operator", "treated as", "note", *(("gives", "missing") if verbose else ()))
    lines = [
        (r.domain, r.operator, r.kind, r.note, *((", ".join(r.gives), ", ".join(r.missing)) if verbose else ()))
        for r in rows
    ]
    OUT.print(table(heads, lines, heads))


@click.command()
@click.argument("original", type=FILE)
@click.argument("pruned", type=FILE)
@click.option("--plan", required=True, type=FILE, help="The plan that made PRUNED.")
@data_option("compare on")
@seed_option
@json_option()
@guarded
def verify(original: Path, pruned: Path, plan: Path, data: Path | None, seed: int, as_json: bool) -> None:
    """Check that PRUNED equals ORIGINAL with the removed units forced to zero."""
    found = verified(original, pruned, plan, data=data, seed=seed)
    if as_json:
        click.echo(to_json(plain(found)), nl=False)
        return
    OUT.print(
        f"equal to {found.error:.1e} of the output's scale (allowed {found.tolerance:.0e}), {found.masked_activations} activations masked"
    )


@click.command()
@click.argument("models", nargs=-1, required=True, type=FILE)
@input_shape_option
@data_option("run the models on")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads of each model.")
@click.option("--runs", type=int, default=30, show_default=True, help="Runs of each model.")
@json_option()
@guarded
def bench(
    models: tuple[Path, ...], input_shape: tuple[str, ...], data: Path | None, threads: int, runs: int, as_json: bool
) -> None:
    """Latency of models in ONNX Runtime, run in turn; ratios are against the first."""
    rows = timed(models, parse_shapes(input_shape), data, threads, runs)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    numbers = ("median_ms", "min_ms", "max_ms")
    lines = [(r["model"], *(f"{r[n]:.3f}" for n in numbers), f"{r['speedup']:.2f}x") for r in rows]
    OUT.print(table(("model", "median ms", "min", "max", "speedup"), lines, ("model",)))


COMMANDS = (inspect, ops, verify, bench)
