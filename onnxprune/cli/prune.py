"""`onnxprune prune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.choose.budget import TARGETS, Budget, TargetName, flag_of
from onnxprune.choose.field import flag_of as flag_of_field
from onnxprune.choose.field import options as fields_of
from onnxprune.choose.finetune_options import GradualOptions
from onnxprune.choose.job_options import JobOptions
from onnxprune.choose.options import Options
from onnxprune.choose.place import Place
from onnxprune.cli.common import (
    FILE,
    OUT,
    Command,
    check_report,
    given,
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
from onnxprune.errors import BadInputError
from onnxprune.model.json_text import to_json
from onnxprune.words import counted

if TYPE_CHECKING:
    from rich.table import Table

    from onnxprune.report.report import Report
    from onnxprune.report.values import GroupRow

ROUNDS = [field.name for field, _ in fields_of(GradualOptions)]
UNUSED = {
    flag_of_field(field): (field.name, reason)
    for of, reason in ((Place, "times nothing"), (JobOptions, "trains in this process"))
    for field, _ in fields_of(of, "prune")
}
"""Options that do not go with --during-training, by flag: their name, and why."""


def _targets(command: Command) -> Command:
    for metric, text in reversed(TARGETS.items()):
        kind, metavar = (str, "MS|SHARE%") if metric == "latency" else (float, None)
        command = click.option(flag_of(metric), metric, type=kind, metavar=metavar, help=text)(command)
    return command


@click.command()
@click.argument("model", type=FILE)
@output_option("pruned")
@_targets
@options(Options, "prune")
@options(Place, "prune")
@options(JobOptions, "prune")
@click.option("--plan", type=FILE, help="Write the plan (JSON).")
@click.option("--apply", type=FILE, help="Replay a plan instead of deciding.")
@click.option("--during-training", is_flag=True, help="Prune in rounds, each followed by a short distillation.")
@options(GradualOptions, "prune")
@report_option
@json_option("Print the report as JSON.")
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="Print every group and every pin.")
@guarded
def prune(
    *,
    model: Path,
    output: Path,
    plan: Path | None,
    apply: Path | None,
    report: Path | None,
    during_training: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Prune MODEL to a target and write OUTPUT once it is proved equal to the masked original."""
    wanted: dict[TargetName, Any] = {metric: options.pop(metric) for metric in TARGETS}
    targets = [(metric, amount) for metric, amount in wanted.items() if amount is not None]
    if len(targets) + (apply is not None) > 1:
        raise BadInputError(
            "Give exactly one target: --ratio, --macs, --params, --size, --speedup, --latency or --max-drop (or --apply a plan)."
        )
    check_report(report)
    unused = given(*(("metric",) if during_training else ROUNDS))
    if unused:
        raise BadInputError(
            f"--{unused[0]} {'does not go' if during_training else 'only goes'} with --during-training."
        )
    rounds = {name: options.pop(name) for name in ROUNDS}
    budget = Budget(*targets[0]) if targets else None
    if during_training:
        _gradual(model, output, budget, rounds | options, unwritten=(plan, report), quiet=quiet, as_json=as_json)
        return
    from onnxprune.api.prune import prune as run

    with progress(quiet or as_json) as told:
        files = {"output": output, "plan": plan, "apply": apply, "report": report}
        result = run(model, budget, progress=told, command=words(), **files, **options)
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        _show(result.report, [f for f in (output, plan, report) if f is not None], verbose)


def _show(report: Report, written: Sequence[Path], verbose: bool) -> None:
    from onnxprune.report import lines

    groups, declined = report.groups, report.declined
    units, gone = sum(g.units for g in groups), sum(g.removed for g in groups)
    exact, hit = sum(g.exact for g in groups), sum(1 for g in groups if g.removed)
    OUT.print(f"found     {counted(len(groups), 'prunable group')} ({exact} exact) with {counted(units, 'unit')}")
    OUT.print(f"removed   {counted(gone, 'unit')} from {counted(hit, 'group')}")
    held = counted(sum(d.units for d in declined), "unit")
    OUT.print(f"declined  {held} in {counted(sum(d.groups for d in declined), 'group')}")
    for d in declined if verbose else declined[:5]:
        remedy = f" [{d.remedy}]" if d.remedy else ""
        OUT.print(f"          - {d.units}: {d.reason}{remedy}", markup=False)
    if not verbose and len(declined) > 5:
        OUT.print(f"          - and {counted(len(declined) - 5, 'more reason')} (-v shows all)")
    for k, line in enumerate(lines.depth_lines(report)):
        OUT.print(f"{'          ' if k else 'layers    '}{line}", markup=False)
    for k, line in enumerate(lines.resolution_lines(report)):
        OUT.print(f"{'          ' if k else 'resized   '}{line}", markup=False)
    OUT.print(f"checked   {lines.check_line(report)}")
    for line in lines.interface_lines(report):
        OUT.print(f"interface {line}", markup=False)
    for line in lines.repair_lines(report):
        OUT.print(f"repaired  {line}", markup=False)
    for line in lines.pace_lines(report):
        OUT.print(f"timed     {line}", markup=False)
    for line in lines.tuning_lines(report):
        OUT.print(f"tuned     {line}", markup=False)
    for line in report.warnings:
        OUT.print(f"warning: {line}", markup=False)
    if verbose:
        OUT.print(_group_table(groups))
    OUT.print(table(("", "before", "after", "kept"), lines.summary_rows(report), ("",)))
    if report.variants:
        OUT.print(table(("", *lines.VARIANT_COLUMNS), lines.variant_rows(report), ("",)))
    OUT.print(f"wrote     {', '.join(map(str, written))}", markup=False)


def _group_table(groups: Sequence[GroupRow]) -> Table:
    rows = [(g.id, g.kind, g.origin, str(g.units), str(g.removed), "yes" if g.exact else "no") for g in groups]
    return table(("group", "kind", "where", "units", "removed", "exact"), rows, ("group", "kind", "where", "exact"))


def _gradual(
    model: Path,
    output: Path,
    budget: Budget | None,
    options: dict[str, Any],
    *,
    unwritten: tuple[Path | None, Path | None],
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

    for flag, (name, reason) in UNUSED.items():
        if given(name):
            raise BadInputError(f"--during-training {reason}; leave out {flag}.")
        del options[name]
    del options["metric"]
    with progress(quiet or as_json) as told:
        result = prune_during_training(
            model,
            budget,
            output=output,
            progress=told,
            training={"seed": options["seed"]},
            **options,
        )
    if as_json:
        click.echo(to_json({"rounds": [vars(r) for r in result.rounds], **result.counts}), nl=False)
    elif not quiet:
        for k, r in enumerate(result.rounds, 1):
            OUT.print(
                f"round {k}   {r.kept:.1%} kept, held-out {r.before:.4g} -> {r.after:.4g} in {counted(r.steps, 'step')}"
            )
        for name, (before, after) in result.counts.items():
            OUT.print(f"{name:<9} {before:,} -> {after:,} ({after / before:.1%})")
        OUT.print(f"wrote     {output}", markup=False)
