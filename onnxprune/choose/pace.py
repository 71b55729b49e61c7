"""A model as fast as was asked for: widths (and layers) by the table of times, then the whole model measured, until both agree.

    table -> decide -> rewrite -> time the whole model, in turn with the original -> correct -> decide -> …

Sums of small graphs are not the time of a model: what runs between them is left out, their ends count twice. So every model that is timed
teaches the sum (`choose/timer.py`), and the next round aims at what is still missing. Times do not depend on weights: nothing is repaired
on the way, and scores and damages are measured once.

A width that suits a layer alone may cost its neighbours, as tensors are laid out in blocks of channels from one layer to the next. So the
first model has widths that suit blocks (`AUTO`), and others challenge it: any widths, and those that a target of multiply-accumulates
would take. One that is as fast in the whole model with less damage takes its place.

Layers come last (`--depth auto`): only then it is known what the table leaves out, such as the fixed part of a node, which goes with a
layer but not with channels. The layers that are worth it at the time that widths were found to need challenge them, finished and repaired,
and so does the same model with one after the other of these layers back and fewer channels instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from statistics import median

import onnx

from onnxprune import runtime
from onnxprune.choose.budget import AUTO, Budget, flag_of
from onnxprune.choose.challenge import Ask, Expected, challenged
from onnxprune.choose.channels import Decider
from onnxprune.choose.group_times import Pace, savings, time_curves
from onnxprune.choose.layers import CLEAR, Choice, Look, Sized, chosen, damage_of, without_last
from onnxprune.choose.options import Options
from onnxprune.choose.resolutions import best_of, coarser, judged_by_own, possible
from onnxprune.choose.sensitivity import Trials as Sensed
from onnxprune.choose.subject import Subject, deciding
from onnxprune.choose.trials import TOLERANCE, Between, Trial, is_same, least_harm, tried_models, unreachable
from onnxprune.clock import Clock
from onnxprune.cut.resolution import Resolution
from onnxprune.errors import NothingPrunableError, TargetNotReachableError
from onnxprune.groups.classes import Bools

AIM = 0.98  # of the time asked for
ROUNDS, DECISIONS = 8, 16  # models that are timed, and decisions (which may repeat one), at most
REPEATS, SECONDS = 30, 6.0  # of the original and a model in turn
LOOKS = 6  # decisions with times measured at the widths of the one before
COARSER = "at the same time, a coarser picture does as well"
NO_LAYERS = "at the same time, a model with all layers loses less"
NOTICEABLE = 0.01  # change of the expected time by measured ones that is worth another decision

Made = Callable[[Choice], onnx.ModelProto]
"""What a choice is written as, but for the values of weights."""


def paced(
    original: Subject,
    budget: Budget,
    settings: Options,
    clock: Clock,
    made: Made,
    *,
    is_quantized: bool = False,
    known: Decider | None = None,
    sensed: Sensed | None = None,
) -> tuple[Choice, Pace]:
    """The choice that is as fast as asked, at the least damage found. is_quantized: `made` quantizes.

    known: damages of the original's groups, where they have been measured. sensed: as `sense` takes trials.

    Raises `TargetNotReachableError` with how far it gets, and `NothingPrunableError`.
    """
    with ExitStack() as stack:
        pacer = Pacer(original, budget, settings, clock, made, stack, sensed)
        pacer.known = known
        best = pacer.search(is_quantized)
        looks = pacer.looks or best.choice.looks
        tried = tried_models(pacer.trials, best, original.costs.macs())
        sizes, own_size = pacer.sizes
        return replace(best.choice, tried=tried, looks=looks, sizes=sizes, own_size=own_size), pacer.pace(best)


class Pacer:
    """Times whole models against the original, and decides by what they teach. stack: closes the original at the end. sensed: as `sense`
    takes trials.
    """

    def __init__(
        self,
        original: Subject,
        budget: Budget,
        settings: Options,
        clock: Clock,
        made: Made,
        stack: ExitStack,
        sensed: Sensed | None = None,
    ) -> None:
        timer = original.costs.timer
        assert timer is not None, "a target of time needs a timer"
        self.original, self.settings, self.clock, self.made, self.timer = original, settings, clock, made, timer
        self.flag = f"{flag_of(budget.metric)} {budget.amount:g}"
        self.model = original.bare.model
        self.feeds = runtime.with_batch(self.model.proto, original.bare.feeds[0], timer.batch)
        clock("time layers")
        timer.share = clock.share
        self.table = original.costs.times
        timer.share = lambda done: None
        self.opened = runtime.opened(timer.runner, self.model, self.feeds, "the original")
        stack.callback(self.opened.close)
        self.ms = median(runtime.in_turn([self.opened], REPEATS, timer.warmup, SECONDS / 2)[0].rounds)
        self.learned = [(self.table.total(None), self.ms)]
        timer.learn(self.learned)
        self.round_to = AUTO
        self.goal = budget.goal(self.ms)
        self.in_ms = budget.metric == "latency"
        self.trials: list[Trial] = []
        self.sensed = sensed
        self.refused: TargetNotReachableError | None = None  # by the table, where it knew no fast enough widths
        self.expected: float | None = None  # milliseconds of the first choice, before whole models corrected the table
        self.known: Decider | None = None  # of the original
        self.looks: tuple[Look, ...] = ()  # at layers
        self.subject = original  # whose widths are decided
        self.sizes: tuple[tuple[Sized, ...], float | None] = ((), None)  # resolutions that were looked at, see `Choice`
        self._decide: Callable[[Budget, int], Choice] | None = None
        self._damage: Callable[[Choice], float | None] = lambda choice: None

    # -- one whole model

    def measured(self, choice: Choice, known: Trial | None = None) -> Trial:
        """A choice, timed in turn with the original. known: the same choice as it was timed before; rounds of both count."""
        self.clock("time the model")
        model = self.model.beside(self.made(choice))
        other = runtime.opened(self.timer.runner, model, self.feeds, "the pruned model")
        try:
            before, after = runtime.in_turn([self.opened, other], REPEATS, self.timer.warmup, SECONDS, self.clock.share)
        finally:
            other.close()
        rounds = (before.rounds, after.rounds)
        if known is not None:
            rounds = (known.rounds[0] + rounds[0], known.rounds[1] + rounds[1])
            self.trials.remove(known)
        speed = runtime.speedup(*rounds)
        costs, removed = choice.subject.costs, choice.removed
        total = costs.times.total(removed)
        expected = costs.of("latency").total(removed) if known is None else known.expected
        taken = median(rounds[1]) if self.in_ms else self.ms / speed.ratio
        trial = Trial(choice, total, expected, speed, taken / self.goal, rounds, self._damage(choice))
        self.trials.append(trial)
        return trial

    def learn(self, trial: Trial, factor: float) -> None:
        """factor: of what is done to a model beside the removal (quantization)."""
        self.learned.append((trial.total, self.ms / trial.speed.ratio / factor))
        self.timer.learn(self.learned)

    def _known(self, choice: Choice) -> Trial | None:
        """A choice as it was timed; None where it was not."""
        return next((t for t in self.trials if is_same(t.choice, choice)), None)

    def is_fastest(self, choice: Choice) -> bool:
        """Of the choices that were timed, is it the fastest, and faster than the original?"""
        own = self._known(choice)
        assert own is not None
        return own.speed.ratio > 1 and own.speed.ratio >= max(t.speed.ratio for t in self.trials)

    def trial_of(self, choice: Choice) -> Trial:
        """A choice as it was timed; now, where it was not."""
        return self._known(choice) or self.measured(choice)

    # -- deciding

    def tried(self, ms: float) -> Choice:
        """`decide`, with the model that it makes timed once, for what follows."""
        if self._decide is None and self.settings.depth == "auto":
            self._decide = self._of(
                chosen(self.original, Budget("latency", ms), self.settings, self.clock, self.sensed)
            )
        try:
            choice = self.decide(ms)
        except TargetNotReachableError:
            if self.round_to == 1:
                raise
            self.round_to = 1
            choice = self.decide(ms)
        if self._known(choice) is None:
            self.learn(self.measured(choice), 1.0)
        return choice

    def decide(self, ms: float) -> Choice:
        """What the table expects to take so long; where it was not sure, measured there and decided again."""
        target = Budget("latency", max(ms, 1e-6))
        choice = self._first(target)
        for _ in range(LOOKS):
            before = choice.subject.costs.of("latency").total(choice.removed)
            self.clock("time layers")
            if not choice.subject.costs.times.exact(choice.removed):
                break
            after = choice.subject.costs.of("latency").total(choice.removed)
            if abs(after - before) <= NOTICEABLE * before:
                break
            if self._decide is not None:  # layers that were chosen stay so: to try others, whole models are repaired
                choice = self._decide(target, self.round_to)
        return choice

    def _first(self, target: Budget) -> Choice:
        self.clock("allocate")
        if self._decide is not None:
            return self._decide(target, self.round_to)
        if self.settings.depth == "only":
            return chosen(self.original, target, self.settings, self.clock, self.sensed)
        self._decide = self._of(Choice(self.original, self.original.nothing))
        return self._decide(target, self.round_to)

    def _of(self, choice: Choice) -> Callable[[Budget, int], Choice]:
        subject = self.subject = choice.subject
        if not any(g.removable for g in subject.analysis.groups):
            return lambda target, round_to: choice
        latency = Budget("latency", 1.0)
        own = self.known if subject is self.original else None
        if own is None:
            own = deciding(subject, latency, self.settings, self.clock, self.sensed)
        nothing = subject.nothing
        self._damage = lambda found: own.damage(found.removed) if found.subject is subject else None

        def decide(target: Budget, round_to: int) -> Choice:
            total = subject.costs.of(target.cost).total()
            removed = nothing if target.goal(total) >= total else own(target, round_to)
            return replace(choice, removed=removed, damages=own.damages)

        return decide

    # -- the rounds

    def search(self, is_quantized: bool = False) -> Trial:
        whole, factor = Choice(self.original, self.original.nothing), 1.0
        if is_quantized or self.goal >= self.ms:
            trial = self.measured(whole)
            factor = trial.speed.ratio**-1 if is_quantized else 1.0
            if trial.excess <= 1 + TOLERANCE and (self.goal >= self.ms or trial.is_fast):
                return trial  # fast enough as it is
        best = self._by_widths(factor)
        if self.settings.depth == "auto":
            best = self._by_layers(best, factor)
        if self.settings.resolution == "auto":
            best = self._by_resolution(best, factor)
        if best is None and self.refused is not None and not self.trials:
            raise self.refused
        if best is None:
            raise self._unreachable(min(self.trials, key=lambda t: t.excess), str(self.refused or ""))
        return best

    def _by_widths(self, factor: float) -> Trial | None:
        """Of the subject as it is; None where no widths are fast enough."""
        self.round_to = AUTO
        best = self._rounds(factor)
        if best is None:  # in blocks there is none
            self.round_to = 1
            best = self._rounds(factor)
        if best is not None:
            for ask, mildest in self._challengers(best):
                best = challenged(best, self._expected(ask), mildest, self.measured, self._known)
        return best

    def _by_layers(self, best: Trial | None, factor: float) -> Trial | None:
        """The best, or a model without some layers that loses less. The last ones come back, as long as that loses less or they saved too
        much: the table does not know all that goes with them.
        """
        ms = self.goal / factor if best is None else self.timer.fit(best.total)
        met, marks = list[tuple[float, Trial, tuple[Look, ...]]](), {self.subject.mark}
        choice, found = None, None
        for _ in range(LOOKS):  # a model that is too slow teaches what the table says of one that is not
            try:
                choice = chosen(self.original, Budget("latency", ms), self.settings, self.clock, self.sensed)
            except (TargetNotReachableError, NothingPrunableError):
                break
            self.looks = choice.looks
            if choice.subject.mark in marks:
                break
            marks.add(choice.subject.mark)
            found = self._with_widths(choice, factor)
            if found is not None or best is not None:
                break
        while choice is not None and found is not None and len(met) < LOOKS:
            lost = self._lost(found)
            met.append((lost, found, choice.looks))
            if found.excess >= 1 - TOLERANCE and lost > min(m[0] for m in met):
                break
            choice = without_last(choice, self.original, self.settings, self.clock)
            found = None if choice is None else self._with_widths(choice, factor)
        if not met:
            return best
        lost, found, self.looks = min(met, key=lambda m: m[0])
        if best is None or lost <= self._lost(best):
            return found
        self.looks = tuple(replace(x, verdict=NO_LAYERS) if x.is_taken else x for x in self.looks)
        return best

    def _with_widths(self, choice: Choice, factor: float) -> Trial | None:
        """What is left of a choice, as fast as asked; None where no widths are."""
        self._decide = self._of(choice)
        return self._by_widths(factor)

    def _lost(self, trial: Trial) -> float:
        """Of the finished model; one that is faster than asked has to lose clearly less."""
        lost = damage_of(trial.choice, self.original, self.settings, self.clock)
        return lost if trial.excess >= 1 - TOLERANCE else lost / CLEAR

    def _by_resolution(self, best: Trial | None, factor: float) -> Trial | None:
        """The best, or a model that works on a coarser picture and loses no more."""
        found = list(possible(self.original, self.goal / factor / self.ms))
        if not found:
            return best
        trials: dict[Resolution, Trial] = {}

        def tried(resolution: Resolution) -> Choice:
            subject = coarser(self.original, resolution, self.settings, self.clock)
            trial = self._with_widths(Choice(subject, subject.nothing), factor)
            if trial is None:
                raise self._unreachable(min(self.trials, key=lambda t: t.excess), "")
            trials[resolution] = trial
            return judged_by_own(trial.choice, self.original, self.settings, self.clock)

        alone = Choice(self.original, self.original.nothing)  # of infinite damage
        if best is not None:
            alone = judged_by_own(best.choice, self.original, self.settings, self.clock)
        choice = best_of(alone, found, tried, self.clock)
        self.sizes = choice.sizes, choice.own_size
        if choice.subject.resolution is None:
            return best
        self.looks = tuple(replace(x, verdict=COARSER) if x.is_taken else x for x in self.looks)
        return trials[choice.subject.resolution]

    def _expected(self, ask: Ask) -> Expected:
        """A choice by a share, with the damage that is expected of it; None where there is none."""

        def expected(share: float) -> tuple[Choice, float] | None:
            self.clock("allocate")
            try:
                choice = ask(share)
            except (TargetNotReachableError, NothingPrunableError):
                return None
            damage = self._damage(choice)
            return None if damage is None else (choice, damage)

        return expected

    def _rounds(self, factor: float) -> Trial | None:
        """A model as fast as asked; None where there is none. factor: of what quantization does to the time."""
        between = Between()
        aim = self.timer.fit.total(AIM * self.goal / factor)
        for tried in range(DECISIONS):
            try:
                choice = self.decide(self.timer.fit(aim))
            except TargetNotReachableError as problem:
                return self._narrowest(problem)
            known = self._known(choice)
            if known is None and tried >= ROUNDS:
                break
            trial = known or self.measured(choice)
            self.expected = self.expected or trial.expected * factor
            if known is None and trial.is_met:  # once more: of many that are nearly so fast, one is lucky
                trial = self.measured(choice, trial)
            if trial.is_met:
                return trial
            if known is None:
                self.learn(trial, factor)
            between.add(aim if known is not None else trial.total, trial.is_fast)
            expected = self.timer.fit(trial.total)
            aim = between.nearest(self.timer.fit.total(AIM * expected / trial.excess))
            if between.is_closed:
                break
        return self._best()

    def _best(self) -> Trial | None:
        met = [t for t in self.trials if t.is_fast and t.choice.subject.mark == self.subject.mark]
        return least_harm(met) if met else None

    # -- challengers

    def _challengers(self, best: Trial) -> Iterator[tuple[Ask, float]]:
        """Other ways to choose widths, by a share of which less is bolder, and the mildest share."""
        decide = self._decide
        if decide is None or best.damage is None or self.timer.runner.warms_up:
            return
        ms, cost = self.timer.fit(best.total), best.choice.subject.costs
        own, all_macs = cost.macs(), max(1, self.original.costs.macs())
        if self.settings.round_to is None and self.round_to != 1:
            yield lambda share: decide(Budget("latency", max(share * ms, 1e-6)), 1), 2.0
        if own:
            yield lambda share: decide(Budget("macs", min(1.0, share * all_macs / own)), AUTO), own / all_macs

    def _narrowest(self, problem: TargetNotReachableError) -> Trial | None:
        """Where the table knows no widths that are fast enough: the fastest, measured, unless something that is was measured before."""
        if (best := self._best()) is not None:
            return best
        for _ in range(LOOKS):  # what was expected to be fastest may prove slower where it is measured
            if problem.reached is None:
                break
            try:
                trial = self.measured(self.decide(problem.reached * (1 + 1e-6)))
            except TargetNotReachableError as again:
                problem = again
                continue
            if trial.is_fast:
                return trial
            break
        self.refused = problem
        return None

    def _unreachable(self, trial: Trial, problem: str) -> TargetNotReachableError:
        ways = ("Ask for less", "try --depth auto")[: 1 + (self.settings.depth == "off")]
        return unreachable(self.flag, trial, problem, self.ms, self.timer, ways)

    # -- what is told

    def pace(self, best: Trial) -> Pace:
        choice, costs, removed = best.choice, best.choice.subject.costs, best.choice.removed
        return Pace(
            asked=round(self.ms / self.goal, 4),
            expected=round(self.ms / max(self.expected or best.expected, 1e-9), 4),
            measured=round(best.speed.ratio, 4),
            interval=(round(best.speed.low, 4), round(best.speed.high, 4)),
            runner=self.timer.runner.name,
            rounds=len(self.trials),
            graphs=(self.timer.measured, self.timer.found),
            seconds=round(self.timer.spent, 3),
            groups=savings(costs, removed, None if choice.subject.bypasses else partial(self._slower, choice)),
            curves=time_curves(costs, removed),
        )

    def _slower(self, choice: Choice, removed: Bools) -> float:
        """Milliseconds by which less removed makes the model slower, timed in turn."""
        models = [self.model.beside(self.made(replace(choice, removed=r))) for r in (removed, choice.removed)]
        with runtime.opened_all(self.timer.runner, models, self.feeds) as opened:
            more, less = runtime.in_turn(opened, REPEATS // 2, self.timer.warmup, SECONDS / 6)
        return median(a - b for a, b in zip(more.rounds, less.rounds, strict=True))
