"""Pruning on one page: load -> analyse -> choose -> rewrite -> verify -> compensate -> tune -> quantize -> measure -> report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.sources import Aside
from onnxprune.api.carry import carried_out
from onnxprune.api.quantize import quantized
from onnxprune.api.replay import finisher, read_plan, repeated
from onnxprune.api.tune import ready
from onnxprune.choose.budget import Budget, budget_of, usual
from onnxprune.choose.channels import decider
from onnxprune.choose.field import both
from onnxprune.choose.layers import Choice, chosen
from onnxprune.choose.max_drop import aside_for, boldest, is_drop
from onnxprune.choose.options import Options, completed, replayed
from onnxprune.choose.pace import Pace, Pacer, paced
from onnxprune.choose.place import Place
from onnxprune.choose.subject import Subject, whole
from onnxprune.choose.timer import Timer
from onnxprune.clock import Clock, Progress, silent
from onnxprune.cut.plan import Plan, own_plan
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import BadInputError
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.load import Source, file_of, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.save import save_result
from onnxprune.ops import is_quantized
from onnxprune.proof.elsewhere import Stopwatch
from onnxprune.proof.verdict import Bolder
from onnxprune.report.outcome import plan_of
from onnxprune.report.renderer import renderer_for
from onnxprune.report.report import Report, report_of
from onnxprune.threads import one_thread


@dataclass(frozen=True)
class PruneResult:
    """What `prune` made.

    model: the pruned model.
    plan: what was removed; enough to do it again, and to verify it.
    report: what was found and measured.
    source: the original as it was loaded.
    """

    model: onnx.ModelProto
    plan: Plan
    report: Report
    source: LoadedModel

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model atomically (with external data, if the original had it or it is too large)."""
        save_result(self.model, path, self.source)


@one_thread()
def prune(
    model: Source,
    budget: Budget | None = None,
    *,
    output: str | PathLike[str] | None = None,
    plan: str | PathLike[str] | None = None,
    apply: str | PathLike[str] | Plan | None = None,
    report: str | PathLike[str] | None = None,
    progress: Progress = silent,
    command: Sequence[str] = (),
    **options: Any,
) -> PruneResult:
    """Prune a model to a budget, or replay a plan.

    model: path or ModelProto (left alone). budget: `Budget("macs", 0.5)`, the default where there is data; 0.8 without.
    output, plan, report: files to write, or none of them where something fails; the report's suffix says its format. apply: a plan to
    replay instead of deciding. command: the words of the command line, for the report. options: the fields of `Options`, and of `Place`.
    Raises `BadInputError`, `TargetNotReachableError`, `VerificationError`, `NothingPrunableError`.
    """
    settings, place = both(Options, Place, options, "prune")
    budget = budget_of(budget)
    files = {"-o": output, "--plan": plan, "--report": report}
    check_outputs(files, (model, apply, settings.data))
    renderer = None if report is None else renderer_for(report)
    if budget is not None and apply is not None:
        raise BadInputError(
            "Give exactly one target: --ratio, --macs, --params, --size, --speedup, --latency, --max-drop, or a plan to --apply."
        )
    if budget is None and apply is None:
        budget = usual(settings.data is not None)
    ready(settings)
    clock = Clock(progress)
    runtime.load_custom_ops(settings.custom_ops)
    watch = Stopwatch(place.made(), place.batch, place.warmup)
    clock("load")
    loaded = load(model)
    check_outputs(files, loaded.data_files)
    if settings.then_quantize is not None and is_quantized(loaded.proto.graph):
        raise BadInputError("The model is quantized already; leave out --then-quantize, it stays so.")
    replay = None if apply is None else read_plan(apply)
    settings = completed(settings if replay is None else replayed(settings, replay), budget)
    aside = _aside(settings, budget, replay)
    original = begun(loaded, settings, budget, aside, watch, clock)
    clock("score")
    bolder = pace = None
    if replay is not None:
        choice = _applied(original, replay, apply, settings, clock)
    else:
        assert budget is not None
        choice, bolder, pace = _decided(loaded, original, budget, settings, clock)
    outcome = carried_out(
        loaded, original, choice, budget, replay, settings=settings, clock=clock, watch=watch, bolder=bolder
    )
    outcome = replace(outcome, set_aside=0 if aside is None else aside.least, pace=pace)
    made = plan_of(outcome)
    result = PruneResult(outcome.model, made, report_of(outcome, made, command, file_of(model)), loaded)
    texts: dict[Path, str] = {}
    if report is not None and renderer is not None:
        texts[Path(report)] = renderer.render(result.report)
    if plan is not None:
        texts[Path(plan)] = made.to_json()
    with staged(texts):
        if output is not None:
            result.save(output)
    return result


# ---------------------------------------------------------------- what to remove


def begun(
    loaded: LoadedModel,
    settings: Options,
    budget: Budget | None,
    aside: Aside | None,
    watch: Stopwatch,
    clock: Clock,
) -> Subject:
    """The model analysed and calibrated, which no target changes; `budget` says whether time has to be measured for it."""
    clock("analyse")
    ready(settings, loaded)
    analysis = analysis_of(loaded, settings.scope, share=clock.share)
    is_timed = budget is not None and (budget.is_time or (is_drop(budget) and settings.cost == "latency"))
    if settings.benchmark or settings.then_quantize is not None or is_timed:
        watch.check(loaded, analysis.feeds[0])
    timer = Timer(watch.runner, batch=watch.batch, warmup=watch.warmup) if is_timed else None
    return whole(analysis, settings, clock, aside, timer)


def _aside(settings: Options, budget: Budget | None, replay: Plan | None) -> Aside | None:
    """What is to be set aside to judge by; of a replay, so that the same samples are fitted."""
    if replay is not None:
        return Aside(replay.set_aside, "the plan's limit on the loss") if replay.set_aside and settings.data else None
    return aside_for(budget, settings) if budget is not None and is_drop(budget) else None


def _decided(
    loaded: LoadedModel, original: Subject, budget: Budget, settings: Options, clock: Clock
) -> tuple[Choice, Bolder | None, Pace | None]:
    finish, written = finisher(settings, loaded), _writer(original, settings)

    def made(choice: Choice) -> onnx.ModelProto:
        return written(finish(rewrite(choice.subject.bare, choice.removed)))

    if is_drop(budget):
        if settings.cost == "macs":
            return *boldest(original, budget, settings, clock, written), None
        with ExitStack() as stack:
            pacer = Pacer(original, Budget("speedup", 1), settings, clock, made, stack)
            choice, bolder = boldest(original, budget, settings, clock, written, pacer)
            return choice, bolder, pacer.pace(pacer.trial_of(choice))
    if budget.is_time:
        choice, pace = paced(original, budget, settings, clock, made, settings.then_quantize is not None)
        return choice, None, pace
    if settings.depth != "off":
        return chosen(original, budget, settings, clock), None, None
    decide = decider(original.analysis, original.calibration, budget, settings, original.costs, clock)
    return Choice(original, decide(budget), damages=decide.damages), None, None


def _writer(original: Subject, settings: Options) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """What becomes of a repaired model's numbers before it is written."""
    calibration, model = original.calibration, original.bare.model
    if settings.then_quantize is None or calibration is None:
        return lambda proto: proto
    return lambda proto: quantized(model.beside(proto), calibration, "the pruned model")


def _applied(original: Subject, plan: Plan, source: object, settings: Options, clock: Clock) -> Choice:
    """source: where the plan came from, for messages."""
    what = f"--apply {source}" if isinstance(source, str | PathLike) else "the plan"
    own_plan(plan, original.bare, what)
    if set(plan.mixed) != set(original.mixed):
        raise BadInputError(
            f"{what} cuts principal directions of units, and here these are of other tensors; give the same --data and --recover."
        )
    return repeated(original, plan, what, settings, clock)
