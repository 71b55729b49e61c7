"""The command line: arguments to options to pipeline, and exit codes.

0 done; 2 usage or bad input; 3 target not reachable; 4 verification failed; 5 nothing prunable. Only 0 writes anything.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from onnxprune import pipeline, sparse
from onnxprune.core.budget import Budget
from onnxprune.core.errors import BadInputError, OnnxPruneError
from onnxprune.core.sparsity import CRITERIA, SCOPES
from onnxprune.core.version import __version__
from onnxprune.stages.feeds import parse_shapes
from onnxprune.stages.report import VARIANT_COLUMNS, Report
from onnxprune.stages.score import CALIBRATED, IMPORTANCE
from onnxprune.stages.sparsity_report import SparsityReport
from onnxprune.stages.store import STORES

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """One sentence and the right exit code instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except OnnxPruneError as error:
            ERR.print(f"onnxprune: {error}", markup=False)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            sys.exit(1)
        except KeyboardInterrupt:
            ERR.print("onnxprune: interrupted; nothing was written.")
            sys.exit(130)
        except (OSError, MemoryError) as error:
            ERR.print(f"onnxprune: {type(error).__name__}: {error}; nothing was written.", markup=False)
            sys.exit(2)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="onnxprune")
def main() -> None:
    """Prune ONNX models: channels, heads, neurons; proved in ONNX Runtime."""


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write the pruned model.")
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
@click.option("--samples", type=int, default=512, show_default=True, help="Use at most so many samples of --data.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only weights whose node or tensor name matches.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave nodes or tensors with these names alone.")
@click.option("--include-inexact", is_flag=True, help="Also prune axes that LayerNorm and its kin normalise over.")
@click.option("--plan", type=click.Path(path_type=Path), help="Write the plan (JSON).")
@click.option("--apply", type=click.Path(path_type=Path), help="Replay a plan instead of deciding.")
@click.option("--input-shape", multiple=True, metavar="NAME:D,D,…", help="Shape of an input with dynamic dimensions.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE.npz|DIR",
    help="Inputs to observe, calibrate and repair with.",
)
@click.option("--during-training", is_flag=True, help="Prune in rounds, each followed by a short distillation.")
@click.option("--rounds", type=int, default=6, show_default=True, help="Cuts of --during-training.")
@click.option("--steps", type=int, default=3000, show_default=True, help="Training steps of --during-training, in all.")
@click.option("--minutes", type=float, help="Stop --during-training's training by then.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.md|.json", help="Write a report.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every group and every pin.")
@_guarded
def prune(
    model: Path,
    output: Path,
    ratio: float | None,
    macs: float | None,
    params: float | None,
    size: float | None,
    max_drop: float | None,
    metric: str,
    round_to: int | None,
    importance: str | None,
    recover: str | None,
    then_quantize: str | None,
    depth: str,
    samples: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    include_inexact: bool,
    plan: Path | None,
    apply: Path | None,
    input_shape: tuple[str, ...],
    data: Path | None,
    during_training: bool,
    rounds: int,
    steps: int,
    minutes: float | None,
    report: Path | None,
    as_json: bool,
    seed: int,
    quiet: bool,
    verbose: bool,
) -> None:
    """Prune MODEL to a target and write OUTPUT once it is proved equal to the masked original."""
    named = {"ratio": ratio, "macs": macs, "params": params, "size": size, "max_drop": max_drop}
    targets = {k: v for k, v in named.items() if v is not None}
    if len(targets) + (apply is not None) != 1:
        raise BadInputError(
            "Give exactly one target: --ratio, --macs, --params, --size or --max-drop (or --apply a plan)."
        )
    if report is not None and report.suffix not in (".md", ".json"):
        raise BadInputError(f"--report {report} must end in .md or .json.")
    budget = Budget(*next(iter(targets.items()))) if targets else None  # type: ignore[arg-type]
    silent = quiet or as_json or not ERR.is_terminal
    unused = _given(*(("metric",) if during_training else ("rounds", "steps", "minutes")))
    if unused:
        raise BadInputError(
            f"--{unused[0]} {'does not go' if during_training else 'only goes'} with --during-training."
        )
    if during_training:
        pruning: dict[str, Any] = {
            "importance": importance,
            "recover": recover,
            "samples": samples,
            "round_to": round_to,
        }
        pruning |= {"include": include, "exclude": exclude, "include_inexact": include_inexact, "seed": seed}
        pruning |= {"input_shapes": parse_shapes(input_shape), "depth": depth, "then_quantize": then_quantize}
        _gradual(model, output, budget, data, (plan, report), (rounds, steps, minutes), pruning, quiet, as_json)
        return
    with ERR.status("load") if not silent else _nothing() as status:
        result = pipeline.prune(
            model,
            budget,
            output=output,
            plan=plan,
            apply=apply,
            report=report,
            progress=(lambda stage: None) if silent else status.update,
            importance=importance,
            recover=recover,
            then_quantize=then_quantize,
            depth=depth,
            samples=samples,
            metric=metric,
            round_to=round_to,
            include=include,
            exclude=exclude,
            include_inexact=include_inexact,
            input_shapes=parse_shapes(input_shape),
            data=data,
            seed=seed,
        )
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        _show(result.report, output, verbose)


def _given(*names: str) -> list[str]:
    """Those of the options that the user wrote."""
    context = click.get_current_context()
    return [n for n in names if context.get_parameter_source(n) is not ParameterSource.DEFAULT]


class _nothing:
    """No status line."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _show(report: Report, output: Path, verbose: bool) -> None:
    data = report.data
    groups = data["groups"]
    units, gone = sum(g["units"] for g in groups), sum(g["removed"] for g in groups)
    exact = sum(g["exact"] for g in groups)
    OUT.print(f"found     {len(groups)} prunable groups ({exact} exact) with {units:,} units")
    hit = sum(1 for g in groups if g["removed"])
    OUT.print(f"removed   {gone:,} units from {hit} groups")
    declined = data["declined"]
    OUT.print(f"declined  {sum(d['units'] for d in declined):,} units in {sum(d['groups'] for d in declined)} groups")
    for d in declined if verbose else declined[:5]:
        remedy = f" [{d['remedy']}]" if d["remedy"] else ""
        OUT.print(f"          - {d['units']}: {d['reason']}{remedy}", markup=False)
    if not verbose and len(declined) > 5:
        OUT.print(f"          - and {len(declined) - 5} more reasons (-v shows all)")
    for k, line in enumerate(report.depth_lines()):
        OUT.print(f"{'          ' if k else 'layers    '}{line}", markup=False)
    OUT.print(f"checked   {report.check_line()}")
    for line in report.repair_lines():
        OUT.print(f"repaired  {line}" if not line.startswith("warning") else line, markup=False)
    if verbose:
        OUT.print(_group_table(groups))
    table = Table(box=None, pad_edge=False)
    for name, justify in (("", "left"), ("before", "right"), ("after", "right"), ("kept", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in report.summary_rows():
        table.add_row(*row)
    OUT.print(table)
    if "variants" in report.data:
        OUT.print(_variant_table(report))
    OUT.print(f"wrote     {output}", markup=False)


def _variant_table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    for k, name in enumerate(("", *VARIANT_COLUMNS)):
        table.add_column(name, justify="right" if k else "left")
    for row in report.variant_rows():
        table.add_row(*row)
    return table


def _group_table(groups: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("group", "left"),
        ("kind", "left"),
        ("where", "left"),
        ("units", "right"),
        ("removed", "right"),
        ("exact", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for g in groups:
        table.add_row(
            g["id"], g["kind"], _plain(g["origin"]), str(g["units"]), str(g["removed"]), "yes" if g["exact"] else "no"
        )
    return table


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write the sparse model.")
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
@click.option("--samples", type=int, default=512, show_default=True, help="Use at most so many samples of --data.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only weights whose node or tensor name matches.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave nodes or tensors with these names alone.")
@click.option("--input-shape", multiple=True, metavar="NAME:D,D,…", help="Shape of an input with dynamic dimensions.")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE.npz|DIR", help="Inputs to calibrate and measure with."
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.md|.json", help="Write a report.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print what was left alone, all of it.")
@_guarded
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
    _check_report(report)
    silent = quiet or as_json or not ERR.is_terminal
    with ERR.status("load") if not silent else _nothing() as status:
        result = sparse.sparsify(
            model,
            output=output,
            report=report,
            progress=(lambda stage: None) if silent else status.update,
            input_shapes=parse_shapes(input_shape),
            **options,
        )
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        _show_sparsity(result.report, output, verbose)


def _check_report(report: Path | None) -> None:
    if report is not None and report.suffix not in (".md", ".json"):
        raise BadInputError(f"--report {report} must end in .md or .json.")


def _show_sparsity(report: SparsityReport, output: Path, verbose: bool) -> None:
    OUT.print(f"zeros     {report.zeros_line()}", markup=False)
    left = report.data["left_alone"]
    OUT.print(f"left      {len(left)} weights as they are")
    for x in left if verbose else left[:5]:
        OUT.print(f"          - {x['tensor']} ({x['node']}) {x['reason']}", markup=False)
    if not verbose and len(left) > 5:
        OUT.print(f"          - and {len(left) - 5} more (-v shows all)")
    OUT.print(f"differs   {report.difference_line()}", markup=False)
    if "pruned" in report.data:
        OUT.print(f"removed   {report.pruned_line()}", markup=False)
    heads = ("weight", "shape", "zeros before", "after", "share", "how")
    OUT.print(_table(heads, report.layer_rows(), ("weight", "shape", "how")))
    OUT.print(_table(("", "before", "after", "ratio"), report.summary_rows(), ("",)))
    for line in report.data["runtimes"]:
        OUT.print(f"note      {line}", markup=False)
    OUT.print(f"wrote     {output}", markup=False)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head in left else "right")
    for row in rows:
        table.add_row(*map(_plain, row))
    return table


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--input-shape", multiple=True, metavar="NAME:D,D,…", help="Shape of an input with dynamic dimensions.")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE.npz|DIR", help="Inputs to observe the model with."
)
@click.option("--include-inexact", is_flag=True, help="Count axes that LayerNorm normalises over as prunable.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, members included.")
@click.option("-v", "--verbose", is_flag=True, help="Also print the members of each group.")
@_guarded
def inspect(
    model: Path, input_shape: tuple[str, ...], data: Path | None, include_inexact: bool, as_json: bool, verbose: bool
) -> None:
    """Show what can be removed from MODEL, what each group carries, and every pin with its reason and remedy."""
    found = pipeline.inspect(model, input_shapes=parse_shapes(input_shape), data=data, include_inexact=include_inexact)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    OUT.print(f"{found['macs']:,} MACs, {found['params']:,} parameters, {len(found['groups'])} groups")
    table = Table(box=None, pad_edge=False)
    names = ("group", "kind", "where", "units", "removable", "exact", "members", "MACs", "parameters")
    for name in names:
        table.add_column(name, justify="left" if name in ("group", "kind", "where", "exact") else "right")
    for g in found["groups"]:
        table.add_row(
            g["id"],
            g["kind"],
            _plain(g["origin"]),
            str(g["units"]),
            str(g["removable"]),
            "yes" if g["exact"] else "no",
            str(len(g["members"])),
            f"{g['macs']:,}",
            f"{g['params']:,}",
        )
    OUT.print(table)
    for g in found["groups"]:
        for pin in g["pins"]:
            remedy = f" [{pin['remedy']}]" if pin["remedy"] else ""
            OUT.print(f"{g['id']} pinned: {pin['reason']}{remedy}", markup=False)
        for m in g["members"] if verbose else []:
            OUT.print(f"{g['id']} member: {m['tensor']} axis {m['axis']} ({m['positions']} positions)", markup=False)
    for name in found["unknown_operators"]:
        OUT.print(f"no rule for {name}: it keeps what it touches", markup=False)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_guarded
def ops(as_json: bool) -> None:
    """List every operator and how it is treated."""
    from onnxprune.ops.listing import listing

    rows = listing()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("domain", "operator", "treated as", "note"):
        table.add_column(name)
    for row in rows:
        table.add_row(row["domain"], row["operator"], row["kind"], row["note"])
    OUT.print(table)


@main.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option("--plan", required=True, type=click.Path(path_type=Path), help="The plan that made PRUNED.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.npz|DIR", help="Inputs to compare on.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_guarded
def verify(original: Path, pruned: Path, plan: Path, data: Path | None, seed: int, as_json: bool) -> None:
    """Check that PRUNED equals ORIGINAL with the removed units forced to zero."""
    found = pipeline.verify(original, pruned, plan, data=data, seed=seed)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "error": found.error,
                    "tolerance": found.tolerance,
                    "exact": found.exact,
                    "masked_activations": found.masked,
                }
            )
        )
        return
    OUT.print(
        f"equal to {found.error:.1e} of the output's scale (allowed {found.tolerance:.0e}), {found.masked} activations masked"
    )


@main.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--input-shape", multiple=True, metavar="NAME:D,D,…")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.npz|DIR")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--runs", type=int, default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_guarded
def bench(
    models: tuple[Path, ...], input_shape: tuple[str, ...], data: Path | None, threads: int, runs: int, as_json: bool
) -> None:
    """Latency of models in ONNX Runtime, run in turn; ratios are against the first."""
    rows = pipeline.bench(models, parse_shapes(input_shape), data, threads, runs)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("model", "median ms", "min", "max", "speedup"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for r in rows:
        table.add_row(
            _plain(r["model"]),
            f"{r['median_ms']:.3f}",
            f"{r['min_ms']:.3f}",
            f"{r['max_ms']:.3f}",
            f"{r['speedup']:.2f}x",
        )
    OUT.print(table)


# ---------------------------------------------------------------- training


def _gradual(
    model: Path,
    output: Path,
    budget: Budget | None,
    data: Path | None,
    unwritten: tuple[Path | None, Path | None],
    training: tuple[int, int, float | None],
    pruning: dict[str, Any],
    quiet: bool,
    as_json: bool,
) -> None:
    """`prune --during-training`."""
    if budget is None:
        raise BadInputError("--during-training decides anew in every round; give a target instead of --apply.")
    if data is None:
        raise BadInputError("--during-training needs inputs to learn from: give --data.")
    for option, path in zip(("--plan", "--report"), unwritten, strict=True):
        if path is not None:
            raise BadInputError(f"--during-training cuts in rounds, each with a plan of its own; leave out {option}.")
    from onnxprune.gradual import prune_during_training

    rounds, steps, minutes = training
    silent = quiet or as_json or not ERR.is_terminal
    with ERR.status("load") if not silent else _nothing() as status:
        result = prune_during_training(
            model,
            budget,
            data=data,
            output=output,
            rounds=rounds,
            steps=steps,
            minutes=minutes,
            progress=(lambda stage: None) if silent else status.update,
            training={"seed": pruning["seed"]},
            **pruning,
        )
    if as_json:
        click.echo(json.dumps({"rounds": [vars(r) for r in result.rounds], **result.counts}, indent=1))
    elif not quiet:
        for k, r in enumerate(result.rounds, 1):
            OUT.print(f"round {k}   {r.kept:.1%} kept, held-out {r.before:.4g} -> {r.after:.4g} in {r.steps} steps")
        for name, (before, after) in result.counts.items():
            OUT.print(f"{name:<9} {before:,} -> {after:,} ({after / before:.1%})")
        OUT.print(f"wrote     {output}", markup=False)


@main.command()
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option(
    "--teacher", type=click.Path(path_type=Path), metavar="FILE", help="The original, which labels the inputs."
)
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), metavar="FILE.npz|DIR", help="Inputs to train on."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write the tuned model.")
@click.option("--labels", metavar="FILE|NAME", help="Labels: a .npz or .npy file, or the name of an array of --data.")
@click.option(
    "--plan", type=click.Path(path_type=Path), help="The plan that made PRUNED: compares sliced features too."
)
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
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="FILE", help="Save the run there, and go on from it."
)
@click.option("--threads", type=int, help="Of student and of teacher [default: half the cores each].")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@_guarded
def finetune(
    pruned: Path, teacher: Path | None, data: Path, output: Path, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Train the weights of PRUNED towards what --teacher computes, or towards --labels, and write OUTPUT."""
    from onnxprune.finetuning import finetune as run

    silent = quiet or as_json or not ERR.is_terminal
    with ERR.status("load") if not silent else _nothing() as status:
        progress = (lambda stage: None) if silent else status.update
        result = run(pruned, teacher, data=data, output=output, progress=progress, **options)
    if as_json:
        click.echo(json.dumps({"lines": result.lines(), "trained": vars(result.trained)}, indent=1))
    elif not quiet:
        for heading, text in result.lines():
            OUT.print(f"{heading:<9} {text}", markup=False)
        OUT.print(f"wrote     {output}", markup=False)
