"""One pruning, done: everything that its plan and its report are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx

from onnxprune.calibrate.calibration import Calibration
from onnxprune.choose.budget import Budget
from onnxprune.choose.group_times import Pace
from onnxprune.choose.layers import Choice
from onnxprune.choose.options import Options, settings_of
from onnxprune.choose.subject import Subject
from onnxprune.cut.bypass import node_keys
from onnxprune.cut.plan import VERSION, Pair, Plan, Refit, plan_groups
from onnxprune.cut.ports import ports
from onnxprune.proof.elsewhere import Elsewhere
from onnxprune.proof.verdict import Drop, Verdict
from onnxprune.repair.fits import Repair
from onnxprune.report.values import Tuned, Variant
from onnxprune.version import __version__


@dataclass(frozen=True)
class Outcome:
    """What was asked for, decided, made and measured.

    settings, budget: what was asked for, defaults filled in; replay: the plan that was applied instead of a budget.
    original: the model as it came, analysed and calibrated; choice: what was bypassed and which units were removed.
    model: the finished model. refit: constants that were fitted anew or trained; digest: of those.
    verdict, repair, tuning, variants, drop, times (of original and result): None or empty where not asked for.
    calibration: what repair and damages were measured with. seconds: by stage.
    set_aside: how many sources had to be set aside at least, for a limit on the loss. pace: how a target of time was met.
    """

    settings: Options
    budget: Budget | None
    replay: Plan | None
    original: Subject
    choice: Choice
    model: onnx.ModelProto = field(repr=False)
    refit: tuple[tuple[str, int], ...]
    digest: str | None
    verdict: Verdict | None
    calibration: Calibration | None = field(repr=False)
    repair: Repair | None
    tuning: Tuned | None
    variants: tuple[Variant, ...]
    drop: Drop | None
    times: Elsewhere | None
    seconds: dict[str, float]
    set_aside: int = 0
    pace: Pace | None = None


def plan_of(outcome: Outcome) -> Plan:
    """What was removed, as a plan; of a replay, the same plan with the repair that it has now."""
    settings, refit = outcome.settings, tuple(Refit(*place) for place in outcome.refit)
    if outcome.replay is not None:
        how = {"recover": settings.recover or "none", "tune": settings.tune, "tune_steps": settings.tune_steps}
        return outcome.replay.repaired(how, refit, outcome.digest)
    subject, removed = outcome.choice.subject, outcome.choice.removed
    before, after = outcome.original.costs, subject.costs
    proto = outcome.original.bare.model.proto
    return Plan(
        version=VERSION,
        model_sha256=subject.bare.model.sha256,
        groups=plan_groups(subject.bare, removed),
        onnxprune=__version__,
        settings=settings_of(settings, outcome.budget, outcome.set_aside) | _paced(outcome.pace),
        bypassed=subject.bypasses,
        nodes_removed=_nodes_removed(proto, outcome.model) if settings.depth != "off" else (),
        mixed=subject.mixed,
        refit=refit,
        refit_sha256=outcome.digest,
        macs=Pair(before.macs(), after.macs(removed)),
        params=Pair(before.params(), after.params(removed)),
        interface=ports(subject.bare, removed),
        resolution=subject.resolution,
    )


def _paced(pace: Pace | None) -> dict[str, Any]:
    """How a target of time was met, as a plan keeps it; groups: expected and measured milliseconds that each saves."""
    if pace is None:
        return {}
    groups = {g.group: [g.expected, g.measured] for g in pace.groups}
    speeds = {"expected": pace.expected, "measured": pace.measured, "interval": list(pace.interval)}
    return {"pace": speeds | {"runner": pace.runner, "groups": groups}}


def _nodes_removed(original: onnx.ModelProto, pruned: onnx.ModelProto) -> tuple[str, ...]:
    left = set(node_keys(pruned.graph))
    return tuple(key for key in node_keys(original.graph) if key not in left)
