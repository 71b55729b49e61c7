"""`onnxprune finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli.common import (
    FILE,
    OUT,
    data_option,
    guarded,
    json_option,
    output_option,
    progress,
    quiet_option,
    seed_option,
)
from onnxprune.model.json_text import to_json


@click.command()
@click.argument("pruned", type=FILE)
@click.option("--teacher", type=FILE, metavar="FILE", help="The original, which labels the inputs.")
@data_option("train on", required=True)
@output_option("tuned")
@click.option("--labels", metavar="FILE|NAME", help="Labels: a .npz or .npy file, or the name of an array of --data.")
@click.option("--plan", type=FILE, help="The plan that made PRUNED: compares sliced features too.")
@click.option("--from-scratch", is_flag=True, help="Draw all weights anew and train them with --labels.")
@click.option("--steps", type=int, default=3000, show_default=True, help="Training steps.")
@click.option("--minutes", type=float, help="Stop by then; the schedule is fitted to it.")
@click.option("--batch", type=int, default=64, show_default=True, help="Samples per step.")
@click.option("--rate", type=float, help="Largest learning rate [default: 0.001 to 0.004, by the loss at the start].")
@click.option("--decay", type=float, default=1e-2, show_default=True, help="Weight decay of matrices.")
@click.option("--temperature", type=float, default=2.0, show_default=True, help="Of logits, when they are compared.")
@click.option(
    "--label-weight", type=float, help="Share of the labels in the loss [default: 0.5 beside a teacher, else 1]."
)
@click.option("--features", type=int, default=0, show_default=True, help="Compare up to N tensors inside, too.")
@click.option("--augment/--no-augment", default=True, show_default=True, help="Mix, shift and disturb the inputs.")
@click.option(
    "--patience", type=int, default=8, show_default=True, help="Stop after N judgements without gain (0: never)."
)
@click.option("--samples", type=int, help="Use at most so many samples of --data.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="Judge held-out samples by this score instead of the loss.")
@click.option("--checkpoint", type=FILE, metavar="FILE", help="Save the run there, and go on from it.")
@click.option("--threads", type=int, help="Of student and of teacher [default: half the cores each].")
@seed_option
@json_option("Print what was found as JSON.")
@quiet_option
@guarded
def finetune(
    pruned: Path, teacher: Path | None, data: Path, output: Path, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Train the weights of PRUNED towards what --teacher computes, or towards --labels, and write OUTPUT."""
    from onnxprune.api.finetune import finetune as run

    with progress(quiet or as_json) as told:
        result = run(pruned, teacher, data=data, output=output, progress=told, **options)
    if as_json:
        click.echo(to_json({"lines": result.lines(), "trained": vars(result.trained)}), nl=False)
    elif not quiet:
        for heading, text in result.lines():
            OUT.print(f"{heading:<9} {text}", markup=False)
        OUT.print(f"wrote     {output}", markup=False)
