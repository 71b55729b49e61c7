"""What to remove: calibration, scores, measured damages and allocation, put together; and the repair that is part of the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import onnx

from onnxprune import runtime
from onnxprune.clock import Clock
from onnxprune.core.analysis import Analysis
from onnxprune.core.budget import AUTO, Budget
from onnxprune.core.bypass import Bypass
from onnxprune.core.calibration import Calibration
from onnxprune.core.classes import Bools
from onnxprune.core.errors import BadInputError, TargetNotReachableError
from onnxprune.core.observation import batch_of
from onnxprune.core.repair import Repair
from onnxprune.core.samples import Samples
from onnxprune.ops.cost import CostModel
from onnxprune.options import Options
from onnxprune.stages import feeds as feeding
from onnxprune.stages.allocate import allocate
from onnxprune.stages.calibrate import calibrate
from onnxprune.stages.compensate import compensate
from onnxprune.stages.metric import metric_of
from onnxprune.stages.rewrite import rewrite
from onnxprune.stages.score import score
from onnxprune.stages.sense import cautious, judge, sense
from onnxprune.stages.surgeon import operate, ranked
from onnxprune.stages.synthesize import COUNT, synthesize

BISECTIONS = 6
AUGMENTED = 256  # samples to fit on, the made ones included, ...
AUGMENTED_MACS = 4e11  # ... as long as running them once takes no more than this


def calibrated(analysis: Analysis, settings: Options, costs: CostModel, clock: Clock) -> Calibration | None:
    """Samples of the user's, or made up, and what the original does with them; None where nothing asks for it."""
    if settings.recover == "none" and settings.importance != "obs" and settings.then_quantize is None:
        return None
    samples = samples_for(analysis, settings, costs, settings.data is not None)
    return calibrate(analysis, samples, settings.seed, settings.data is None, clock.share)


def samples_for(
    analysis: Analysis, settings: Options, costs: CostModel, augmented: bool, made_up: int = COUNT
) -> Samples:
    """The user's inputs, else made-up ones. augmented: patch more from them, where weights are fitted to few."""
    inputs = runtime.graph_inputs(analysis.model.proto)
    given = (
        feeding.load_data(settings.data, inputs, labels=True)
        if settings.data
        else synthesize(analysis.feeds[0], inputs, settings.seed, made_up)
    )
    macs = costs.macs() / batch_of(analysis.feeds[0])
    wanted = int(min(AUGMENTED, AUGMENTED_MACS / max(macs, 1))) if augmented else 0
    session = runtime.Session(analysis.model.proto, runtime.folder_of(analysis.model))
    return feeding.samples_of(given, inputs, settings.samples, wanted, settings.seed, session.accepts)


def is_drop(budget: Budget | None) -> bool:
    return budget is not None and budget.metric == "max_drop"


def decider(
    analysis: Analysis,
    calibration: Calibration | None,
    budget: Budget,
    settings: Options,
    costs: CostModel,
    clock: Clock,
) -> Callable[[Budget], Bools]:
    """Everything that deciding needs, measured once: what to remove as a function of the target."""
    importance = settings.importance or "l2"
    scores = score(analysis, "l2" if importance == "obs" else importance, settings.seed)
    round_to = AUTO if settings.round_to is None else settings.round_to
    orders = damages = None
    if calibration is not None:
        orders = (
            operate(analysis, calibration, scores, calibration.made_up, clock.share)
            if importance == "obs"
            else ranked(analysis, scores)
        )
        if budget.metric != "ratio":
            clock("sense")
            damages = sense(analysis, calibration, orders, partial(rewrite, analysis), costs, progress=clock.share)
            damages = cautious(damages) if calibration.made_up else damages
    clock("allocate")

    def decide(target: Budget) -> Bools:
        for finer in (round_to, 1):  # rounding is a default, the target is not
            try:
                return allocate(analysis, scores, target, finer, costs, orders, damages)
            except TargetNotReachableError:
                if settings.round_to is not None or finer == 1:
                    raise
        raise AssertionError

    return decide


def least(
    analysis: Analysis,
    calibration: Calibration | None,
    budget: Budget,
    decide: Callable[[Budget], Bools],
    settings: Options,
    clock: Clock,
) -> Bools:
    """The smallest share of the MACs whose repaired model loses no more than the budget allows, by bisection."""
    if calibration is None:
        raise BadInputError("--max-drop needs calibration: leave out --recover none, or use --importance obs.")
    metric, chosen = metric_of(settings.metric, calibration)
    folder = runtime.folder_of(analysis.model)
    low, high = 0.0, 1.0
    best: Bools | None = None
    lowest = float("inf")
    clock("search")
    for step in range(BISECTIONS):
        middle = (low + high) / 2
        clock.share(step / BISECTIONS)
        try:
            removed = decide(Budget("macs", middle))
        except TargetNotReachableError:
            low = middle
            continue
        model = rewrite(analysis, removed)
        if settings.recover != "none":
            model = repaired(analysis, removed, model, calibration, settings, clock)[0]
        drop = judge(calibration, model, folder, metric, chosen)
        lowest = min(lowest, drop)
        if drop <= budget.amount:
            best, high = removed, middle
        else:
            low = middle
    if best is None:
        raise TargetNotReachableError(
            f"--max-drop {budget.amount:g} ({settings.metric}) cannot be kept: the least that was measured is {lowest:.4g}, at "
            f"{high:.2f} of the MACs or below. Allow more, or give more --data."
        )
    return best


def repaired(
    analysis: Analysis,
    removed: Bools,
    cut: onnx.ModelProto,
    calibration: Calibration,
    settings: Options,
    clock: Clock,
    bypasses: Sequence[Bypass] = (),
) -> tuple[onnx.ModelProto, Repair]:
    """The repaired model; the cut one where the repair does not help on held-out samples."""
    recover = settings.recover or "lsq"
    found = compensate(analysis, removed, cut, calibration, recover, settings.seed, clock.share, bypasses)
    folder = runtime.folder_of(analysis.model)
    before, after = (judge(calibration, m, folder) for m in (cut, found.model))
    if not after < before:
        return cut, replace(found.repair, changed=(), before=before, after=before)
    return found.model, replace(found.repair, before=before, after=after)
