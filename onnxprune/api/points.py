"""Jobs: damages of groups (of `explore` and `prune`), and points. Each is what `prune` does, in whatever process it runs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnxprune import ops, runtime
from onnxprune.analyse.sources import Aside
from onnxprune.api.carry import carried_out
from onnxprune.calibrate.answers import measures
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.metric import metric_of
from onnxprune.calibrate.recall import Recall
from onnxprune.choose.budget import Budget
from onnxprune.choose.group_times import Pace
from onnxprune.choose.layers import Choice
from onnxprune.choose.options import Options, settings_of
from onnxprune.choose.sensitivity import Narrowing, Sensing, Trials, judged
from onnxprune.choose.subject import Subject
from onnxprune.clock import Clock, silent
from onnxprune.groups.classes import Bools
from onnxprune.jobs import Job, Jobs, Result, Shared
from onnxprune.jobs.cluster import versions
from onnxprune.jobs.job import key_of
from onnxprune.model.interface import marked
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.model.save import stored_bytes
from onnxprune.model.typed_json import plain
from onnxprune.pipeline.stamp import of_file, of_metric
from onnxprune.proof.elsewhere import Stopwatch
from onnxprune.report.outcome import plan_of
from onnxprune.report.warnings import warnings


@dataclass(frozen=True)
class Ground:
    """What all points share. metric: what a drop is measured by; settings: those of all points, which time nothing."""

    loaded: LoadedModel
    original: Subject
    settings: Options
    metric: str


@dataclass(frozen=True)
class Asked:
    """One point. removed: bool per class; pace: how a target of time was met."""

    budget: Budget
    removed: Bools
    pace: Pace | None = None


def ground(loaded: LoadedModel, original: Subject, settings: Options, metric: str) -> Ground:
    """Without second moments, which only decisions need; and repairs remember what the original computed."""
    light = without_moments(original)
    known = light.calibration
    if known is not None:
        known = replace(known, recall=Recall())
        light = replace(light, calibration=known, against=known)
    return Ground(loaded, light, replace(settings, benchmark=False), metric)


def without_moments(original: Subject) -> Subject:
    """The original for what follows a decision; second moments are the largest part of what is known of it."""
    known = original.calibration
    if known is not None:
        known = replace(known, moments={})
    return replace(original, calibration=known, against=known)


def prepare(rules: tuple[Any, ...], libraries: tuple[str, ...], folder: str) -> None:
    """A process that gets a job learns what the user's own has: rules and libraries of operators, and where modules of metrics lie."""
    for rule in rules:
        if not all(name in ops.REGISTERED for name in map(_named, rule.ops)):
            ops.register(rule)
    runtime.load_custom_ops(libraries)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _named(name: str) -> tuple[str, str]:
    domain, _, op = name.rpartition("::")
    return domain, op


def shared_of(value: Any, settings: Options) -> Shared:
    """For jobs; see `prepare`."""
    rules = tuple({id(rule): rule for rule in ops.REGISTERED.values()}.values())
    libraries = tuple(str(Path(x).resolve()) for x in settings.custom_ops)
    return Shared(value, (prepare, (rules, libraries, str(Path.cwd()))))


# ---------------------------------------------------------------- by what results are found again


def ground_key(loaded: LoadedModel, settings: Options, metric: str, aside: Aside | None = None) -> str:
    """Hash of all that results depend on: model, data, options, what is set aside, versions, the processor's kind."""
    files = [*sorted(map(str, loaded.data_files)), *map(str, settings.custom_ops)]
    if settings.data is not None:
        data = Path(settings.data)
        files += [str(p) for p in sorted(data.rglob("*"))] if data.is_dir() else [str(data)]
    contents = [of_file(Path(f)) for f in files if Path(f).is_file()]
    kept = settings_of(settings, None) | {"judge": settings.judge, "round_to": settings.round_to}
    kept |= {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in ("samples", "seed", "check")}
    where = {"versions": versions(), "machine": platform.machine()}
    least = 0 if aside is None else aside.least
    return key_of(
        loaded.sha256, contents, kept, where, metric, of_metric(metric), sorted(map(str, ops.REGISTERED)), least
    )


# ---------------------------------------------------------------- sensitivities


def trials_of(jobs: Jobs, key: str, settings: Options) -> Trials:
    """Damages of groups as jobs, one for each group."""

    def run(sensing: Sensing, asked: Sequence[Narrowing], progress: Callable[[float], None]) -> list[list[float]]:
        gone = plain(sensing.mark)
        listed = [
            Job(
                key_of(
                    "damages", key, gone, [c.tolist() for c in a.classes], a.counts, sensing.chosen, sensing.optimized
                ),
                a,
                f"damages of group {k}",
            )
            for k, a in enumerate(asked)
        ]
        results = jobs(damages_job, shared_of(sensing, settings), listed, progress)
        return [list(map(float, r.values["damages"])) for r in results]

    return run


def damages_job(sensing: Sensing, asked: Narrowing) -> Result:
    """One group at a few widths."""
    return Result({"damages": sensing(asked)})


# ---------------------------------------------------------------- points


def points_of(
    jobs: Jobs, key: str, base: Ground, asked: Sequence[Asked], progress: Callable[[float], None]
) -> list[Result]:
    """Each proved and repaired, in order."""
    listed = [
        Job(
            key_of("point", key, [a.budget.metric, a.budget.amount], a.removed.tobytes(), plain(a.pace)),
            a,
            f"{a.budget.metric} {a.budget.amount:g}",
        )
        for a in asked
    ]
    return jobs(point_job, shared_of(base, base.settings), listed, progress)


def point_job(base: Ground, asked: Asked) -> Result:
    """What `prune` does once it has decided."""
    choice = Choice(base.original, asked.removed)
    watch = Stopwatch(runtime.OnnxRuntime())
    outcome = carried_out(
        base.loaded, base.original, choice, asked.budget, None, settings=base.settings, clock=Clock(silent), watch=watch
    )
    outcome = replace(outcome, pace=asked.pace)
    plan, repair, verdict = plan_of(outcome), outcome.repair, outcome.verdict
    kept = plan.macs.after / plan.macs.before if plan.macs and plan.macs.before else 1.0
    told = warnings(
        base.original.bare, outcome.model, outcome.calibration, repair, kept, asked=bool(base.settings.samples)
    )
    found = held_out(outcome.calibration, base.loaded.beside(marked(outcome.model, plan.interface)), base.metric)
    values = found | {
        "plan": plan.to_json(),
        "bytes": stored_bytes(outcome.model),
        "check": plain(verdict),
        "fitted": 0 if repair is None else len({f.layer for f in repair.fits if f.ridge is not None}),
        "warnings": told,
    }
    return Result(values, outcome.model.SerializeToString(deterministic=True))


def held_out(calibration: Calibration | None, model: Model, metric: str) -> dict[str, float | None]:
    """On held-out samples: divergence from the original, agreement with its top classes, and the drop by the metric."""
    if calibration is None:
        return {"divergence": None, "agreement": None, "drop": None}
    chosen = calibration.samples.own_held
    by = measures(calibration.judged, calibration.outputs)
    first = (metric_of(metric, calibration, chosen), None if metric == "kl" else chosen)
    drop, *others = judged(calibration, model, [first, *((m, None) for m in by.values())])
    found = dict(zip(by, others, strict=True))
    agreement = 1 - found["classes"] if "classes" in found else None
    return {"drop": drop, "divergence": found.get("divergence"), "agreement": agreement}
