"""`--max-drop`: as few multiply-accumulates (or as little time) as a limit on the loss allows, with a promise: "with 90 % confidence the
loss is at most D".

Whoever takes the smallest model that passes on some samples takes the one that was lucky on them. So the candidates and their order are
fixed in advance: `SHARES` of the multiply-accumulates, from mild to bold. They are tested one after the other on samples that were set
aside at the start, which no step looks at else (`Samples.unseen`), until one fails; the last that passed is written. As each is tested
only if all before it passed, a model that loses more than the limit is written with a chance of 10 % at most, however many were tested
(fixed-sequence testing, "Learn then Test", arXiv 2110.01052). What a test is: `choose/risk.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import onnx

from onnxprune.analyse.sources import Aside
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.damage import NAMED, Outputs
from onnxprune.calibrate.metric import metric_of, score_of
from onnxprune.choose.budget import Budget
from onnxprune.choose.layers import Choice, chosen
from onnxprune.choose.options import Options
from onnxprune.choose.pace import Pacer
from onnxprune.choose.risk import CONFIDENCE, FEWEST, Bounds, Evidence, least
from onnxprune.choose.sensitivity import Trials
from onnxprune.choose.subject import Subject, deciding
from onnxprune.choose.trials import is_same
from onnxprune.choose.tried import Outcome, Tried
from onnxprune.clock import Clock
from onnxprune.errors import (
    BadInputError,
    NothingPrunableError,
    OnnxPruneError,
    TargetNotReachableError,
    WorkerLostError,
)
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.observation import Array
from onnxprune.ops.linear import Floats
from onnxprune.proof.verdict import Bolder, Drop

SHARES = (
    0.95,
    0.9,
    0.8,
    0.7,
    0.6,
    0.5,
    0.45,
    0.4,
    0.35,
    0.3,
    0.25,
    0.2,
    0.15,
    0.1,
    0.05,
)  # of the multiply-accumulates
LAYERS = SHARES[1:6] + SHARES[7::2]  # with --depth, where each takes long
MEMORY = 1 << 30  # bytes of the original's outputs that are kept
BOUNDS: dict[str, Bounds | None] = {"top1": (0.0, 1.0), "cosine": (0.0, 2.0), "kl": None}
SCORE: Bounds = (-1.0, 1.0)  # what a mean of scores from 0 to 1 may lose
LOSS: Bounds = (0.0, 1.0)  # the same where gains are not counted
SAME = 1e-6  # a mean of scores is a mean to rounding


def is_drop(budget: Budget | None) -> bool:
    return budget is not None and budget.metric == "max_drop"


def aside_for(budget: Budget, settings: Options) -> Aside:
    """What has to be set aside for a limit. Raises `BadInputError`, or `TargetNotReachableError` where no number of samples shows it."""
    if settings.data is None:
        raise BadInputError("--max-drop promises something about your own inputs: give some with --data.")
    what = f"--max-drop {budget.amount:g} ({settings.metric})"
    number = least(budget.amount, BOUNDS.get(settings.metric, SCORE), settings.metric == "top1")
    if number is None:
        raise TargetNotReachableError(
            f"{what} cannot be kept: no number of samples shows that so little is lost. Allow more."
        )
    return Aside(number, what)


@dataclass(frozen=True)
class Jury:
    """Who repairs candidates and judges them on the samples set aside. run: does that for several, in their order. width: so many are
    done side by side.
    """

    run: Callable[[Sequence[Choice]], list[Evidence]]
    width: int = 1


def boldest(
    original: Subject,
    budget: Budget,
    settings: Options,
    clock: Clock,
    jury: Jury,
    *,
    trials: Trials | None = None,
    pacer: Pacer | None = None,
) -> tuple[Choice, Bolder | None]:
    """The smallest model of the sequence that keeps to the limit, as do all before it; and what the first one that does not would need.

    trials: as `sense` takes them. pacer: makes them shares of the original's time instead. Raises `TargetNotReachableError` where the
    first one fails.
    """
    if original.calibration is None or original.calibration.samples.unseen is None:
        raise BadInputError("--max-drop needs calibration: leave out --recover none, or use --importance obs.")
    kind = original.calibration.samples.unseen.held_by
    decide = _decide(original, budget, settings, clock, trials) if pacer is None else _at_share(pacer)
    of = "MACs" if pacer is None else "time"
    best: Choice | None = None
    tried: list[Tried] = []
    # what is timed teaches the next decision, so that nothing may be timed that one process alone would not time
    width = jury.width if pacer is None else 1
    for share, choice, found in _judged(_candidates(decide, settings, clock, pacer), jury, width):
        is_kept = found.shows(budget.amount)
        tried.append(
            _tried(original, choice, f"{share:g} of the {of}", found.measured, settings.metric, is_kept, pacer)
        )
        if not is_kept:
            failed = Bolder(share, found.measured, found.needed(budget.amount), of)
            if best is None:
                raise _unkept(budget, settings, failed, found, kind)
            return _with(best, tried), failed
        best = choice
    if best is None:
        raise TargetNotReachableError("--cost latency: no model that was tried is faster than the original.")
    return _with(best, tried), None


def _candidates(
    decide: Callable[[Budget], Choice], settings: Options, clock: Clock, pacer: Pacer | None
) -> Iterator[tuple[float, Choice]]:
    """The sequence with its shares, without what is no smaller or no faster than what came before. Raises where there is none."""
    shares = SHARES if settings.depth == "off" else LAYERS
    last: Choice | None = None
    for k, share in enumerate(shares):
        clock("search")
        clock.share(k / len(shares))
        try:
            choice = decide(Budget("macs", share))
        except (TargetNotReachableError, NothingPrunableError):
            if last is None:
                raise
            return
        if last is not None and is_same(choice, last):
            continue
        if pacer is not None and not pacer.is_fastest(choice):
            continue
        last = choice
        yield share, choice


def _judged(
    candidates: Iterator[tuple[float, Choice]], jury: Jury, width: int
) -> Iterator[tuple[float, Choice, Evidence]]:
    """In their order, each with what it loses; `width` of them are judged side by side, before they are asked for."""
    while wave := list(islice(candidates, width)):
        listed = [choice for _, choice in wave]
        found: Iterable[Evidence]
        try:
            found = jury.run(listed)
        except WorkerLostError:
            raise
        except OnnxPruneError:
            if len(wave) == 1:
                raise
            found = (jury.run([one])[0] for one in listed)  # the one that fails may be one that is not asked for
        yield from ((share, choice, one) for (share, choice), one in zip(wave, found, strict=True))


def _tried(
    original: Subject, choice: Choice, asked: str, loss: float, metric: str, is_kept: bool, pacer: Pacer | None
) -> Tried:
    macs = choice.subject.costs.macs(choice.removed) / max(1, original.costs.macs())
    time = None if pacer is None else round(1 / pacer.trial_of(choice).speed.ratio, 4)
    outcome: Outcome = "passed" if is_kept else "failed"
    return Tried(asked, round(macs, 4), time, loss, metric, outcome)


def _with(best: Choice, tried: Sequence[Tried]) -> Choice:
    """best: the last of those that passed."""
    last = max(k for k, t in enumerate(tried) if t.outcome == "passed")
    return replace(best, tried=tuple(replace(t, outcome="chosen") if k == last else t for k, t in enumerate(tried)))


def _unkept(budget: Budget, settings: Options, failed: Bolder, found: Evidence, kind: str) -> TargetNotReachableError:
    more = "" if failed.needed is None else f", which about {failed.needed:,} would show"
    return TargetNotReachableError(
        f"--max-drop {budget.amount:g} ({settings.metric}) cannot be promised: at {failed.macs:g} of the {failed.of} the model loses "
        f"{found.measured:.4g} on the {found.sources:,} {kind}s set aside{more}. Allow more, or give more --data."
    )


def _at_share(pacer: Pacer) -> Callable[[Budget], Choice]:
    return lambda target: pacer.tried(target.amount * pacer.ms)


def _decide(
    original: Subject, budget: Budget, settings: Options, clock: Clock, trials: Trials | None
) -> Callable[[Budget], Choice]:
    if settings.depth != "off":
        return lambda target: chosen(original, target, settings, clock, trials)
    own = deciding(original, budget, settings, clock, trials)
    return lambda target: Choice(original, own(target), damages=own.damages)


def audited(
    analysis: Analysis,
    calibration: Calibration,
    model: onnx.ModelProto,
    budget: Budget,
    settings: Options,
    bolder: Bolder | None,
) -> Drop:
    """What the finished model loses on the samples set aside. Raises `TargetNotReachableError` where it does not keep to the limit.

    analysis: of the original. model: as it is written.
    """
    audit = Audit(analysis, calibration, budget, settings)
    found, limit = audit(model), budget.amount
    if not found.shows(limit):
        raise TargetNotReachableError(
            f"--max-drop {limit:g} ({settings.metric}) was not kept: the finished model loses {found.measured:.4g} on the "
            f"{found.sources:,} {audit.kind}s set aside. Allow more, or give more --data."
        )
    return Drop(
        metric=settings.metric,
        allowed=limit,
        measured=found.measured,
        samples=audit.samples.count,
        sources=found.sources,
        held_by=audit.samples.held_by,
        confidence=CONFIDENCE,
        is_approximate=found.bounds is None,
        half_needs=found.needed(limit / 2),
        bolder=bolder,
    )


def _may_gain(name: str, calibration: Calibration, limit: float) -> bool:
    """Is the original wrong on more of the other samples than may be lost? Else a gain makes up for next to nothing, and losses alone,
    which are 0 or 1 where scores are, show the limit with fewer samples.
    """
    own = calibration.samples.own
    score = score_of(name, calibration, own)([calibration.outputs[k] for k in own])
    return not 1 - score <= limit


class Audit:
    """Judges models on the samples set aside: what is lost, source by source where that makes sense."""

    def __init__(self, analysis: Analysis, calibration: Calibration, budget: Budget, settings: Options) -> None:
        samples = calibration.samples.unseen
        assert samples is not None
        self.samples, self.kind, self.name = samples, samples.held_by, settings.metric
        self.analysis, self.own = analysis, replace(calibration, samples=samples, outputs=[])
        self.answers = calibration.judged.session(analysis.model)
        self.kept: list[list[Array]] = []
        room = MEMORY
        for feeds in samples.feeds:
            self.kept.append(self.answers(feeds))
            room -= sum(a.nbytes for a in self.kept[-1])
            if room < 0:
                break
        of = np.asarray(samples.source_of)
        self.portions = [np.flatnonzero(of == k).tolist() for k in range(int(of.max()) + 1)]
        self.counts_gains = self.name not in NAMED and _may_gain(self.name, calibration, budget.amount)

    def __call__(self, model: onnx.ModelProto) -> Evidence:
        answers = self.own.judged.session(self.analysis.model.beside(model), "the pruned model")
        if self.name in NAMED:
            return self._named(answers)
        return self._scored(answers)

    def _reference(self, portions: list[int]) -> list[list[Array]]:
        feeds = self.samples.feeds
        return [self.kept[k] if k < len(self.kept) else self.answers(feeds[k]) for k in portions]

    def _named(self, answers: Callable[[dict[str, Array]], list[Array]]) -> Evidence:
        bounds = BOUNDS[self.name]
        if bounds is None:
            return self._whole([answers(f) for f in self.samples.feeds])
        metric = metric_of(self.name, self.own, [])
        each = np.array(
            [metric(self._reference(some), [answers(self.samples.feeds[k]) for k in some]) for some in self.portions]
        )
        return Evidence(each.astype(np.float64), bounds, float(each.mean()), len(each))

    def _scored(self, answers: Callable[[dict[str, Array]], list[Array]]) -> Evidence:
        """By a score of the user's: source by source where it is a mean of scores from 0 to 1, else as a whole."""
        found = [answers(f) for f in self.samples.feeds]
        reference = self._reference(list(range(len(found))))
        before, after = self._each(reference), self._each(found)
        if before is None or after is None:
            return self._whole(found)
        lost = before - after
        if not self.counts_gains:
            return Evidence(np.maximum(lost, 0.0), LOSS, float(lost.mean()), len(lost))
        return Evidence(lost, SCORE, float(lost.mean()), len(lost))

    def _each(self, outputs: Outputs) -> Floats | None:
        """The score of each source; None where it is no mean of these, or not always from 0 to 1."""
        sizes = [sum(self.samples.sizes[k] for k in some) for some in self.portions]
        whole = score_of(self.name, self.own, self.samples.own)(outputs)
        try:
            scores = [score_of(self.name, self.own, some)([outputs[k] for k in some]) for some in self.portions]
        except BadInputError:
            return None  # it needs more than one
        mean = np.average(scores, weights=sizes)
        is_mean = np.isfinite(whole) and abs(mean - whole) <= SAME * max(1.0, abs(whole))
        return np.array(scores) if is_mean and min(scores) >= 0 and max(scores) <= 1 else None

    def _whole(self, found: Outputs) -> Evidence:
        """By a metric of all samples together, and of all but one of `FEWEST` groups of sources in turn."""
        reference = self._reference(self.samples.own)

        def loss(some: list[int]) -> float:
            metric = metric_of(self.name, self.own, some)
            return metric([reference[k] for k in some], [found[k] for k in some])

        everything = loss(self.samples.own)
        if not np.isfinite(everything):
            return Evidence(np.zeros(FEWEST), None, everything, len(self.portions))
        groups = [[k for some in self.portions[g::FEWEST] for k in some] for g in range(FEWEST)]
        without = np.array([loss(sorted({*self.samples.own} - {*group})) for group in groups])
        each = FEWEST * everything - (FEWEST - 1) * without
        return Evidence(each, None, everything, len(self.portions))
