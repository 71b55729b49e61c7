"""`onnxprune sparsify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.choose.sparsify_options import SparsifyOptions
from onnxprune.cli.common import (
    FILE,
    OUT,
    check_report,
    guarded,
    json_option,
    options,
    output_option,
    quiet_option,
    report_option,
    table,
    words,
)
from onnxprune.cli.progress import progress
from onnxprune.words import counted

if TYPE_CHECKING:
    from onnxprune.report.sparsity import SparsityReport


@click.command()
@click.argument("model", type=FILE)
@output_option("sparse")
@options(SparsifyOptions, "sparsify")
@options(Options, "sparsify", data="Inputs to calibrate and measure with.")
@options(Place, "sparsify")
@report_option
@json_option("Print the report as JSON.")
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="Print what was left alone, all of it.")
@guarded
def sparsify(
    *, model: Path, output: Path, report: Path | None, as_json: bool, quiet: bool, verbose: bool, **given: Any
) -> None:
    """Set weights of MODEL to zero, by magnitude, by share or in an N:M pattern, and write OUTPUT."""
    check_report(report)
    from onnxprune.api.sparsify import sparsify as run

    with progress(quiet or as_json) as told:
        result = run(model, output=output, report=report, progress=told, command=words(), **given)
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        _show_sparsity(result.report, output, verbose)


def _show_sparsity(report: SparsityReport, output: Path, verbose: bool) -> None:
    from onnxprune.report import lines

    OUT.print(f"zeros     {lines.zeros_line(report)}", markup=False)
    left = report.left_alone
    OUT.print(f"left      {counted(len(left), 'weight')} as {'it is' if len(left) == 1 else 'they are'}")
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
