"""`onnxprune profile`: where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import ProfileOptions
from onnxprune.cli.common import FILE, OUT, check_report, guarded, json_option, options, report_option, table, words
from onnxprune.cli.progress import progress


@click.command()
@click.argument("model", type=FILE)
@click.argument("pruned", type=FILE, required=False)
@click.option("--plan", type=FILE, help="The plan that made PRUNED.")
@options(Options, "profile", data="Inputs to run the models on.")
@options(
    Place,
    "profile",
    provider="ONNX Runtime's execution provider to run on, such as cpu or cuda: any that the installed one has.",
    provider_options="An option of that provider, as its documentation lists them.",
    threads="Threads of a model; 0: as the engine likes.",
    batch="Samples of a run, where the model's batch is dynamic.",
    warmup="Runs ahead of those that count.",
)
@options(ProfileOptions, "profile")
@click.option("--top", type=click.IntRange(1), default=12, show_default=True, help="Rows of each table.")
@report_option
@json_option("Print everything as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Print every row, and what each kernel is fused from.")
@guarded
def profile(
    *,
    model: Path,
    pruned: Path | None,
    plan: Path | None,
    top: int,
    report: Path | None,
    as_json: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Show where the time of MODEL goes, what pruning could save of it, and why PRUNED is not faster."""
    from onnxprune.api.profile import profile as run
    from onnxprune.report.profile_lines import sections

    check_report(report)
    with progress(as_json) as told:
        found = run(model, pruned, plan=plan, report=report, progress=told, command=words(), **given)
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    for section in sections(found, None if verbose else top, verbose):
        if section.title:
            OUT.print(f"\n{section.title}", markup=False)
        if section.rows:
            OUT.print(table(section.heads, section.rows, section.left))
        for line in section.lines:
            OUT.print(line, markup=False)
