"""A choice carried out: cut, proved, repaired, tuned, quantized, measured. One way for all that prune."""

from __future__ import annotations

from typing import TypeAlias

import onnx

from onnxprune import runtime
from onnxprune.api.quantize import quantize
from onnxprune.api.replay import finisher
from onnxprune.api.tune import Untuned, tuned_by
from onnxprune.calibrate.calibration import Calibration
from onnxprune.choose.budget import Budget
from onnxprune.choose.channels import repaired
from onnxprune.choose.layers import Choice
from onnxprune.choose.max_drop import audited, is_drop
from onnxprune.choose.options import Options
from onnxprune.choose.subject import Subject
from onnxprune.choose.trials import check_faster
from onnxprune.clock import Clock
from onnxprune.cut.plan import Plan
from onnxprune.cut.rewrite import rewrite
from onnxprune.model.interface import unmarked
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.patch import constants_at, digest_of, inputs_at, with_constants
from onnxprune.proof.elsewhere import Stopwatch
from onnxprune.proof.prove import check_well_formed, proved
from onnxprune.proof.verdict import Bolder, Verdict
from onnxprune.repair.fits import Repair
from onnxprune.report.outcome import Outcome
from onnxprune.report.values import Tuned, Variant


def carried_out(
    loaded: LoadedModel,
    original: Subject,
    choice: Choice,
    budget: Budget | None,
    replay: Plan | None,
    *,
    settings: Options,
    clock: Clock,
    watch: Stopwatch,
    bolder: Bolder | None = None,
) -> Outcome:
    """Cut, proved, repaired and measured."""
    subject, removed, calibration = choice.subject, choice.removed, choice.subject.against
    for known in (original.calibration, original.against, subject.calibration, calibration):
        if known is not None:
            known.moments.clear()  # decided: their memory is needed for what follows
    clock("rewrite")
    bare = rewrite(subject.bare, removed)
    clock("verify")
    verdict: Verdict | None = None
    if settings.check:
        finished = loaded.beside(finisher(settings, loaded)(bare))
        verdict = proved(
            subject.bare,
            removed,
            finished,
            settings.seed,
            original=loaded,
            bypasses=subject.bypasses,
            share=clock.share,
        )
    clock("compensate")
    pruned, repair, tuning, refit = _finished(loaded, choice, bare, calibration, settings=settings, clock=clock)
    check_well_formed(loaded, loaded.beside(pruned))
    digest = digest_of(constants_at(loaded.beside(pruned), refit))
    variants: tuple[Variant, ...] = ()
    if settings.then_quantize is not None:
        assert calibration is not None
        clock("quantize")
        pruned, variants = quantize(original.bare, pruned, calibration, settings, watch)
    drop = None
    if budget is not None and is_drop(budget):
        assert original.calibration is not None
        clock("audit")
        drop = audited(original.bare, original.calibration, pruned, budget, settings, bolder)
    clock("benchmark")
    models = (original.bare.model, original.bare.model.beside(pruned))
    times = watch.timed(models, original.bare.feeds[0], clock.share) if settings.benchmark else None
    if times is not None and budget is not None and budget.is_time and (choice.removed.any() or subject.bypasses):
        check_faster(budget, runtime.speedup(*(t.rounds for t in times.times)))
    clock.stop()
    return Outcome(
        settings=settings,
        budget=budget,
        replay=replay,
        original=original,
        choice=choice,
        model=unmarked(pruned),
        refit=refit,
        digest=digest,
        verdict=verdict,
        calibration=calibration,
        repair=repair,
        tuning=tuning,
        variants=variants,
        drop=drop,
        times=times,
        seconds=clock.seconds,
    )


Places: TypeAlias = tuple[tuple[str, int], ...]


def _finished(
    loaded: LoadedModel,
    choice: Choice,
    bare: onnx.ModelProto,
    calibration: Calibration | None,
    *,
    settings: Options,
    clock: Clock,
) -> tuple[onnx.ModelProto, Repair | None, Tuned | None, Places]:
    """`bare` (cut, nothing else changed), repaired and tuned; what both did; which constants of the finished model are others."""
    pruned, repair, places = _compensated(choice, bare, calibration, settings, clock)
    tuned: Tuned | None = None
    finish = finisher(settings, loaded)
    if settings.tunes:
        assert calibration is not None
        clock("tune")
        given = Untuned(loaded, choice, bare, pruned, places, calibration)
        pruned, places, tuned = tuned_by(given, settings, finish, clock)
    pruned = finish(pruned)
    left = inputs_at(pruned, places)
    return pruned, repair, tuned, tuple(p for p in places if p in left)


def _compensated(
    choice: Choice,
    bare: onnx.ModelProto,
    calibration: Calibration | None,
    settings: Options,
    clock: Clock,
) -> tuple[onnx.ModelProto, Repair | None, Places]:
    """`bare` (cut, nothing else changed) with other constants; what the repair did; where those constants are."""
    subject, removed, repair = choice.subject, choice.removed, None
    pruned = rewrite(subject.analysis, removed) if subject.changed else bare
    if calibration is not None and settings.recover != "none":
        pruned, repair = choice.mended or repaired(
            subject.analysis, removed, pruned, calibration, settings, clock, subject.bypasses
        )
    refit = repair.changed if repair else ()
    if subject.changed:
        places = dict.fromkeys((*subject.changed, *refit))
        values = constants_at(subject.bare.model.beside(pruned), places)
        pruned, refit = with_constants(bare, values), tuple(p for p in places if p in values)
    return pruned, repair, refit
