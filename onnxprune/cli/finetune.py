"""`onnxprune finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.choose.finetune_options import FinetuneOptions
from onnxprune.cli.common import (
    FILE,
    OUT,
    guarded,
    json_option,
    options,
    output_option,
    quiet_option,
)
from onnxprune.cli.progress import progress
from onnxprune.model.json_text import to_json


@click.command()
@click.argument("pruned", type=FILE)
@click.option("--teacher", type=FILE, metavar="FILE", help="The original, which labels the inputs.")
@click.option("--data", type=FILE, metavar="FILE.npz|DIR", required=True, help="Inputs to train on.")
@output_option("tuned")
@options(FinetuneOptions, "finetune")
@json_option("Print what was found as JSON.")
@quiet_option
@guarded
def finetune(
    *, pruned: Path, teacher: Path | None, data: Path, output: Path, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Train the weights of PRUNED towards what --teacher computes, or towards --labels, and write OUTPUT."""
    from onnxprune.api.finetune import finetune as run

    with progress(quiet or as_json) as told:
        result = run(pruned, teacher, data=data, output=output, progress=told, **given)
    if as_json:
        click.echo(to_json({"lines": result.lines(), "trained": vars(result.trained)}), nl=False)
    elif not quiet:
        for heading, text in result.lines():
            OUT.print(f"{heading:<9} {text}", markup=False)
        OUT.print(f"wrote     {output}", markup=False)
