"""`onnxprune data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli.common import FILE, OUT, guarded, options, quiet_option
from onnxprune.cli.progress import progress
from onnxprune.errors import BadInputError, quoted
from onnxprune.inputs.options import DataOptions
from onnxprune.words import counted


def _inputs(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{quoted(text)} is not of the form NAME=PATH.")
        found[name] = Path(path)
    return found


@click.command()
@click.argument("source", type=FILE, nargs=-1)
@click.option("--model", type=FILE, required=True, help="The model that is to be fed.")
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE.npz", help="Where to write the inputs.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=PATH",
    callback=_inputs,
    help="What one input is fed; the others have SOURCE.",
)
@options(DataOptions, "data")
@click.option("--sheet", type=FILE, metavar="FILE.png", help="Show the pictures as the model sees them.")
@quiet_option
@guarded
def data(
    *,
    source: tuple[Path, ...],
    model: Path,
    output: Path,
    inputs: dict[str, Path],
    sheet: Path | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Make inputs for MODEL of SOURCE: folders or files of pictures, recordings, texts, tables or arrays."""
    if not source and not inputs:
        raise BadInputError("Give a folder or a file, or --input NAME=PATH for every input.")
    from onnxprune.api.data import data as make

    with progress(quiet) as told:
        report = make(source, model=model, output=output, inputs=inputs, sheet=sheet, progress=told, **given)
    if quiet:
        return
    for line in report.lines():
        OUT.print(line, markup=False)
    them = "it" if report.samples == 1 else "them"
    OUT.print(
        f"wrote     {output}: {counted(report.samples, 'sample')}; look at {them}, then give {them} with --data",
        markup=False,
    )


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("output", type=FILE)
@click.argument("program", type=FILE)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--samples", type=int, default=256, show_default=True, help="Keep at most so many.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of which are kept.")
@guarded
def record(*, output: Path, program: Path, arguments: tuple[str, ...], samples: int, seed: int) -> None:
    """Run your own PROGRAM (a Python script) with its ARGUMENTS, and write what its ONNX Runtime sessions are fed to OUTPUT.

    Options go before OUTPUT. Of a program with several sessions, each writes a file of its own: OUTPUT, OUTPUT-2, …
    """
    if not program.is_file():
        raise BadInputError(f"{program} is no file; give the Python script that runs the model.")
    from onnxprune.runtime.recorder import run_recorded

    written = run_recorded(program, arguments, output, samples, seed)
    for path in written[:5]:
        OUT.print(f"wrote     {path}", markup=False)
    if not written:
        raise BadInputError(f"{program} ran no ONNX Runtime session whose inputs are arrays; nothing was written.")
