"""What to remove: calibration, scores, measured damages and allocation, put together; and the repair that is part of the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, prod

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.analyse import feeds as feeding
from onnxprune.analyse.freed import freed
from onnxprune.analyse.ranges import in_range
from onnxprune.analyse.roles import roles
from onnxprune.analyse.runs import between, growth, taking
from onnxprune.analyse.samples import Samples
from onnxprune.analyse.sources import BY_SAMPLE, Aside
from onnxprune.analyse.synthesize import COUNT, synthesize
from onnxprune.calibrate.answers import measures
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.judging import judged_by
from onnxprune.choose.allocate import allocate
from onnxprune.choose.budget import AUTO, Budget
from onnxprune.choose.costs import CostModel
from onnxprune.choose.importance import Ordering, importance_of, scores_of
from onnxprune.choose.keep_axes import Scores
from onnxprune.choose.options import Options
from onnxprune.choose.order import Order
from onnxprune.choose.sensitivity import Trials, cautious, judged, sense
from onnxprune.choose.surgeon import ranked
from onnxprune.clock import Clock
from onnxprune.cut.bypass import Bypass
from onnxprune.cut.plan import units_removed
from onnxprune.cut.resolution import Mark
from onnxprune.errors import TargetNotReachableError
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Feeds, batch_of
from onnxprune.model.loaded import Model
from onnxprune.repair.fits import Repair
from onnxprune.repair.least_squares import compensate

AUGMENTED = 256  # samples to fit on, the made ones included, ...
AUGMENTED_MACS = 4e11  # ... as long as running them once takes no more than this
ALL_MACS = 1e12  # all samples of the user's are used, as long as running them once takes no more than this, ...
ALL_ROOM = (
    1 << 33
)  # ... and what lies between the layers of all of them so many bytes (what is not in memory is in a temporary folder), ...
ALL_OUTPUTS = 1 << 30  # ... and what the model gives for them, which is kept, so many


def calibrated(
    analysis: Analysis, settings: Options, costs: CostModel, clock: Clock, aside: Aside | None = None
) -> Calibration | None:
    """Samples of the user's, or made up, and what the original does with them; None where nothing asks for it.

    aside: set some apart that no step looks at until finished models are judged (`choose/max_drop.py`).
    """
    needs = importance_of(settings.importance).needs_calibration
    if settings.recover == "none" and not needs and settings.then_quantize is None and not settings.tunes:
        return None
    samples = samples_for(analysis, settings, costs, settings.data is not None, aside=aside)
    states = [after for _, after in freed(analysis.model.proto, settings.free).pairs]
    judged = judged_by(analysis.model, keeps_size(analysis), settings.judge, leads=True, states=states)
    return calibrate(analysis, samples, judged, settings.seed, settings.data is None, clock.share)


def keeps_size(analysis: Analysis) -> Callable[[str], bool]:
    """Can a tensor lose nothing, whatever is removed?"""
    free = np.zeros(analysis.solution.count, bool)
    for group in analysis.groups:
        free[group.classes] |= group.removable > 0
    gone = analysis.solution.of_units(free)
    return lambda name: not any(gone[facet].any() for facet in analysis.maps.get(name, ()))


def samples_for(
    analysis: Analysis,
    settings: Options,
    costs: CostModel,
    augmented: bool,
    made_up: int = COUNT,
    aside: Aside | None = None,
) -> Samples:
    """The user's inputs, else made-up ones. augmented: patch more from them, where weights are fitted to few."""
    inputs = runtime.graph_inputs(analysis.model.proto)
    given = (
        feeding.load_data(settings.data, inputs, labels=True)
        if settings.data
        else in_range(analysis, synthesize(analysis.feeds[0], inputs, settings.seed, made_up, roles(analysis)))
    )
    macs = costs.macs() / batch_of(analysis.feeds[0])
    wanted = int(min(AUGMENTED, AUGMENTED_MACS / max(macs, 1))) if augmented else 0
    session = runtime.Session(analysis.model)
    sources = feeding.sources_of(settings.data, inputs) if settings.data else BY_SAMPLE
    return feeding.samples_of(
        given,
        inputs,
        settings.samples,
        wanted,
        settings.seed,
        session,
        aside,
        sources=sources,
        taking=taking(analysis),
        share=share_of_all(analysis, costs, given),
    )


def share_of_all(analysis: Analysis, costs: CostModel, given: Sequence[Feeds]) -> float:
    """Which share of the user's samples is used where nothing is said: all, as far as time, room and memory allow."""
    much = sum(growth(analysis, f) for f in given)
    shapes = analysis.observation.shapes
    outputs = sum(4 * prod(shapes.get(o.name, ())) for o in analysis.model.proto.graph.output)
    each = ((ALL_MACS, costs.macs()), (ALL_ROOM, between(analysis)), (ALL_OUTPUTS, outputs))
    return min(1.0, *(most / max(1.0, much * one) for most, one in each))


class Decider:
    """What to remove, as a function of the target.

    damages: per group id, `[steps + 1]`, as `allocate` takes them; None without calibration.
    """

    def __init__(
        self,
        analysis: Analysis,
        settings: Options,
        costs: CostModel,
        scores: Scores,
        orders: Mapping[str, Order] | None,
        damages: Mapping[str, Scores] | None,
    ) -> None:
        self.analysis, self.settings, self.costs = analysis, settings, costs
        self.scores, self.orders, self.damages = scores, orders, damages

    def __call__(self, target: Budget, round_to: int | None = None) -> Bools:
        """round_to: where the options give none; by default `AUTO`."""
        first = (AUTO if round_to is None else round_to) if self.settings.round_to is None else self.settings.round_to
        cost = None if target.metric == "ratio" else self.costs.of(target.cost)
        for finer in (first, 1):  # rounding is a default, the target is not
            try:
                return allocate(self.analysis, self.scores, target, finer, cost, self.orders, self.damages).removed
            except TargetNotReachableError:
                if round_to is not None or self.settings.round_to is not None or finer == 1:
                    raise
        raise AssertionError

    def damage(self, removed: Bools) -> float | None:
        """What was measured of each group alone, added up; None without calibration."""
        if self.damages is None:
            return None
        pruned = [g for g in self.analysis.groups if g.removable]
        return float(sum(self.damages[g.id][units_removed(g, removed)] for g in pruned))


def decider(
    analysis: Analysis,
    calibration: Calibration | None,
    budget: Budget,
    settings: Options,
    costs: CostModel,
    clock: Clock,
    *,
    trials: Trials | None = None,
    mark: Mark = ((), None),
) -> Decider:
    """Measures, once, everything that deciding needs. trials, mark: as `sense` takes them."""
    importance = importance_of(settings.importance)
    scores = scores_of(importance, analysis, calibration, settings.seed)
    orders = damages = None
    if calibration is not None:
        orders = (
            importance.orders(analysis, calibration, scores, clock.share)
            if isinstance(importance, Ordering)
            else ranked(analysis, scores)
        )
        if budget.metric != "ratio" and calibration.judged.tensors:
            clock("sense")
            damages = sense(analysis, calibration, orders, costs, progress=clock.share, trials=trials, mark=mark)
            damages = cautious(damages) if calibration.made_up else damages
    clock("allocate")
    return Decider(analysis, settings, costs, scores, orders, damages)


def repaired(
    analysis: Analysis,
    removed: Bools,
    cut: onnx.ModelProto,
    calibration: Calibration,
    settings: Options,
    clock: Clock,
    bypasses: Sequence[Bypass] = (),
) -> tuple[onnx.ModelProto, Repair]:
    """The repaired model: fitted weights and biases; where those do not help on held-out samples, biases alone; else the cut model.

    A repair helps where outputs come nearer to the original's, or where the classes that differ are halved: of few samples, one sure
    mistake weighs more in a divergence than a model that knows nothing.
    """
    tried: list[Repair] = []
    before: tuple[float, float] | None = None
    for recover in ("lsq", "bias") if settings.recover in (None, "lsq") else (settings.recover,):
        found = compensate(
            analysis, removed, cut, calibration, recover, seed=settings.seed, progress=clock.share, bypasses=bypasses
        )
        if not calibration.judged.tensors:  # each layer was fitted better on held-out samples, and more is not known
            return found.model, found.repair
        before = _apart(calibration, analysis.model.beside(cut)) if before is None else before
        after = _apart(calibration, analysis.model.beside(found.model))
        if after[0] < before[0] or (isfinite(after[0]) and after[1] < before[1] / 2):
            return found.model, replace(found.repair, before=before[0], after=after[0])
        tried.append(found.repair)
    assert before is not None
    return cut, replace(tried[0], changed=(), before=before[0], after=before[0])


def _apart(calibration: Calibration, model: Model) -> tuple[float, float]:
    """Divergence on held-out samples, and the share of other classes; 0 of these where there are none."""
    by = measures(calibration.judged, calibration.outputs)
    found = dict(zip(by, judged(calibration, model, [(m, None) for m in by.values()]), strict=True))
    return found["divergence"], found.get("classes", 0.0)
