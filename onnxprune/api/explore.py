"""A trade-off on one page: load -> analyse -> calibrate -> damages -> decide for every target -> points (`prune` each) -> time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from onnxprune import runtime
from onnxprune.api.means import Means, means
from onnxprune.api.pick import check_pick, picked
from onnxprune.api.points import Asked, ground, ground_key, point_job, points_of, trials_of
from onnxprune.api.prune import begun
from onnxprune.api.replay import finisher
from onnxprune.api.tune import ready
from onnxprune.choose.budget import Budget
from onnxprune.choose.channels import Decider
from onnxprune.choose.explore_options import ExploreOptions, usual_targets
from onnxprune.choose.field import several
from onnxprune.choose.job_options import JobOptions
from onnxprune.choose.layers import Choice
from onnxprune.choose.options import Options, completed
from onnxprune.choose.pace import paced
from onnxprune.choose.place import Place
from onnxprune.choose.subject import Subject, deciding
from onnxprune.clock import Clock, Progress, silent
from onnxprune.cut.plan import Pair, Plan
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import BadInputError, TargetNotReachableError
from onnxprune.jobs import Result
from onnxprune.model.files import check_outputs, folder_of, staged
from onnxprune.model.interface import marked
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.save import save_result
from onnxprune.model.typed_json import typed
from onnxprune.proof.elsewhere import Stopwatch
from onnxprune.proof.verdict import Verdict
from onnxprune.report.explore import ExploreReport, Point, Unreached, sorted_points
from onnxprune.report.renderer import renderer_for
from onnxprune.report.values import Latency
from onnxprune.threads import one_thread


@dataclass(frozen=True)
class ExploreResult:
    """What `explore` made.

    report: what was found and measured. plans, models: of `report.points`, in their order. source: the original as it was loaded.
    picked: the point that `pick` asked for; None where it was not given.
    """

    report: ExploreReport
    plans: tuple[Plan, ...]
    models: tuple[onnx.ModelProto, ...]
    source: LoadedModel
    picked: Point | None = None

    def pick(self, text: str) -> Point:
        """The point of a number ("3"), or the best that keeps conditions ("drop<=0.01"). Raises as `--pick` does."""
        check_pick(text, any(p.latency_ms for p in self.report.points), len(self.report.points))
        return picked(self.report.points, text)

    def save(self, point: Point, path: str | PathLike[str]) -> None:
        """Write a point's model atomically, as `prune` writes it."""
        save_result(self.models[point.number - 1], path, self.source)

    def file_name(self, point: Point, suffix: str) -> str:
        """Of a point in a folder, such as `03-macs-0.7.plan.json`."""
        target = "-".join(f"{k}-{v:g}" for k, v in point.target.items())
        return f"{point.number:02d}-{target}{suffix}"


@one_thread()
def explore(
    model: Source,
    *,
    output: str | PathLike[str] | None = None,
    models: bool = False,
    plan: str | PathLike[str] | None = None,
    report: str | PathLike[str] | None = None,
    benchmark: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> ExploreResult:
    """Prune a model to several targets and put the results side by side; analysis, calibration and damages are shared.

    model: path or ModelProto (left alone). output: a folder for the plans (`models`: and the models), or, with `pick`, the file for
    that point's model; plan: with `pick`, a file for its plan. report: a file. Nothing is written unless everything succeeds.
    benchmark: time every point against the original. options: the fields of `ExploreOptions` and `JobOptions`, and those of `Options`
    and `Place` that go with it.
    Raises as `prune` does; `TargetNotReachableError` where no target is reached, or no point keeps what `pick` asks for.
    """
    how, where, settings, place = several((ExploreOptions, JobOptions, Options, Place), options, "explore")
    targets = how.at or usual_targets(how.points, settings.data is not None)
    _check(how, output, models, plan, benchmark, len(targets))
    files = {"-o": output if how.pick is not None else None, "--plan": plan, "--report": report}
    check_outputs(files, (model, settings.data))
    renderer = None if report is None else renderer_for(report)
    metric, settings = settings.metric, replace(settings, metric="kl", benchmark=benchmark)
    clock = Clock(progress)
    runtime.load_custom_ops(settings.custom_ops)
    with means(where, place, clock, count=None) as by:
        jobs = by.jobs
        had = 0 if jobs.checkpoint is None else jobs.checkpoint.count
        clock("load")
        loaded = load(model)
        check_outputs(files, loaded.data_files)
        found = _explored(loaded, settings, targets, metric, by)
    original, asked, results, unreached = found
    protos = [onnx.ModelProto.FromString(r.model or b"") for r in results]
    plans = [Plan.from_json(r.values["plan"]) for r in results]
    latencies = _timed(original, protos, plans, by.watch, clock) if benchmark else [None] * len(protos)
    clock.stop()
    order, points = sorted_points([_point(loaded, *x) for x in zip(asked, results, latencies, strict=True)])
    told = ExploreReport(
        model_sha256=loaded.sha256,
        metric=metric,
        points=points,
        where=jobs.place.name,
        computed=jobs.computed,
        reused=jobs.found,
        seconds={k: round(v, 3) for k, v in clock.seconds.items()},
        unreached=unreached,
        unused=None if jobs.checkpoint is None else had - jobs.found,
    )
    result = ExploreResult(told, tuple(plans[k] for k in order), tuple(protos[k] for k in order), loaded)
    if how.pick is not None:
        result = replace(result, picked=result.pick(how.pick))
    texts = {} if report is None or renderer is None else {Path(report): renderer.render(told)}
    _write(result, [results[k].values["plan"] for k in order], output, models, plan, texts)
    return result


def _explored(
    loaded: LoadedModel,
    settings: Options,
    targets: Sequence[Budget],
    metric: str,
    by: Means,
) -> tuple[Subject, list[Asked], list[Result], tuple[Unreached, ...]]:
    """The original, and a result for every target that can be reached. What targets share is measured once."""
    timed = next((t for t in targets if t.is_time), None)
    settings = completed(replace(settings, depth="off", resolution="off"), timed or targets[0])
    ready(settings)
    if timed is None:  # what is timed must have the machine alone
        by.jobs.place.expect(point_job, len(targets))
    key = ground_key(loaded, settings, metric)
    original = begun(loaded, settings, timed or targets[0], None, by)
    asked, unreached = _decided(loaded, original, targets, settings, by, key)
    base = ground(loaded, original, settings, metric)
    if original.calibration is not None:
        original.calibration.moments.clear()
    by.clock("points")
    return original, asked, points_of(by.jobs, key, base, asked, by.clock.share), unreached


def _check(
    how: ExploreOptions, output: str | PathLike[str] | None, models: bool, plan: object, benchmark: bool, count: int
) -> None:
    if how.pick is not None:
        check_pick(how.pick, benchmark, count)
        if models:
            raise BadInputError("--models goes with a folder, not with --pick; leave out one of them.")
        return
    if plan is not None:
        raise BadInputError(
            "--plan is for the point of --pick; without it, give a folder: -o DIR has the plans of all."
        )
    if models and output is None:
        raise BadInputError("--models needs a folder for them: give -o DIR.")
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise BadInputError(f"-o {output} is a file; give a folder for the plans, or a point to --pick.")


def _decided(
    loaded: LoadedModel,
    original: Subject,
    targets: Sequence[Budget],
    settings: Options,
    by: Means,
    key: str,
) -> tuple[list[Asked], tuple[Unreached, ...]]:
    """What to remove for every target; scores, orders and damages are measured once."""
    by.clock("score")
    decide = deciding(original, targets[0], settings, by.clock, trials_of(by.jobs, key, settings))
    asked, unreached, last = [], [], None
    for target in targets:
        try:
            asked.append(_one(loaded, original, target, settings, by.clock, decide))
        except TargetNotReachableError as problem:
            unreached.append(Unreached({target.metric: target.amount}, str(problem)))
            last = problem
    if not asked and last is not None:
        raise last
    return asked, tuple(unreached)


def _one(
    loaded: LoadedModel, original: Subject, target: Budget, settings: Options, clock: Clock, decide: Decider
) -> Asked:
    if not target.is_time:
        return Asked(target, decide(target))
    finish = finisher(settings, loaded)

    def made(choice: Choice) -> onnx.ModelProto:
        return finish(rewrite(choice.subject.bare, choice.removed))

    choice, pace = paced(original, target, settings, clock, made, known=decide)
    return Asked(target, choice.removed, pace)


def _timed(
    original: Subject, protos: Sequence[onnx.ModelProto], plans: Sequence[Plan], watch: Stopwatch, clock: Clock
) -> list[Latency | None]:
    """Each point in turn with the original, when nothing else runs."""
    clock("benchmark")
    model, found = original.bare.model, []
    for k, (proto, plan) in enumerate(zip(protos, plans, strict=True)):
        other = model.beside(marked(proto, plan.interface))
        found.append(Latency.of(watch.timed((model, other), original.bare.feeds[0])))
        clock.share((k + 1) / len(protos))
    return list(found)


def _point(loaded: LoadedModel, asked: Asked, result: Result, latency: Latency | None) -> Point:
    values, text = result.values, result.values["plan"]
    plan = Plan.from_json(text)
    assert plan.macs is not None and plan.params is not None and result.model is not None
    return Point(
        number=0,
        target={asked.budget.metric: asked.budget.amount},
        macs=plan.macs,
        params=plan.params,
        bytes=Pair(loaded.size_bytes, values["bytes"]),
        divergence=values["divergence"],
        agreement=values["agreement"],
        drop=values["drop"],
        is_best=False,
        check=typed(Verdict, values["check"], "the result of a job"),
        fitted=values["fitted"],
        plan_sha256=hashlib.sha256(text.encode()).hexdigest(),
        model_sha256=hashlib.sha256(result.model).hexdigest(),
        latency_ms=latency,
        warnings=tuple(values["warnings"]),
    )


def _write(
    result: ExploreResult,
    plans: Sequence[str],
    output: str | PathLike[str] | None,
    models: bool,
    plan: str | PathLike[str] | None,
    texts: dict[Path, str],
) -> None:
    """All of it, or nothing."""
    if result.picked is not None:
        if plan is not None:
            texts[Path(plan)] = plans[result.picked.number - 1]
        with staged(texts):
            if output is not None:
                result.save(result.picked, output)
        return
    if output is None:
        with staged(texts):
            return
    folder = Path(output)
    with folder_of(folder / "plans"), tempfile.TemporaryDirectory(dir=folder, prefix=".onnxprune-") as temporary:
        for p, text in zip(result.report.points, plans, strict=True):
            (Path(temporary) / result.file_name(p, ".plan.json")).write_text(text, encoding="utf-8")
            if models:
                result.save(p, Path(temporary) / result.file_name(p, ".onnx"))
        with staged(texts):
            for path in sorted(Path(temporary).iterdir()):
                os.replace(path, folder / path.name)
