"""Layers and nodes: what is bypassed, by measured damage; the model that is left is an ordinary one, and its channels are pruned as ever.

    original -> bypass (cut/bypass.py) -> repair -> analyse, calibrate, score, sense, allocate, rewrite -> repair -> tidy

Every damage is against the original's outputs, and every repair is fitted to the original's layers: those keep their names.

- `auto`: the channels alone are pruned to the target first. Then one bypass more is tried at a time, the most promising first, with the
  channels pruned to the same target; it is kept where the finished model's damage on held-out samples is the lowest so far, or clearly
  below that of the channels alone: fewer layers are faster at the same cost. Held-out samples are few, hence "clearly" (`CLEAR`).
- `only`: bypasses until the target is met.

Promising is what costs least damage, after a repair on some of the samples, for what it saves; measured anew after every bypass, as
damages do not add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import inf
from typing import TypeAlias

import numpy as np
import onnx

from onnxprune.analyse.observe import analysis_of
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Calibration
from onnxprune.choose.budget import Budget, flag_of
from onnxprune.choose.candidates import Candidate, candidates
from onnxprune.choose.channels import repaired
from onnxprune.choose.costs import CostModel
from onnxprune.choose.options import Options
from onnxprune.choose.sensitivity import Trials, judge
from onnxprune.choose.subject import Subject, deciding, with_model
from onnxprune.choose.tried import Tried
from onnxprune.clock import Clock
from onnxprune.cut.bypass import Bypass, Links, bypassed
from onnxprune.cut.resolution import Resolution
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import BadInputError, NothingPrunableError, TargetNotReachableError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import batch_of
from onnxprune.model.graph import name_of
from onnxprune.model.loaded import Model
from onnxprune.model.patch import constants_at, inputs_at, with_constants
from onnxprune.ops.linear import Floats
from onnxprune.repair.fits import Repair
from onnxprune.repair.least_squares import Repaired, compensate

TRIALS = 10  # finished models at most, ...
FAILURES = 3  # ... and so many in a row that did not help
LOOKED = 6  # candidates per round that are repaired to see their damage, ...
FITTED = 64  # ... on so many samples
TRIAL_MACS, LOOK_MACS = 3e9, 3e9  # fewer of both for models with more MACs per sample than this over them
TIE = 0.02  # damages that differ by less are equal: fewer layers are faster
CLEAR = 0.8  # of the damage of the channels alone
TAKEN, SPARED, BACK = "bypassed", "a later one made it needless", "the model is fast enough with it"
OVERSHOOT = 0.05  # of the cost
NEGLIGIBLE = 1e-5  # damage of a node that saves nothing but may go


@dataclass(frozen=True)
class Look:
    """One candidate that was looked at. damage: of the model with it (and all before it), None where it was not measured."""

    candidate: Candidate
    damage: float | None
    verdict: str

    @property
    def is_taken(self) -> bool:
        return self.verdict == TAKEN


Mended: TypeAlias = tuple[onnx.ModelProto, Repair | None]
"""A model that was cut and repaired, and what the repair did."""


@dataclass(frozen=True)
class Sized:
    """A resolution that was looked at.

    macs: share of the original's that is left at it, before channels go. damage: of the finished model on held-out samples. None where
    it was not made. verdict: what became of it.
    """

    resolution: Resolution
    macs: float | None
    damage: float | None
    verdict: str


@dataclass(frozen=True)
class Choice:
    """What was decided: the subject and what to remove of it; looks: the candidates, in order.

    baseline, damage: of the channels alone, and of what was chosen instead, on held-out samples.
    damages: by group id, what was measured of it alone after 0, 1, … steps; None where widths were decided without.
    tried: whole models that were made and judged before.
    sizes: resolutions that were looked at, in order; own_size: the damage without any, None where it was not measured.
    mended: the model, cut and repaired, where it was made to decide.
    """

    subject: Subject
    removed: Bools
    looks: tuple[Look, ...] = ()
    baseline: float | None = None
    damage: float = inf
    damages: Mapping[str, Floats] | None = None
    tried: tuple[Tried, ...] = ()
    sizes: tuple[Sized, ...] = ()
    own_size: float | None = None
    mended: Mended | None = field(default=None, repr=False)


def reduced(
    original: Subject, bypasses: Sequence[Bypass], settings: Options, clock: Clock, decides: bool = True
) -> Subject:
    """The original without what the bypasses make needless, repaired. `decides`: what deciding about channels needs is measured."""
    if not bypasses:
        return original
    model, basis = original.bare.model, original.analysis.model
    bare = analysis_of(
        replace(model, proto=bypassed(model.proto, bypasses)), settings.scope, original.bare.observation.feeds
    )
    costs = CostModel(bare, original.costs.timer)
    against = original.against
    if against is None:
        return Subject(tuple(bypasses), bare, bare, costs, None, None)
    proto = bypassed(basis.proto, bypasses)
    changed = original.changed
    if settings.recover != "none":
        mended = _fitted(original.analysis, proto, against, settings, bypasses, clock)
        proto, fitted = _in_place(model.beside(proto), mended)
        changed = tuple(dict.fromkeys((*inputs_at(proto, changed), *fitted)))
    analysis = with_model(bare, proto)
    against = replace(against, moments={})
    own = (
        calibrate(analysis, against.samples, against.judged, settings.seed, against.made_up, clock.share)
        if decides
        else against
    )
    against = replace(own, flat=against.flat, routing=against.routing, outputs=against.outputs, moments={})
    return Subject(tuple(bypasses), bare, analysis, costs, own, against, changed, original.mixed, original.blocks)


def _in_place(model: Model, fitted: Repaired) -> tuple[onnx.ModelProto, tuple[tuple[str, int], ...]]:
    """The bypassed model with its constants fitted, so that scores and widths are decided on a model that works.

    A constant that the model does not have yet would change what the analysis sees, and is left to the final repair.
    """
    changed = fitted.repair.changed
    names, now = (inputs_at(m, changed) for m in (model.proto, fitted.model))
    other = {node for (node, i), name in now.items() if names.get((node, i)) != name}
    kept = [p for p in changed if p[0] not in other]
    return with_constants(model.proto, constants_at(model.beside(fitted.model), kept)), tuple(kept)


def _fitted(
    analysis: Analysis,
    proto: onnx.ModelProto,
    against: Calibration,
    settings: Options,
    bypasses: Sequence[Bypass],
    clock: Clock,
) -> Repaired:
    """Nothing is cut: the tensors that are left have the shapes that the analysis of the original knows."""
    nothing = np.zeros(analysis.solution.count, bool)
    recover = settings.recover or "lsq"
    return compensate(
        analysis, nothing, proto, against, recover, seed=settings.seed, progress=clock.share, bypasses=bypasses
    )


# ---------------------------------------------------------------- deciding


def chosen(original: Subject, budget: Budget, settings: Options, clock: Clock, sensed: Trials | None = None) -> Choice:
    """What to bypass and what to remove of the rest. sensed: as `sense` takes trials. Raises `TargetNotReachableError`."""
    search = _Search(original, budget, settings, clock, sensed)
    return search.auto() if settings.depth == "auto" else search.only()


def finished(choice: Choice, settings: Options, clock: Clock) -> onnx.ModelProto:
    """What a choice makes of the original: cut, and repaired where weights may be changed. Not tidied."""
    return mended(choice, settings, clock)[0]


def mended(choice: Choice, settings: Options, clock: Clock) -> Mended:
    """The same, with what the repair did."""
    subject, removed = choice.subject, choice.removed
    cut = rewrite(subject.analysis, removed)
    if settings.recover == "none" or subject.against is None:
        return cut, None
    return repaired(subject.analysis, removed, cut, subject.against, settings, clock, subject.bypasses)


def damage_of(choice: Choice, original: Subject, settings: Options, clock: Clock) -> float:
    """Of the finished model on held-out samples; infinite where it does not run."""
    return judged_whole(choice, original, settings, clock).damage


def judged_whole(
    choice: Choice, original: Subject, settings: Options, clock: Clock, chosen: Sequence[int] | None = None
) -> Choice:
    """With the finished model, and its damage on held-out samples (or these runs); infinite where it does not run."""
    assert original.against is not None
    clock("compensate")
    try:
        made = mended(choice, settings, clock)
        damage = judge(original.against, original.bare.model.beside(made[0]), chosen=chosen)
    except BadInputError:
        return replace(choice, damage=inf)
    return replace(choice, damage=damage if np.isfinite(damage) else inf, mended=made)


def without_last(choice: Choice, original: Subject, settings: Options, clock: Clock) -> Choice | None:
    """With the layer back that went last, and all channels; None where it is the only one."""
    *taken, last = choice.subject.bypasses
    if not taken:
        return None
    subject = reduced(original, taken, settings, clock)
    looks = [replace(x, verdict=BACK) if x.is_taken and x.candidate.bypass == last else x for x in choice.looks]
    return replace(choice, subject=subject, removed=subject.nothing, looks=tuple(looks))


class _Search:
    def __init__(
        self, original: Subject, budget: Budget, settings: Options, clock: Clock, sensed: Trials | None
    ) -> None:
        assert original.against is not None
        self.original, self.budget, self.settings, self.clock = original, budget, settings, clock
        self.sensed = sensed
        self.against = original.against
        self.few = thinned(original.against)
        self.model = original.bare.model
        self.total = original.costs.of(budget.cost).total()
        self.share = budget.goal(self.total) / self.total if self.total else 1.0
        self.links = Links(original.bare)
        self.looks: list[Look] = []
        self.damages: Mapping[str, Floats] | None = None  # of the model whose widths were decided last
        macs = max(1, original.costs.macs() // batch_of(original.bare.feeds[0]))
        self.trials = int(min(TRIALS, max(FAILURES, TRIAL_MACS / macs)))
        self.looked = int(min(LOOKED, max(2, LOOK_MACS / macs)))
        clock("depth")
        free = _freedom(self.links, settings)
        self.pool = candidates(original.bare, original.costs, self.few, budget.cost, free)

    def auto(self) -> Choice:
        removed, alone = self._finished(self.original)
        choice = Choice(self.original, removed, baseline=alone, damages=self.damages)
        idle = self._idle()
        if idle:
            choice = self._tried(idle, choice, alone * (1 + TIE))
        least = min(alone, choice.damage)
        waiting = self._next(choice, least)
        trials = failures = 0
        while waiting and trials < self.trials and failures < FAILURES:
            candidate, damage = waiting.pop(0)
            trials += 1
            self.clock(f"depth, trial {trials} of at most {self.trials}")
            drops = [*choice.subject.bypasses, candidate.bypass]
            found = self._tried(drops, choice, max(least * (1 + TIE), alone * CLEAR))
            if found is choice and not np.isfinite(least):  # nothing gets there yet, and this brings it nearer
                found = replace(choice, subject=reduced(self.original, drops, self.settings, self.clock))
            if found is choice:
                failures += 1
                self._note(candidate, damage, "the finished model loses more than without")
                continue
            choice, failures = found, 0
            least = min(least, found.damage)
            alone = min(alone, found.damage / CLEAR) if not np.isfinite(alone) else alone  # they do not get there
            self._note(candidate, damage, TAKEN)
            waiting = self._next(choice, least)
        for candidate, damage in waiting:
            self._note(candidate, damage, "not tried: others came first")
        if not np.isfinite(least):
            self._decider(self.original, self.budget)(self.budget)  # says what holds the channels
            raise self._unreachable(())
        return replace(choice, looks=tuple(self.looks))

    def _next(self, choice: Choice, least: float) -> list[tuple[Candidate, float]]:
        """Candidates beside those that are gone. least: damage so far; where nothing gets there yet, layers alone may have to."""
        drops = choice.subject.bypasses
        return self._ranked(drops, 1 - self.share if np.isfinite(least) else self._enough(drops))

    def only(self) -> Choice:
        drops = self._idle()
        ranked: list[tuple[Candidate, float]] = []
        while self._saved(drops) < 1 - self.share:
            ranked = self._ranked(drops, self._enough(drops))
            if not ranked:
                raise self._unreachable(drops)
            candidate, damage = ranked.pop(0)
            drops = [*drops, candidate.bypass]
            self._note(candidate, damage, TAKEN)
        for candidate, damage in ranked:
            self._note(candidate, damage, "others lose less for what they save")
        needed = self._needed(drops)
        subject = reduced(self.original, needed, self.settings, self.clock, decides=False)
        looks = [
            x if x.candidate.bypass in needed or not x.is_taken else replace(x, verdict=SPARED) for x in self.looks
        ]
        return Choice(subject, subject.nothing, tuple(looks))

    # -- one model

    def _tried(self, drops: Sequence[Bypass], choice: Choice, most: float) -> Choice:
        """These bypasses with the channels pruned to the target, where the damage is not above `most`; else the choice as it was."""
        subject = reduced(self.original, drops, self.settings, self.clock)
        removed, damage = self._finished(subject)
        if not np.isfinite(damage) or damage > most:
            return choice
        return replace(choice, subject=subject, removed=removed, damage=damage, damages=self.damages)

    def _finished(self, subject: Subject) -> tuple[Bools, float]:
        """Channels pruned to the target, repaired: what went, and the damage; infinite where the target cannot be met."""
        nothing = subject.nothing
        assert subject.against is not None
        target = self._relative(subject)
        try:
            removed = nothing
            own = subject.costs.of(target.cost).total()
            if not own or target.goal(own) < own:
                removed = self._decider(subject, target)(target)
        except (TargetNotReachableError, NothingPrunableError):
            return nothing, inf
        return removed, damage_of(Choice(subject, removed), self.original, self.settings, self.clock)

    def _decider(self, subject: Subject, target: Budget) -> Callable[[Budget], Bools]:
        made = deciding(subject, target, self.settings, self.clock, self.sensed)
        self.damages = made.damages
        return made

    def _relative(self, subject: Subject) -> Budget:
        """The target, which is a share of the original's cost, as a share of the subject's."""
        if not self.total or self.budget.metric == "latency":
            return self.budget
        own = subject.costs.of(self.budget.cost).total()
        return Budget(self.budget.metric, min(1.0, self.budget.amount * self.total / max(own, 1)))

    # -- which one next

    def _idle(self) -> list[Bypass]:
        """Nodes that save nothing of the target's cost but change next to nothing."""
        drops: list[Bypass] = []
        for candidate in [c for c in self.pool if not c.saved]:
            damage = self._damage([*drops, candidate.bypass], repair=False)
            if damage <= NEGLIGIBLE:
                drops.append(candidate.bypass)
            self._note(candidate, damage, TAKEN if damage <= NEGLIGIBLE else "changes the outputs and saves nothing")
        return drops

    def _ranked(self, drops: Sequence[Bypass], most: float) -> list[tuple[Candidate, float]]:
        """Candidates that save more, and no more than `most` of the cost together, the least damage per saving first."""
        before = self._saved(drops)
        refused = {x.candidate.bypass for x in self.looks}
        found = []
        for candidate in self.pool:
            if candidate.saved and candidate.bypass not in refused:
                saved = self._saved([*drops, candidate.bypass])
                if before + 1e-9 < saved <= most + 1e-9:
                    found.append((candidate, saved - before))
        measured = []
        self.clock("depth")
        for k, (candidate, saving) in enumerate(found[: self.looked]):
            damage = self._damage([*drops, candidate.bypass], repair=self.settings.recover != "none")
            measured.append((damage / saving, k, candidate, damage))
        return [(c, damage) for _, _, c, damage in sorted(measured, key=lambda x: x[:2])]

    def _enough(self, drops: Sequence[Bypass]) -> float:
        """The share that need be saved: the least that meets the target with one more bypass, and a little.

        Damage has a ceiling: without this bound, dropping nearly everything would be the cheapest per saving.
        """
        shares = [self._saved([*drops, c.bypass]) for c in self.pool]
        return min((x for x in shares if x >= 1 - self.share), default=1.0) + OVERSHOOT

    def _damage(self, drops: list[Bypass], repair: bool) -> float:
        """On held-out samples, after a repair on a few; infinite where the model does not run."""
        proto = bypassed(self.original.analysis.model.proto, drops)
        try:
            if repair:
                silent = Clock(lambda stage: None)
                proto = _fitted(self.original.analysis, proto, self.few, self.settings, drops, silent).model
            damage = judge(self.against, self.model.beside(proto))
        except BadInputError:
            return inf
        return damage if np.isfinite(damage) else inf

    def _saved(self, drops: Sequence[Bypass]) -> float:
        """The share of the cost that goes with whole nodes."""
        return self.original.costs.of_nodes(self.budget.cost, self.links.gone(drops)) / (self.total or 1)

    def _needed(self, drops: list[Bypass]) -> list[Bypass]:
        """Without those that a later, larger one made needless."""
        for bypass in list(drops):
            fewer = [b for b in drops if b != bypass]
            if self._saved(fewer) >= 1 - self.share:
                drops = fewer
        return drops

    def _note(self, candidate: Candidate, damage: float | None, verdict: str) -> None:
        self.looks.append(Look(candidate, damage, verdict))

    def _unreachable(self, drops: Sequence[Bypass]) -> TargetNotReachableError:
        return TargetNotReachableError(
            f"{flag_of(self.budget.metric)} {self.budget.amount:g} cannot be reached with --depth {self.settings.depth}: at most down to "
            f"{1 - self._saved(drops):.3f} of the original by layers"
            ". Try a larger value" + (", or --depth auto." if self.settings.depth == "only" else ".")
        )


def thinned(calibration: Calibration) -> Calibration:
    """The same with no more than `FITTED` samples to fit on, and as many held out, spread evenly."""
    samples = calibration.samples
    chosen: list[int] = []
    for held in (False, True):
        own = [k for k, out in enumerate(samples.held) if out == held]
        portions = samples.portions(own)[:: max(1, round(samples.size(own) / FITTED))]
        chosen += [k for portion in portions for k in portion]
    outputs = [calibration.outputs[k] for k in sorted(chosen)]
    return replace(calibration, samples=samples.only(chosen), outputs=outputs)


def _freedom(links: Links, settings: Options) -> Callable[[frozenset[str]], bool]:
    """May these nodes go? None that the user excludes, and, with `include`, only nodes of the user's."""

    def named(key: str, globs: Sequence[str]) -> bool:
        node = links.nodes[key]
        names = [node.name, *(name_of(x) for x in (*node.inputs, *node.outputs) if x)]
        return any(fnmatchcase(n, g) for n in names for g in globs)

    def is_free(gone: frozenset[str]) -> bool:
        if any(named(key, settings.exclude) for key in gone):
            return False
        return not settings.include or all(named(key, settings.include) for key in gone)

    return is_free
