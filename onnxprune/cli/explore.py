"""`onnxprune explore` and `onnxprune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.choose.explore_options import ExploreOptions
from onnxprune.choose.job_options import JobOptions
from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import CompareOptions
from onnxprune.cli.common import (
    FILE,
    OUT,
    check_report,
    guarded,
    json_option,
    options,
    quiet_option,
    report_option,
    table,
)
from onnxprune.cli.progress import progress


@click.command()
@click.argument("model", type=FILE)
@options(ExploreOptions, "explore")
@options(JobOptions, "explore")
@options(Options, "explore")
@options(Place, "explore")
@click.option("--benchmark", is_flag=True, help="Time every point against the original, in turn.")
@click.option("-o", "--output", type=FILE, help="A folder for the plans; with --pick, where to write that model.")
@click.option("--models", is_flag=True, help="Write the models into the folder, too.")
@click.option("--plan", type=FILE, help="With --pick: write the plan of that point.")
@report_option
@json_option("Print the report as JSON.")
@quiet_option
@guarded
def explore(*, model: Path, report: Path | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Prune MODEL to several sizes and show what each costs; every point is proved, repaired and can be had."""
    check_report(report)
    from onnxprune.api.explore import explore as run
    from onnxprune.report import front

    with progress(quiet or as_json) as told:
        result = run(model, report=report, progress=told, **given)
    found = result.report
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    if quiet:
        return
    OUT.print(table(front.POINT_COLUMNS, front.point_rows(found), ("asked",)))
    for line in (*front.picture(found.points), *front.lines_of(found)):
        OUT.print(line, markup=False)
    if result.picked is not None:
        OUT.print(f"picked    point {result.picked.number}", markup=False)
    for path in (given["output"], given["plan"], report):
        if path is not None:
            OUT.print(f"wrote     {path}", markup=False)


@click.command()
@click.argument("models", nargs=-1, required=True, type=FILE)
@options(CompareOptions, "compare")
@options(
    Options,
    "compare",
    data="Inputs to compare the outputs on.",
    metric="A score of yours, MODULE:FUNCTION, of outputs and labels, larger is better; divergence (kl) and agreement are shown anyway.",
)
@options(Place, "compare")
@report_option
@json_option()
@guarded
def compare(*, models: tuple[Path, ...], report: Path | None, as_json: bool, **given: Any) -> None:
    """Put MODELS side by side: size, cost, time, and how far their outputs are from the first one's."""
    check_report(report)
    from onnxprune.api.compare import compare as run
    from onnxprune.report import front

    with progress(as_json) as told:
        found = run(models, report=report, progress=told, **given)
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    OUT.print(table(front.MODEL_COLUMNS, front.model_rows(found), ("model",)))
    for line in front.comparison_lines(found):
        OUT.print(line, markup=False)
    if report is not None:
        OUT.print(f"wrote     {report}", markup=False)


COMMANDS = (explore, compare)
