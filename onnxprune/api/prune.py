"""Pruning on one page: load -> analyse -> choose -> rewrite -> verify -> compensate -> tune -> quantize -> measure -> report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from onnxprune.api.contest import jury_of
from onnxprune.api.means import Means, means
from onnxprune.api.points import ground_key, trials_of
from onnxprune.api.quantize import written
from onnxprune.api.replay import finisher, read_plan, repeated
from onnxprune.api.tune import ready
from onnxprune.choose import resolutions
from onnxprune.choose.budget import Budget, budget_of, usual
from onnxprune.choose.field import flag_of, several
from onnxprune.choose.field import options as fields_of
from onnxprune.choose.group_times import Pace
from onnxprune.choose.job_options import JobOptions
from onnxprune.choose.layers import Choice, chosen
from onnxprune.choose.max_drop import aside_for, boldest, is_drop
from onnxprune.choose.options import Options, completed, replayed
from onnxprune.choose.pace import Pacer, paced
from onnxprune.choose.place import Place
from onnxprune.choose.subject import Subject, deciding, whole
from onnxprune.clock import Clock, Progress, silent
from onnxprune.cut.plan import Plan, own_plan
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import BadInputError
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.load import Source, file_of, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.save import save_result
from onnxprune.ops import is_quantized
from onnxprune.proof.verdict import Bolder
from onnxprune.report.outcome import Outcome, plan_of
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
    replay instead of deciding. command: the words of the command line, for the report. options: the fields of `Options`, `Place`
    and `JobOptions`.
    Raises `BadInputError`, `TargetNotReachableError`, `VerificationError`, `NothingPrunableError`.
    """
    settings, place, where = several((Options, Place, JobOptions), options, "prune")
    budget = budget_of(budget)
    files = {"-o": output, "--plan": plan, "--report": report}
    check_outputs(files, (model, apply, settings.data))
    renderer = None if report is None else renderer_for(report)
    if budget is not None and apply is not None:
        raise BadInputError(
            "Give exactly one target: --ratio, --macs, --params, --size, --speedup, --latency, --max-drop, or a plan to --apply."
        )
    if apply is not None:
        _check_jobs(where)
    elif budget is None:
        budget = usual(settings.data is not None)
    ready(settings)
    clock = Clock(progress)
    runtime.load_custom_ops(settings.custom_ops)
    with means(where, place, clock, count=1) as by:
        outcome, loaded = _pruned(model, budget, apply, settings, files, by)
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


def _check_jobs(where: JobOptions) -> None:
    given = next((field for field, _ in fields_of(JobOptions) if getattr(where, field.name) is not None), None)
    if given is not None:
        raise BadInputError(
            f"{flag_of(given)} does not go with --apply: the plan has decided what jobs would find out."
        )


def _pruned(
    model: Source,
    budget: Budget | None,
    apply: str | PathLike[str] | Plan | None,
    settings: Options,
    files: Mapping[str, str | PathLike[str] | None],
    by: Means,
) -> tuple[Outcome, LoadedModel]:
    """files: to be written, by option."""
    clock, watch = by.clock, by.watch
    clock("load")
    loaded = load(model)
    check_outputs(files, loaded.data_files)
    if settings.then_quantize is not None and is_quantized(loaded.proto.graph):
        raise BadInputError("The model is quantized already; leave out --then-quantize, it stays so.")
    replay = None if apply is None else read_plan(apply)
    settings = completed(settings if replay is None else replayed(settings, replay), budget)
    aside = _aside(settings, budget, replay)
    original = begun(loaded, settings, budget, aside, by)
    clock("score")
    bolder = pace = None
    if replay is not None:
        choice = _applied(original, replay, apply, settings, clock)
    else:
        assert budget is not None
        key = ground_key(loaded, settings, settings.metric, aside) if by.leaves_results else ""
        choice, bolder, pace = _decided(loaded, original, budget, settings, by, key)
    outcome = carried_out(
        loaded, original, choice, budget, replay, settings=settings, clock=clock, watch=watch, bolder=bolder
    )
    return replace(outcome, set_aside=0 if aside is None else aside.least, pace=pace), loaded


# ---------------------------------------------------------------- what to remove


def begun(
    loaded: LoadedModel,
    settings: Options,
    budget: Budget | None,
    aside: Aside | None,
    by: Means,
) -> Subject:
    """The model analysed and calibrated, which no target changes; `budget` says whether time has to be measured for it."""
    clock, watch = by.clock, by.watch
    clock("analyse")
    ready(settings, loaded)
    analysis = analysis_of(loaded, settings.scope, share=clock.share)
    is_timed = budget is not None and (budget.is_time or (is_drop(budget) and settings.cost == "latency"))
    if settings.benchmark or settings.then_quantize is not None or is_timed:
        watch.check(loaded, analysis.feeds[0])
    return whole(analysis, settings, clock, aside, by.timer(settings) if is_timed else None)


def _aside(settings: Options, budget: Budget | None, replay: Plan | None) -> Aside | None:
    """What is to be set aside to judge by; of a replay, so that the same samples are fitted."""
    if replay is not None:
        return Aside(replay.set_aside, "the plan's limit on the loss") if replay.set_aside and settings.data else None
    return aside_for(budget, settings) if budget is not None and is_drop(budget) else None


def _decided(
    loaded: LoadedModel, original: Subject, budget: Budget, settings: Options, by: Means, key: str
) -> tuple[Choice, Bolder | None, Pace | None]:
    """key: of what jobs depend on (`ground_key`); empty where no other command finds their results."""
    finish, clock, trials = finisher(settings, loaded), by.clock, trials_of(by.jobs, key, settings)

    def made(choice: Choice) -> onnx.ModelProto:
        return written(original, settings, finish(rewrite(choice.subject.bare, choice.removed)))

    if is_drop(budget):
        jury = jury_of(by.jobs, key, original, budget, settings)
        if settings.cost == "macs":
            return *boldest(original, budget, settings, clock, jury, trials=trials), None
        with ExitStack() as stack:
            pacer = Pacer(original, Budget("speedup", 1), settings, clock, made, stack, trials)
            choice, bolder = boldest(original, budget, settings, clock, jury, pacer=pacer)
            return choice, bolder, pacer.pace(pacer.trial_of(choice))
    if budget.is_time:
        quantizes = settings.then_quantize is not None
        choice, pace = paced(original, budget, settings, clock, made, is_quantized=quantizes, sensed=trials)
        return choice, None, pace
    if settings.depth != "off":
        return chosen(original, budget, settings, clock, trials), None, None
    if settings.resolution == "auto":
        return resolutions.chosen(original, budget, settings, clock, trials), None, None
    decide = deciding(original, budget, settings, clock, trials)
    return Choice(original, decide(budget), damages=decide.damages), None, None


def _applied(original: Subject, plan: Plan, source: object, settings: Options, clock: Clock) -> Choice:
    """source: where the plan came from, for messages."""
    what = f"--apply {source}" if isinstance(source, str | PathLike) else "the plan"
    own_plan(plan, original.bare, what)
    if set(plan.mixed) != set(original.mixed):
        raise BadInputError(
            f"{what} cuts principal directions of units, and here these are of other tensors; give the same --data and --recover."
        )
    return repeated(original, plan, what, settings, clock)
