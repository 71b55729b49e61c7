"""The commands that only look: `inspect`, `ops`, `verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from onnxprune.choose.options import Options
from onnxprune.cli.common import (
    FILE,
    OUT,
    guarded,
    json_option,
    options,
    table,
)
from onnxprune.cli.progress import progress
from onnxprune.model.json_text import to_json
from onnxprune.model.typed_json import plain
from onnxprune.words import counted


@click.command()
@click.argument("model", type=FILE)
@options(
    Options,
    "inspect",
    data="Inputs to observe the model with.",
    include_inexact="Count axes that LayerNorm normalises over as prunable.",
)
@json_option("Print everything as JSON, members included.")
@click.option("-v", "--verbose", is_flag=True, help="Also print the members of each group.")
@guarded
def inspect(*, model: Path, as_json: bool, verbose: bool, **given: Any) -> None:
    """Show what can be removed from MODEL, what each group carries, and every pin with its reason and remedy."""
    from onnxprune.api.inspect import inspect as run

    with progress(as_json) as told:
        found = run(model, progress=told, **given)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    OUT.print(
        f"{counted(found['macs'], 'MAC')}, {counted(found['params'], 'parameter')}, {counted(len(found['groups']), 'group')}"
    )
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
            OUT.print(
                f"{g['id']} member: {m['tensor']} axis {m['axis']} ({counted(m['positions'], 'position')})",
                markup=False,
            )
    for name in found["unknown_operators"]:
        OUT.print(f"no rule for {name}: it keeps what it touches", markup=False)
    for text in (*found["failed_rules"], *found["warnings"]):
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
    from onnxprune.ops.listing import listing

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
@options(Options, "verify", data="Inputs to compare on.")
@json_option()
@guarded
def verify(*, original: Path, pruned: Path, plan: Path, as_json: bool, **given: Any) -> None:
    """Check that PRUNED equals ORIGINAL with the removed units forced to zero."""
    from onnxprune.api.verify import verify as run
    from onnxprune.report.lines import left_out

    with progress(as_json) as told:
        found = run(original, pruned, plan, progress=told, **given)
    if as_json:
        click.echo(to_json(plain(found)), nl=False)
        return
    OUT.print(
        f"equal to {found.error:.1e} of the output's scale (allowed {found.tolerance:.0e}), "
        f"{counted(found.masked_activations, 'activation')} masked{left_out(found)}"
    )


COMMANDS = (inspect, ops, verify)
