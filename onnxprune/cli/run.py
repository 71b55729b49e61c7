"""`onnxprune run`, `onnxprune init` and `onnxprune schema`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.choose.job_options import JobOptions
from onnxprune.cli.common import ERR, FILE, OUT, guarded, json_option, options, quiet_option, table
from onnxprune.cli.progress import progress

if TYPE_CHECKING:
    from onnxprune.pipeline.record import RunReport


@click.command()
@click.argument("config", type=FILE, default="prune.yaml")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value, such as models.0.steps.0.prune.macs=0.4.",
)
@click.option("--force", is_flag=True, help="Make also what has not changed since the last run.")
@options(JobOptions, "run")
@json_option("Print the report of the run as JSON.")
@quiet_option
@guarded
def run(*, config: Path, sets: tuple[str, ...], force: bool, as_json: bool, quiet: bool, **where: Any) -> None:
    """Carry out CONFIG (prune.yaml): make all models, judge their gates, and publish them if every gate holds.

    Exit codes: 0 published or up to date, 2 bad input, 3 target out of reach, 4 a gate or the proof failed, 5 nothing to prune.
    """
    from onnxprune.api.run import run as carry_out
    from onnxprune.pipeline.record import summary, workflow_commands

    with progress(quiet or as_json) as told:
        report = carry_out(config, sets=sets, force=force, progress=told, **where)
    if as_json:
        click.echo(report.to_json(), nl=False)
    elif not quiet:
        _show(report)
    for ran in report.models:
        if not ran.is_good:
            ERR.print(f"onnxprune: {ran.name}: {ran.line}", markup=False)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in workflow_commands(report):
            click.echo(line, err=as_json)
        if page := os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(page, "a", encoding="utf-8") as file:
                file.write(summary(report))
    sys.exit(report.exit_code)


def _show(report: RunReport) -> None:
    rows = []
    for ran in report.models:
        n = ran.numbers
        size = "" if n is None else f"{n.bytes[0]:,} -> {n.bytes[1]:,}"
        speed = (
            "" if n is None or n.speedup is None else f"{n.speedup[0]:.3g} ({n.speedup[1]:.3g} to {n.speedup[2]:.3g})"
        )
        rows.append((ran.name, ran.status, size, speed, f"{ran.seconds:.1f}"))
    OUT.print(table(("model", "status", "bytes", "speedup", "s"), rows, ("model", "status")))
    for ran in report.models:
        for gate in ran.gates:
            OUT.print(f"{'passed' if gate.is_passed else 'FAILED'}    {ran.name}: {gate.line}", markup=False)
    made = any(ran.status == "passed" for ran in report.models)
    OUT.print("nothing was published" if not report.is_published else "published" if made else "nothing has changed")


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, default="prune.yaml", show_default=True, help="Where to write the config.")
@click.option("--force", is_flag=True, help="Overwrite a config that is there.")
@quiet_option
@guarded
def init(*, model: Path, output: Path, force: bool, quiet: bool) -> None:
    """Write a commented config for MODEL, to be carried out by `onnxprune run`."""
    from onnxprune.api.init import init as start

    with progress(quiet) as told:
        start(model, output, force=force, progress=told)
    if not quiet:
        OUT.print(f"wrote     {output}; look through it, then: onnxprune run {output}", markup=False)


@click.command()
@click.argument(
    "name", type=click.Choice(("config", "run-report", "plan", "report", "sparsity-report", "profile-report"))
)
@guarded
def schema(*, name: str) -> None:
    """Print the JSON Schema of a file that onnxprune reads or writes; editors complete configs by that of `config`."""
    from onnxprune.pipeline.schemas import schema as find

    click.echo(json.dumps(find(name), indent=2, ensure_ascii=False))


COMMANDS = (run, init, schema)
