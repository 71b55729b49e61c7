"""`onnxprune sparsify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.analyse.feeds import parse_shapes
from onnxprune.api import sparsify as sparse
from onnxprune.cli.common import (
    FILE,
    OUT,
    check_report,
    data_option,
    exclude_option,
    guarded,
    include_option,
    input_shape_option,
    json_option,
    output_option,
    progress,
    quiet_option,
    report_option,
    samples_option,
    seed_option,
    table,
)
from onnxprune.report.sparsity import SparsityReport
from onnxprune.sparsity.store import STORES
from onnxprune.sparsity.targets import CRITERIA, SCOPES


@click.command()
@click.argument("model", type=FILE)
@output_option("sparse")
@click.option("--threshold", type=float, help="Set every weight of smaller magnitude to zero.")
@click.option("--sparsity", type=float, help="Set this share of the weights to zero.")
@click.option(
    "--pattern", metavar="N:M", help="Of every M consecutive inputs of an output keep at most N, such as 2:4."
)
@click.option("--scope", type=click.Choice(SCOPES), help="What --sparsity is a share of [default: layer].")
@click.option(
    "--criterion",
    type=click.Choice(CRITERIA),
    help="Which weights matter [default: obs with --data, else magnitude; always magnitude for --threshold].",
)
@click.option("--store", type=click.Choice(STORES), default="dense", show_default=True, help="How zeros are stored.")
@click.option("--then-prune", is_flag=True, help="Remove units that became zero, or that nothing reads any more.")
@samples_option
@include_option
@exclude_option
@input_shape_option
@data_option("calibrate and measure with")
@report_option
@json_option("Print the report as JSON.")
@seed_option
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="Print what was left alone, all of it.")
@guarded
def sparsify(
    model: Path,
    output: Path,
    report: Path | None,
    input_shape: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Set weights of MODEL to zero, by magnitude, by share or in an N:M pattern, and write OUTPUT."""
    check_report(report)
    with progress(quiet or as_json) as told:
        result = sparse.sparsify(
            model,
            output=output,
            report=report,
            progress=told,
            input_shapes=parse_shapes(input_shape),
            **options,
        )
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        _show_sparsity(result.report, output, verbose)


def _show_sparsity(report: SparsityReport, output: Path, verbose: bool) -> None:
    from onnxprune.report import lines

    OUT.print(f"zeros     {lines.zeros_line(report)}", markup=False)
    left = report.left_alone
    OUT.print(f"left      {len(left)} weights as they are")
    for x in left if verbose else left[:5]:
        OUT.print(f"          - {x.tensor} ({x.node}) {x.reason}", markup=False)
    if not verbose and len(left) > 5:
        OUT.print(f"          - and {len(left) - 5} more (-v shows all)")
    OUT.print(f"differs   {lines.difference_line(report)}", markup=False)
    if report.pruned is not None:
        OUT.print(f"removed   {lines.pruned_line(report)}", markup=False)
    heads = ("weight", "shape", "zeros before", "after", "share", "how")
    OUT.print(table(heads, lines.layer_rows(report), ("weight", "shape", "how")))
    OUT.print(table(("", "before", "after", "ratio"), lines.size_rows(report), ("",)))
    for line in report.runtimes:
        OUT.print(f"note      {line}", markup=False)
    OUT.print(f"wrote     {output}", markup=False)
