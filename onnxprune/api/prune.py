"""The program on one page: load -> analyse -> calibrate -> score -> allocate -> rewrite -> verify -> compensate -> report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import onnx

from onnxprune import runtime
from onnxprune.analyse.observe import analysis_of, feeds_of
from onnxprune.analyse.scope import Scope
from onnxprune.api.quantize import quantize
from onnxprune.choose.budget import Budget
from onnxprune.choose.channels import decider, repaired
from onnxprune.choose.costs import CostModel
from onnxprune.choose.layers import Choice, chosen, reduced, told
from onnxprune.choose.max_drop import audited, is_drop, least
from onnxprune.choose.options import Options, completed, options_of, replayed, settings_of
from onnxprune.choose.subject import Subject, uncalibrated, whole
from onnxprune.clock import Clock, Progress, silent
from onnxprune.cut.bypass import checked, node_keys
from onnxprune.cut.plan import Plan, make_plan, own_plan, removed_by
from onnxprune.cut.rewrite import rewrite
from onnxprune.cut.tidy import tidy
from onnxprune.errors import BadInputError
from onnxprune.groups.classes import Bools
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.importer import save_model
from onnxprune.model.load import load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.patch import constants_at, digest_of, inputs_at, with_constants
from onnxprune.ops import is_quantized
from onnxprune.proof.masked import check_refit
from onnxprune.proof.prove import check_well_formed, latency, proved
from onnxprune.proof.verdict import Verdict
from onnxprune.repair.fits import Repair
from onnxprune.report.report import Report, inspection
from onnxprune.report.variant import Variant
from onnxprune.report.warnings import warnings
from onnxprune.version import __version__

Source: TypeAlias = str | PathLike[str] | onnx.ModelProto


@dataclass(frozen=True)
class PruneResult:
    """The pruned model, the plan that made it and what was measured."""

    model: onnx.ModelProto
    plan: Plan
    report: Report
    source: LoadedModel

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model atomically (with external data, if the original had it or it is too large)."""
        source = self.source
        save_model(source.beside(self.model), Path(path), apart=source.has_external_data, spared=source.data_files)


def prune(
    model: Source,
    budget: Budget | None = None,
    *,
    output: str | PathLike[str] | None = None,
    plan: str | PathLike[str] | None = None,
    apply: str | PathLike[str] | Plan | None = None,
    report: str | PathLike[str] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> PruneResult:
    """Prune a model to a budget, or replay a plan.

    model: path or ModelProto (left alone). budget: `Budget("macs", 0.5)`. output, plan, report: files to write; nothing is
    written unless everything succeeds. apply: a plan to replay instead of deciding. options: the fields of `Options`.
    Raises `BadInputError`, `TargetNotReachableError`, `VerificationError`, `NothingPrunableError`.
    """
    settings = options_of(options)
    files = {"-o": output, "--plan": plan, "--report": report}
    check_outputs(files, (model, apply, settings.data))
    if (budget is None) == (apply is None):
        raise BadInputError(
            "Give exactly one target: --ratio, --macs, --params, --size, --max-drop, or a plan to --apply."
        )
    clock = Clock(progress)
    clock("load")
    loaded = load(model)
    check_outputs(files, loaded.data_files)
    if settings.then_quantize is not None and is_quantized(loaded.proto.graph):
        raise BadInputError("The model is quantized already; leave out --then-quantize, it stays so.")
    clock("analyse")
    replay = _read_plan(apply) if apply is not None else None
    if replay is not None:
        settings = replayed(settings, replay)
    settings = completed(settings, budget)
    analysis = analysis_of(loaded, settings.scope)
    original = whole(analysis, settings, clock, is_drop(budget) or (replay is not None and replay.has_limit))
    clock("score")
    if replay is not None:
        what = f"--apply {apply}" if isinstance(apply, str | PathLike) else "the plan"
        own_plan(replay, analysis, what)
        if set(replay.mixed) != set(original.mixed):
            raise BadInputError(
                f"{what} cuts principal directions of units, and here these are of other tensors; give the same --data and --recover."
            )
        choice = _repeated(original, replay, what, settings, clock)
    else:
        assert budget is not None
        choice = _decided(original, budget, settings, clock)
    subject, removed, calibration = choice.subject, choice.removed, choice.subject.against
    clock("rewrite")
    bare = rewrite(subject.bare, removed)
    finish = _finish(settings, loaded)
    clock("verify")
    found = None
    if settings.check:
        found = proved(
            subject.bare,
            removed,
            loaded.beside(finish(bare)),
            settings.seed,
            original=loaded,
            bypasses=subject.bypasses,
        )
    clock("compensate")
    pruned, repair = rewrite(subject.analysis, removed) if subject.changed else bare, None
    if calibration is not None and settings.recover != "none":
        calibration = replace(calibration, moments={})  # decided: their memory is needed for the fits
        pruned, repair = repaired(subject.analysis, removed, pruned, calibration, settings, clock, subject.bypasses)
    pruned, refit = _rebased(bare, pruned, subject, repair, finish)
    check_well_formed(loaded, loaded.beside(pruned))
    digest = digest_of(constants_at(loaded.beside(pruned), refit))
    variants: tuple[Variant, ...] = ()
    if settings.then_quantize is not None:
        assert calibration is not None
        clock("quantize")
        pruned, variants = quantize(analysis, pruned, calibration, settings)
    drop = None
    if budget is not None and is_drop(budget):
        assert original.calibration is not None
        clock("audit")
        drop = audited(analysis, original.calibration, pruned, budget, settings)
    clock("benchmark")
    times = latency(analysis, pruned) if settings.benchmark else None
    clock.stop()
    if replay is not None:
        made = replay.repaired(settings.recover or "none", refit, digest)
    else:
        made = make_plan(
            subject.bare,
            removed,
            _costs(original, subject, removed),
            settings_of(settings, budget),
            __version__,
            refit,
            subject.bypasses,
            _nodes_removed(loaded.proto, pruned) if settings.depth != "off" else (),
            subject.mixed,
            digest,
        )
    text = Report.make(
        subject.bare,
        removed,
        made,
        pruned,
        found,
        times,
        clock.seconds,
        budget,
        settings.include_inexact,
        calibration,
        repair,
        variants,
        told(original, choice, settings.depth),
        subject.blocks,
        drop,
        warnings(analysis, pruned, calibration, repair, is_quantized(loaded.proto.graph)),
    )
    result = PruneResult(pruned, made, text, loaded)
    texts: dict[Path, str] = {}
    if report is not None:
        texts[Path(report)] = text.to_json() if str(report).endswith(".json") else text.to_markdown()
    if plan is not None:
        texts[Path(plan)] = made.to_json()
    with staged(texts):
        if output is not None:
            result.save(output)
    return result


def inspect(model: Source, **options: Any) -> dict[str, Any]:
    """Groups, units, members, MACs and parameters that each group carries, and every pin with its reason and remedy."""
    analysis = analysis_of(load(model), options_of(options).scope)
    return inspection(analysis, CostModel(analysis))


def verify(
    original: Source, pruned: Source, plan: str | PathLike[str] | Plan, *, data: str | Path | None = None, seed: int = 0
) -> Verdict:
    """Compare a pruned model with the masked original. Raises `VerificationError` where they differ."""
    loaded, other = load(original), load(pruned)
    made = _read_plan(plan)
    if is_quantized(other.proto.graph) and not is_quantized(loaded.proto.graph):
        raise BadInputError(
            "The pruned model was quantized, so it equals no part of its original; "
            "verify what the same command writes without --then-quantize."
        )
    settings = replayed(options_of({"data": data, "seed": seed}), made)
    analysis = analysis_of(loaded, settings.scope)
    choice = _repeated(uncalibrated(analysis), made, "the plan", settings, Clock(silent))
    subject, removed, refit = choice.subject, choice.removed, made.refit
    bypasses = subject.bypasses
    if not refit:
        return proved(subject.bare, removed, other, seed, loaded, bypasses)
    cut, finish = rewrite(subject.bare, removed), _finish(settings, loaded)
    check_refit(loaded.beside(cut), other, refit, made.refit_sha256, finish)
    return proved(subject.bare, removed, loaded.beside(finish(cut)), seed, loaded, bypasses)


# ---------------------------------------------------------------- the steps, once each


def _decided(original: Subject, budget: Budget, settings: Options, clock: Clock) -> Choice:
    if is_drop(budget):
        return least(original, budget, settings, clock)
    if settings.depth != "off":
        return chosen(original, budget, settings, clock)
    decide = decider(original.analysis, original.calibration, budget, settings, original.costs, clock)
    return Choice(original, decide(budget))


def _repeated(original: Subject, plan: Plan, what: str, settings: Options, clock: Clock) -> Choice:
    own_plan(plan, original.bare, what)
    bypasses = plan.bypasses
    checked(original.bare, bypasses, what)
    subject = reduced(original, bypasses, settings, clock, decides=False)
    return Choice(subject, removed_by(plan, subject.bare, what))


def _finish(settings: Options, loaded: LoadedModel) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """What is done last: where layers may go, what has no purpose goes with them."""
    if settings.depth == "off":
        return lambda model: model
    return lambda model: tidy(loaded.beside(model))


def _rebased(
    bare: onnx.ModelProto,
    pruned: onnx.ModelProto,
    subject: Subject,
    repair: Repair | None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto],
) -> tuple[onnx.ModelProto, tuple[tuple[str, int], ...]]:
    """The finished model, as the cut original with other constants, and where those are."""
    refit = repair.changed if repair else ()
    if subject.changed:
        places = dict.fromkeys((*subject.changed, *refit))
        values = constants_at(subject.bare.model.beside(pruned), places)
        pruned, refit = with_constants(bare, values), tuple(p for p in places if p in values)
    pruned = finish(pruned)
    left = inputs_at(pruned, refit)
    return pruned, tuple(p for p in refit if p in left)


def _nodes_removed(original: onnx.ModelProto, pruned: onnx.ModelProto) -> list[str]:
    left = set(node_keys(pruned.graph))
    return [key for key in node_keys(original.graph) if key not in left]


def _read_plan(plan: str | PathLike[str] | Plan) -> Plan:
    if isinstance(plan, Plan):
        return plan
    try:
        text = Path(plan).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not text"
        raise BadInputError(f"The plan {plan} cannot be read: {reason}.") from None
    return Plan.from_json(text, f"The plan {plan}")


def _costs(original: Subject, subject: Subject, removed: Bools) -> dict[str, list[int]]:
    before, after = original.costs, subject.costs
    return {"macs": [before.macs(), after.macs(removed)], "params": [before.params(), after.params(removed)]}


def bench(
    models: Sequence[Path], shapes: dict[str, tuple[int, ...]], data: str | Path | None, threads: int, runs: int
) -> list[dict[str, Any]]:
    """Latency of several models on the same inputs, in turn; `speedup` is against the first."""
    loaded = [load(m) for m in models]
    feeds = feeds_of(loaded[0], Scope(input_shapes=shapes, data=data))[0]
    sessions = [
        runtime.Session(m, optimized=True, threads=threads, what=str(p)) for m, p in zip(loaded, models, strict=True)
    ]
    times = runtime.latency(sessions, feeds, repeats=max(3, runs), seconds=120)
    first = median(times[0])
    return [
        {
            "model": str(path),
            "median_ms": median(t),
            "min_ms": min(t),
            "max_ms": max(t),
            "speedup": first / median(t),
            "runs": len(t),
            "threads": threads,
        }
        for path, t in zip(models, times, strict=True)
    ]
