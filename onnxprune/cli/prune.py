"""`onnxprune prune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.table import Table

from onnxprune.analyse.feeds import parse_shapes
from onnxprune.api import prune as pipeline
from onnxprune.choose.budget import Budget, Metric
from onnxprune.choose.importance import CALIBRATED, IMPORTANCE
from onnxprune.cli.common import (
    FILE,
    OUT,
    check_report,
    data_option,
    exclude_option,
    given,
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
from onnxprune.errors import BadInputError
from onnxprune.model.json_text import to_json
from onnxprune.report.report import Report
from onnxprune.report.values import GroupRow


@click.command()
@click.argument("model", type=FILE)
@output_option("pruned")
@click.option("--ratio", type=float, help="Remove this share of the units of every group.")
@click.option("--macs", type=float, help="Keep at most this share of the multiply-accumulates.")
@click.option("--params", type=float, help="Keep at most this share of the parameters.")
@click.option("--size", type=float, help="Keep at most this share of the weights' bytes.")
@click.option(
    "--max-drop", type=float, help="Keep as few multiply-accumulates as possible at this loss of the --metric or less."
)
@click.option(
    "--metric",
    default="kl",
    show_default=True,
    metavar="kl|cosine|top1|MODULE:FUNCTION",
    help="What --max-drop limits, on held-out samples.",
)
@click.option("--round-to", type=int, help="Keep multiples of N channels in convolutions [default: 8; 1 = off].")
@click.option(
    "--importance",
    type=click.Choice([CALIBRATED, *IMPORTANCE]),
    help="What makes a unit important [default: obs where there is calibration, else l2].",
)
@click.option(
    "--recover",
    type=click.Choice(["lsq", "bias", "none"]),
    help="Repair what is left [default: lsq; none with --ratio and no --data].",
)
@click.option(
    "--then-quantize",
    type=click.Choice(["int8"]),
    help="Quantize the pruned model with ONNX Runtime; the report compares all four.",
)
@click.option(
    "--depth",
    type=click.Choice(["off", "auto", "only"]),
    default="off",
    show_default=True,
    help="Remove layers and nodes: beside channels where that loses less, or nothing else.",
)
@click.option(
    "--mix/--no-mix",
    default=None,
    help="Prune principal directions of units that only linear maps touch, such as queries and keys [default: where weights are fitted].",
)
@samples_option
@include_option
@exclude_option
@click.option("--include-inexact", is_flag=True, help="Also prune axes that LayerNorm and its kin normalise over.")
@click.option("--plan", type=FILE, help="Write the plan (JSON).")
@click.option("--apply", type=FILE, help="Replay a plan instead of deciding.")
@input_shape_option
@data_option("observe, calibrate and repair with")
@click.option("--during-training", is_flag=True, help="Prune in rounds, each followed by a short distillation.")
@click.option("--rounds", type=int, default=6, show_default=True, help="Cuts of --during-training.")
@click.option("--steps", type=int, default=3000, show_default=True, help="Training steps of --during-training, in all.")
@click.option("--minutes", type=float, help="Stop --during-training's training by then.")
@report_option
@json_option("Print the report as JSON.")
@seed_option
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="Print every group and every pin.")
@guarded
def prune(
    model: Path,
    output: Path,
    plan: Path | None,
    apply: Path | None,
    report: Path | None,
    input_shape: tuple[str, ...],
    during_training: bool,
    rounds: int,
    steps: int,
    minutes: float | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Prune MODEL to a target and write OUTPUT once it is proved equal to the masked original."""
    wanted: dict[Metric, float | None] = {metric: options.pop(metric) for metric in get_args(Metric)}
    targets = [(metric, amount) for metric, amount in wanted.items() if amount is not None]
    if len(targets) + (apply is not None) != 1:
        raise BadInputError(
            "Give exactly one target: --ratio, --macs, --params, --size or --max-drop (or --apply a plan)."
        )
    check_report(report)
    unused = given(*(("metric",) if during_training else ("rounds", "steps", "minutes")))
    if unused:
        raise BadInputError(
            f"--{unused[0]} {'does not go' if during_training else 'only goes'} with --during-training."
        )
    budget = Budget(*targets[0]) if targets else None
    options["input_shapes"] = parse_shapes(input_shape)
    if during_training:
        training = (rounds, steps, minutes)
        _gradual(model, output, budget, (plan, report), training, options, quiet, as_json)
        return
    with progress(quiet or as_json) as told:
        result = pipeline.prune(
            model, budget, output=output, plan=plan, apply=apply, report=report, progress=told, **options
        )
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        _show(result.report, output, verbose)


def _show(report: Report, output: Path, verbose: bool) -> None:
    from onnxprune.report import lines

    groups, declined = report.groups, report.declined
    units, gone = sum(g.units for g in groups), sum(g.removed for g in groups)
    exact, hit = sum(g.exact for g in groups), sum(1 for g in groups if g.removed)
    OUT.print(f"found     {len(groups)} prunable groups ({exact} exact) with {units:,} units")
    OUT.print(f"removed   {gone:,} units from {hit} groups")
    OUT.print(f"declined  {sum(d.units for d in declined):,} units in {sum(d.groups for d in declined)} groups")
    for d in declined if verbose else declined[:5]:
        remedy = f" [{d.remedy}]" if d.remedy else ""
        OUT.print(f"          - {d.units}: {d.reason}{remedy}", markup=False)
    if not verbose and len(declined) > 5:
        OUT.print(f"          - and {len(declined) - 5} more reasons (-v shows all)")
    for k, line in enumerate(lines.depth_lines(report)):
        OUT.print(f"{'          ' if k else 'layers    '}{line}", markup=False)
    OUT.print(f"checked   {lines.check_line(report)}")
    for line in lines.repair_lines(report):
        OUT.print(f"repaired  {line}", markup=False)
    for line in report.warnings:
        OUT.print(f"warning: {line}", markup=False)
    if verbose:
        OUT.print(_group_table(groups))
    OUT.print(table(("", "before", "after", "kept"), lines.summary_rows(report), ("",)))
    if report.variants:
        OUT.print(table(("", *lines.VARIANT_COLUMNS), lines.variant_rows(report), ("",)))
    OUT.print(f"wrote     {output}", markup=False)


def _group_table(groups: Sequence[GroupRow]) -> Table:
    rows = [(g.id, g.kind, g.origin, str(g.units), str(g.removed), "yes" if g.exact else "no") for g in groups]
    return table(("group", "kind", "where", "units", "removed", "exact"), rows, ("group", "kind", "where", "exact"))


def _gradual(
    model: Path,
    output: Path,
    budget: Budget | None,
    unwritten: tuple[Path | None, Path | None],
    training: tuple[int, int, float | None],
    options: dict[str, Any],
    quiet: bool,
    as_json: bool,
) -> None:
    """`prune --during-training`."""
    if budget is None:
        raise BadInputError("--during-training decides anew in every round; give a target instead of --apply.")
    if options["data"] is None:
        raise BadInputError("--during-training needs inputs to learn from: give --data.")
    for option, path in zip(("--plan", "--report"), unwritten, strict=True):
        if path is not None:
            raise BadInputError(f"--during-training cuts in rounds, each with a plan of its own; leave out {option}.")
    from onnxprune.api.gradual import prune_during_training

    rounds, steps, minutes = training
    del options["metric"]
    with progress(quiet or as_json) as told:
        result = prune_during_training(
            model,
            budget,
            output=output,
            rounds=rounds,
            steps=steps,
            minutes=minutes,
            progress=told,
            training={"seed": options["seed"]},
            **options,
        )
    if as_json:
        click.echo(to_json({"rounds": [vars(r) for r in result.rounds], **result.counts}), nl=False)
    elif not quiet:
        for k, r in enumerate(result.rounds, 1):
            OUT.print(f"round {k}   {r.kept:.1%} kept, held-out {r.before:.4g} -> {r.after:.4g} in {r.steps} steps")
        for name, (before, after) in result.counts.items():
            OUT.print(f"{name:<9} {before:,} -> {after:,} ({after / before:.1%})")
        OUT.print(f"wrote     {output}", markup=False)
