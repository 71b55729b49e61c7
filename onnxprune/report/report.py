"""What one pruning found, did and measured, as a typed value; `report/renderer.py` makes text of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.coverage import coverage
from onnxprune.choose.group_times import Pace
from onnxprune.choose.subject import Subject
from onnxprune.choose.tried import Tried
from onnxprune.cut.plan import Pair, Plan
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.units import Pin
from onnxprune.model.interface import Port
from onnxprune.model.json_text import to_json
from onnxprune.model.save import stored_bytes
from onnxprune.model.typed_json import plain
from onnxprune.proof.verdict import Drop, Verdict
from onnxprune.repair.fits import Repair
from onnxprune.report.depth import depth_of
from onnxprune.report.drawing import Curve, Graph, curves_of, graph_of
from onnxprune.report.outcome import Outcome
from onnxprune.report.resolution import resolution_of
from onnxprune.report.values import (
    CalibrationSummary,
    CostPairs,
    Declined,
    Depth,
    FitRow,
    GroupRow,
    Latency,
    RepairSummary,
    Resolutions,
    Tuned,
    Variant,
    decided,
    not_judged,
)
from onnxprune.report.warnings import missed, warnings
from onnxprune.runtime import samples_in


@dataclass(frozen=True)
class Report:
    """What `prune` found, did and measured. In JSON, a part that was not asked for is left out, and a number that is not finite is null.

    model_sha256: of the original file.
    target: what was asked for, such as `{"macs": 0.5}`; null where a plan was replayed.
    groups: those that can lose units.
    declined: why the others cannot, the most units first.
    unknown_operators: without a rule: they keep what they touch.
    cost: multiply-accumulates, parameters and bytes, before and after.
    seconds: of wall time, by stage.
    warnings: sentences that a person should read, each with what to do.
    check: the comparison with the masked original in ONNX Runtime.
    calibration: the inputs that were used; left out where none were needed.
    repair: what fitting the remaining weights has gained.
    tuning: what training towards the original has gained (`--tune`).
    drop: what is promised of the loss, and what was measured on samples that no step has seen (`--max-drop`).
    variants: the pruned model beside quantization (`--then-quantize`).
    depth: layers and nodes (`--depth`).
    resolution: pictures inside the model (`--resolution`).
    latency_ms: milliseconds per run; left out without a benchmark.
    interface: axes of inputs and outputs that got shorter (`--free`).
    pace: how a target of time was met (`--speedup`, `--latency`).
    command: the words of the command that did it; left out where it was called from Python.
    model: the original's file, as it was named; left out where it was given as a value.
    graph: the original's nodes with their groups and widths.
    curves: how much the model suffers when one group alone shrinks; left out where widths were decided without.
    candidates: whole models that were made and judged on the way (`--max-drop`, `--speedup`, `--latency`).
    """

    model_sha256: str
    target: dict[str, float] | None
    groups: tuple[GroupRow, ...]
    declined: tuple[Declined, ...]
    unknown_operators: tuple[str, ...]
    cost: CostPairs
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    check: Verdict | None = None
    calibration: CalibrationSummary | None = None
    repair: RepairSummary | None = None
    tuning: Tuned | None = None
    drop: Drop | None = None
    variants: tuple[Variant, ...] = ()
    depth: Depth | None = None
    resolution: Resolutions | None = None
    latency_ms: Latency | None = None
    interface: tuple[Port, ...] = ()
    pace: Pace | None = None
    command: tuple[str, ...] = ()
    model: str | None = None
    graph: Graph | None = None
    curves: tuple[Curve, ...] = ()
    candidates: tuple[Tried, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON."""
        made: dict[str, Any] = plain(self)
        return made

    def to_json(self) -> str:
        """Indented JSON, as `onnxprune.report.schema("report")` describes it."""
        return to_json(self.to_dict())


def report_of(outcome: Outcome, plan: Plan, command: Sequence[str] = (), model: str | None = None) -> Report:
    """plan: of the same outcome. command: the words of the command line. model: the original's file."""
    subject, budget = outcome.choice.subject, outcome.budget
    calibration, repair = outcome.calibration, outcome.repair
    analysis = outcome.original.bare
    return Report(
        model_sha256=subject.bare.model.sha256,
        target=None if budget is None else {budget.metric: budget.amount},
        groups=tuple(group for group in group_rows(subject.bare, plan) if group.removable),
        declined=declined(subject.bare),
        unknown_operators=tuple(subject.bare.unknown),
        cost=CostPairs(
            plan.macs,
            plan.params,
            Pair(subject.bare.model.size_bytes, stored_bytes(outcome.model)),
            samples_in(subject.bare.model.proto, subject.bare.feeds[0]),
        ),
        seconds={k: round(v, 3) for k, v in outcome.seconds.items()},
        warnings=tuple(
            warnings(
                analysis,
                outcome.model,
                calibration,
                repair,
                _kept(plan),
                outcome.tuning,
                asked=outcome.settings.samples is not None,
                scope=outcome.settings.scope,
            )
            + missed(outcome)
        ),
        check=outcome.verdict,
        calibration=None if calibration is None else _calibration(analysis, calibration, subject),
        repair=None if repair is None else _repair(repair),
        tuning=outcome.tuning,
        drop=outcome.drop,
        variants=outcome.variants,
        depth=depth_of(outcome.original, outcome.choice, outcome.settings.depth or "off"),
        resolution=resolution_of(outcome.original, outcome.choice),
        latency_ms=None if outcome.times is None else Latency.of(outcome.times),
        interface=plan.interface,
        pace=outcome.pace,
        command=tuple(command),
        model=model,
        graph=graph_of(analysis, outcome.choice.removed, plan, subject),
        curves=curves_of(outcome.choice),
        candidates=outcome.choice.tried,
    )


def group_rows(analysis: Analysis, plan: Plan | None = None) -> Iterator[GroupRow]:
    """All groups of an analysis. plan: says what each lost; without, nothing."""
    removed = {} if plan is None else {g.id: g.removed for g in plan.groups}
    for g in analysis.groups:
        yield GroupRow(g.id, g.kind, g.origin, g.units, g.removable, g.exact, g.pins, removed.get(g.id, 0))


def declined(analysis: Analysis) -> tuple[Declined, ...]:
    """Reasons that keep whole groups, with how many units each holds."""
    found: dict[str, Declined] = {}
    for group in analysis.groups:
        if group.removable:
            continue
        pins = group.pins or (Pin("", f"{group.origin} has too few units to lose one"),)
        reason, remedy = pins[0].reason, pins[0].remedy
        so_far = found.get(reason, Declined(reason, remedy, 0, 0))
        found[reason] = Declined(reason, so_far.remedy, so_far.groups + 1, so_far.units + group.units)
    return tuple(sorted(found.values(), key=lambda d: -d.units))


def _calibration(analysis: Analysis, calibration: Calibration, subject: Subject) -> CalibrationSummary:
    samples = calibration.samples
    covered, spans = coverage(analysis, calibration)
    return CalibrationSummary(
        samples=samples.count,
        made_samples=sum(samples.sizes) - samples.count,
        held_out=sum(n for n, out in zip(samples.sizes, samples.held, strict=True) if out),
        passes=calibration.passes,
        tapped_tensors=len(calibration.tapped),
        made_up=calibration.made_up,
        mixed_blocks=subject.blocks,
        judged_by=calibration.judged.tensors,
        not_judged=not_judged(calibration.judged),
        decided=decided(calibration.judged),
        held_by=samples.held_by,
        sources=samples.sources,
        covered=covered,
        spans=spans,
    )


def _kept(plan: Plan) -> float:
    """Share of the MACs."""
    return plan.macs.after / plan.macs.before if plan.macs and plan.macs.before else 1.0


def _repair(repair: Repair) -> RepairSummary:
    fitted = [f for f in repair.fits if f.ridge is not None]
    return RepairSummary(
        recover=repair.recover,
        layers=len(repair.fits),
        fitted=len(fitted) if repair.changed else 0,
        damage=Pair(repair.before, repair.after),
        fits=tuple(
            FitRow(f.layer, Pair(f.before, f.after), "bias" if f.ridge == inf else f.ridge) for f in repair.fits
        ),
        unpaired=repair.unpaired,
    )
