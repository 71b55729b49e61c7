"""`--max-drop`: as few multiply-accumulates as a limit on the loss allows, and whether the finished model keeps to it.

The search looks at held-out samples, as every other step does, and takes the smallest model that passes: the one that was lucky. Few
samples make much luck, so all of the user's have to agree with those held out, and it aims lower, the more so the fewer they are
(`MARGIN`, `SPREAD`). Some samples are set aside at the start (`Samples.unseen`): no step looks at them until the finished model is judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import onnx

from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.metric import metric_of
from onnxprune.choose.budget import Budget
from onnxprune.choose.channels import decider
from onnxprune.choose.layers import Choice, chosen, finished
from onnxprune.choose.options import Options
from onnxprune.choose.sensitivity import judge
from onnxprune.choose.subject import Subject
from onnxprune.clock import Clock
from onnxprune.errors import BadInputError, NothingPrunableError, TargetNotReachableError
from onnxprune.groups.analysis import Analysis
from onnxprune.model.loaded import Model
from onnxprune.proof.verdict import Drop, counted

BISECTIONS = 6
MARGIN = 0.8  # of the limit, on held-out samples
SPREAD = 2.0  # standard deviation of the loss of one sample, in units of the mean: a few samples make most of it


def is_drop(budget: Budget | None) -> bool:
    return budget is not None and budget.metric == "max_drop"


def least(original: Subject, budget: Budget, settings: Options, clock: Clock) -> Choice:
    """What to remove for the smallest share of the MACs whose finished model loses no more than the budget allows, by bisection."""
    calibration = original.against
    if calibration is None:
        raise BadInputError("--max-drop needs calibration: leave out --recover none, or use --importance obs.")
    loss = _Loss(calibration, settings.metric, original.bare.model)
    decide = _decide(original, budget, settings, clock)
    low, high = 0.0, 1.0
    best: Choice | None = None
    lowest = float("inf")
    clock("search")
    for step in range(BISECTIONS):
        middle = (low + high) / 2
        clock.share(step / BISECTIONS)
        try:
            choice = decide(Budget("macs", middle))
        except (TargetNotReachableError, NothingPrunableError):
            low = middle
            continue
        drop = loss(finished(choice, settings, clock))
        lowest = min(lowest, drop)
        if drop <= MARGIN * budget.amount:
            best, high = choice, middle
        else:
            low = middle
    if best is None and lowest == float("inf"):
        decide(Budget("macs", 0.999))  # says what stands in the way, where nothing can go at all
    if best is None:
        raise TargetNotReachableError(
            f"--max-drop {budget.amount:g} ({settings.metric}) cannot be kept: the least that was measured is {lowest:.4g}, at "
            f"{high:.2f} of the MACs or below. Allow more, or give more --data."
        )
    return best


class _Loss:
    """What the finished model is likely to lose on samples set aside: the loss by the metric on those held out and on all of the user's,
    whichever is worse, and what a mean over so few of them may be off by.
    """

    def __init__(self, calibration: Calibration, name: str, original: Model) -> None:
        samples = calibration.samples
        self.calibration, self.original = calibration, original
        self.wholes = [(metric_of(name, calibration, own), own) for own in (samples.own_held, samples.own)]
        self.spread = SPREAD / sqrt(max(1, samples.independent))

    def __call__(self, model: onnx.ModelProto) -> float:
        answers = self.calibration.judged.session(self.original.beside(model), "the pruned model")
        outputs = {k: answers(self.calibration.samples.feeds[k]) for k in self.calibration.samples.own}
        found = [
            metric([self.calibration.outputs[k] for k in own], [outputs[k] for k in own]) for metric, own in self.wholes
        ]
        return max(found) * (1 + self.spread)


def _decide(original: Subject, budget: Budget, settings: Options, clock: Clock) -> Callable[[Budget], Choice]:
    if settings.depth != "off":
        return lambda target: chosen(original, target, settings, clock)
    own = decider(original.analysis, original.calibration, budget, settings, original.costs, clock)
    return lambda target: Choice(original, own(target))


def audited(
    analysis: Analysis, calibration: Calibration, model: onnx.ModelProto, budget: Budget, settings: Options
) -> Drop:
    """What the finished model loses on the samples set aside. Raises `TargetNotReachableError` where that is over the limit.

    analysis: of the original. model: as it is written.
    """
    unseen = calibration.samples.unseen
    assert unseen is not None
    answers = calibration.judged.session(analysis.model)
    own = replace(calibration, samples=unseen, outputs=[answers(f) for f in unseen.feeds])
    measured = judge(own, analysis.model.beside(model), metric_of(settings.metric, own, unseen.own), unseen.own)
    if not measured <= budget.amount:
        raise TargetNotReachableError(
            f"--max-drop {budget.amount:g} ({settings.metric}) was not kept: the finished model loses {measured:.4g} on the "
            f"{counted(unseen.count, 'sample')} that no step has seen. Allow more, or give more --data."
        )
    return Drop(settings.metric, budget.amount, measured, unseen.count, unseen.held_by, unseen.independent)
