"""Reports as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnxprune.report import front
from onnxprune.report.comparison import Comparison
from onnxprune.report.explore import ExploreReport
from onnxprune.report.lines import (
    VARIANT_COLUMNS,
    check_line,
    difference_line,
    interface_lines,
    layer_rows,
    number,
    pace_lines,
    pruned_line,
    repair_lines,
    resolution_lines,
    size_rows,
    summary_rows,
    tuning_lines,
    variant_rows,
    zeros_line,
)
from onnxprune.report.profile import ProfileReport
from onnxprune.report.profile_lines import markdown_of
from onnxprune.report.report import Report
from onnxprune.report.sparsity import SparsityReport
from onnxprune.words import counted


def markdown(report: Report | SparsityReport | ProfileReport | ExploreReport | Comparison) -> str:
    """The whole file."""
    lines: Iterable[str]
    if isinstance(report, ProfileReport):
        lines = markdown_of(report)
    elif isinstance(report, ExploreReport | Comparison):
        lines = front.markdown_of(report)
    else:
        lines = _pruning(report) if isinstance(report, Report) else _sparsity(report)
    return "\n".join(lines) + "\n"


def _pruning(report: Report) -> Iterator[str]:
    yield from ("# Pruning report", "", "| | before | after | kept |", "|---|---:|---:|---:|")
    yield from (f"| {' | '.join(row)} |" for row in summary_rows(report))
    yield from ("", f"Check in ONNX Runtime: {check_line(report)}.")
    yield from (f"- {line}" for line in repair_lines(report))
    yield from (f"- Timed: {line}." for line in pace_lines(report))
    yield from (f"- Tuned: {line}." for line in tuning_lines(report))
    if report.interface:
        yield from ("", "## Interface", "")
        yield from (f"- {line}" for line in interface_lines(report))
    yield from (f"- Warning: {line}." for line in report.warnings)
    if report.variants:
        yield from ("", "## Beside quantization", "", "| | " + " | ".join(VARIANT_COLUMNS) + " |")
        yield "|---|---:|---:|---:|---:|---:|"
        yield from (f"| {' | '.join(row)} |" for row in variant_rows(report))
    yield from _depth(report)
    if report.resolution is not None:
        first, *others = resolution_lines(report)
        yield from ("", "## Resolution", "", f"{first}.", "", *others)
    times = {} if report.pace is None else {g.group: g for g in report.pace.groups}
    more = (" ms expected | ms measured |", "---:|---:|") if times else ("", "")
    yield from ("", "## Groups", "", f"| group | kind | where | units | removed | exact |{more[0]}")
    yield f"|---|---|---|---:|---:|---|{more[1]}"
    for g in report.groups:
        exact = "yes" if g.exact else "no"
        t = times.get(g.id)
        both = (None, None) if t is None else (t.expected, t.measured)
        saved = f" {number(both[0])} | {number(both[1])} |" if times else ""
        yield f"| {g.id} | {g.kind} | {_cell(g.origin)} | {g.units} | {g.removed} | {exact} |{saved}"
    yield from ("", "## Declined", "")
    if not report.declined:
        yield "Nothing: every group of more than one unit can be pruned."
    for d in report.declined:
        remedy = f" Remedy: {d.remedy}." if d.remedy else ""
        yield f"- {counted(d.units, 'unit')} of {counted(d.groups, 'group')}: {d.reason}.{remedy}"
    if report.unknown_operators:
        yield from ("", "Operators without a rule: " + ", ".join(report.unknown_operators[:20]) + ".")
    yield from _seconds(report.seconds)


def _depth(report: Report) -> Iterator[str]:
    depth = report.depth
    if depth is None:
        return
    yield from ("", "## Layers and nodes", "")
    if depth.channels_alone is not None:
        yield f"Channels alone, at the same cost: divergence {depth.channels_alone:.3g} on held-out samples."
        yield ""
    yield "| tensor | is now | nodes gone | MACs gone | divergence when chosen |"
    yield "|---|---|---:|---:|---:|"
    for r in depth.bypassed:
        yield f"| {_cell(r.tensor)} | {_cell(r.by)} | {r.nodes} | {r.macs:,} | {number(r.damage)} |"
    yield from ("", "Looked at, and not bypassed:", "")
    yield "| tensor | could be | MACs | change | divergence | reason |"
    yield "|---|---|---:|---:|---:|---|"
    for x in depth.declined:
        numbers = f"{x.macs:,} | {number(x.change)} | {number(x.damage)}"
        yield f"| {_cell(x.tensor)} | {_cell(x.by)} | {numbers} | {x.reason} |"


def _sparsity(report: SparsityReport) -> Iterator[str]:
    yield from ("# Sparsity report", "", f"Zeros: {zeros_line(report)}.")
    yield f"Outputs differ {difference_line(report)}."
    if report.pruned is not None:
        yield f"Then removed: {pruned_line(report)}."
    yield from ("", "| | before | after | ratio |", "|---|---:|---:|---:|")
    yield from (f"| {' | '.join(row)} |" for row in size_rows(report))
    yield from ("", *(f"- {line}" for line in report.runtimes), "", "## Weights", "")
    yield from ("| weight | shape | zeros before | after | share | how |", "|---|---|---:|---:|---:|---|")
    yield from (f"| {' | '.join(map(_cell, row))} |" for row in layer_rows(report))
    yield from ("", "## Left alone", "")
    yield from [f"- {x.tensor} ({x.node}) {x.reason}." for x in report.left_alone] or ["Nothing."]
    yield from _seconds(report.seconds)


def _seconds(seconds: dict[str, float]) -> Iterator[str]:
    yield from ("", "## Seconds per stage", "")
    yield from (f"- {k}: {v:.2f}" for k, v in seconds.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
