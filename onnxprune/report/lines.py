"""Reports in sentences and table rows, for the console and for Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.proof.verdict import Drop, Verdict
from onnxprune.report.report import Report
from onnxprune.report.sparsity import SparsityReport
from onnxprune.report.values import CalibrationSummary, Decided, Latency, NotJudged
from onnxprune.runtime import OnnxRuntime, Speedup
from onnxprune.words import counted

NAMED = 3  # nodes and tensors in one line
SAVING = 5  # groups in one line
SPANS = 3  # outputs whose span is said
VARIANT_COLUMNS = ("bytes", "ms per run", "divergence", "other top-1", "loss")


# ---------------------------------------------------------------- of pruning


def summary_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, before, after, kept or ratio)."""
    rows = []
    cost = report.cost
    for pair, name in ((cost.macs, f"MACs{_of(cost.samples)}"), (cost.params, "parameters"), (cost.bytes, "bytes")):
        if pair is not None:
            share = f"{pair.after / pair.before:.1%}" if pair.before else "-"
            rows.append((name, f"{pair.before:,}", f"{pair.after:,}", share))
    return rows + _time_rows(report.latency_ms)


def _time_rows(t: Latency | None) -> list[tuple[str, str, str, str]]:
    if t is None:
        return []
    row = (f"ms per run{_of(t.samples)}", f"{t.before:.3f}", f"{t.after:.3f}", _speed(t) + _where(t))
    return [row, *_apart(t)]


def _of(samples: int) -> str:
    return f" of {counted(samples, 'sample')}" if samples > 1 else ""


def check_line(report: Report) -> str:
    """What the comparison with the masked original found."""
    check = report.check
    if check is None:
        return "not checked"
    kind = "exact groups only" if check.exact else "with approximate groups, against their own reference"
    return (
        f"equals the masked original to {check.error:.1e} of the output's scale (allowed {check.tolerance:.0e}; {kind})"
        + left_out(check)
    )


def interface_lines(report: Report) -> list[str]:
    """Axes of inputs and outputs that got shorter."""
    return [f"{p.direction} '{p.tensor}': axis {p.axis} is {p.after} instead of {p.before}" for p in report.interface]


def left_out(check: Verdict) -> str:
    """Outputs of which nothing was compared."""
    if not check.not_compared:
        return ""
    named = ", ".join(f"'{name}'" for name in check.not_compared)
    return f"; not compared, as empty on all inputs or of a kind that holds no values: {named}"


def judged_line(judged_by: Sequence[str], not_judged: Sequence[NotJudged]) -> str:
    """By which tensors the model was judged, where that is not by all of its outputs."""
    named = ", ".join(f"'{name}'" for name in judged_by) or "nothing"
    said = [
        f"'{x.output}' follows from {' and '.join(repr(t) for t in x.by)}" if x.by else f"'{x.output}' is left out"
        for x in not_judged
    ]
    return f"judged by: {named}; {'; '.join(f'{a}, as {x.reason}' for a, x in zip(said, not_judged, strict=True))}"


def decided_line(decided: Sequence[Decided]) -> str:
    """Which nodes make as many positions as values say, and whose values were taken."""
    nodes = list(dict.fromkeys(d.node for d in decided))
    tensors = ", ".join(f"'{t}'" for t in list(dict.fromkeys(d.tensor for d in decided))[:NAMED])
    named = ", ".join(nodes[:NAMED]) + (f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else "")
    return (
        f"{named} make{'' if len(nodes) > 1 else 's'} as many as values say: where the models are compared, the original's values of "
        f"{tensors} are taken by both"
    )


def depth_lines(report: Report) -> list[str]:
    """Layers and nodes that went, the largest first; how many were looked at."""
    if report.depth is None:
        return []
    rows, declined = report.depth.bypassed, report.depth.declined
    whole = report.cost.macs.before if report.cost.macs else 0
    share = f"{sum(r.macs for r in rows) / whole:.1%} of the MACs" if whole else "no MACs"
    count = "1 bypass" if len(rows) == 1 else f"{len(rows)} bypasses"
    lines = [
        f"{count} ({counted(sum(r.nodes for r in rows), 'node')}, {share}); {counted(len(declined), 'other')} looked at"
    ]
    for r in sorted(rows, key=lambda r: -r.macs):
        lines.append(f"- '{r.tensor}' is now '{r.by}': {counted(r.nodes, 'node')}, {counted(r.macs, 'MAC')}")
    return lines


def resolution_lines(report: Report) -> list[str]:
    """At which resolution the model works on its pictures, and why."""
    told = report.resolution
    if told is None:
        return []
    alone = "" if told.own_size is None else f"; at its own size the divergence is {number(told.own_size)}"
    share = next((r.macs for r in told.looked if r.size == told.after), None)
    left = "" if share is None else f", which takes {share:.1%} of the MACs"
    is_same = told.after == told.before
    first = f"'{told.input}' is read at {_pixels(told.after)} instead of {_pixels(told.before)}{left}{alone}"
    lines = [f"'{told.input}' is read at its own {_pixels(told.before)}{alone}" if is_same else first]
    for r in told.looked:
        damage = "" if r.damage is None else f"divergence {number(r.damage)}, "
        lines.append(f"- {_pixels(r.size)}: {damage}{r.verdict}")
    return lines


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def repair_lines(report: Report) -> list[str]:
    """What the outputs were fitted with, and how far they are from the original's on samples that no fit saw."""
    lines = []
    calibration, repair, drop = report.calibration, report.repair, report.drop
    if calibration is not None:
        source = "made-up" if calibration.made_up else "calibration"
        more = f" and {calibration.made_samples} patched from them" if calibration.made_samples else ""
        lines.append(
            f"{counted(calibration.samples, source + ' sample')}{more}, {calibration.held_out} of all held out {held_by(calibration)}"
        )
    lines += [] if calibration is None else coverage_lines(calibration)
    if calibration is not None and calibration.not_judged:
        lines.append(judged_line(calibration.judged_by, calibration.not_judged))
    if calibration is not None and calibration.decided:
        lines.append(decided_line(calibration.decided))
    if calibration is not None and calibration.mixed_blocks:
        lines.append(f"{counted(calibration.mixed_blocks, 'block')} of units mixed into principal directions")
    if repair is not None:
        before, after = repair.damage
        on = "held-out samples" if calibration is None or calibration.held_out else "the samples that were fitted"
        if calibration is not None and calibration.made_up:
            on = "made-up inputs, which says nothing of real ones,"
        fitted = f"{repair.fitted} of {counted(repair.layers, 'layer')} fitted ({repair.recover})"
        judged = f"divergence from the original on {on} {number(before)} -> {number(after)}"
        lines.append(f"{fitted}; {judged if before is not None else 'the whole model was not judged'}")
    if drop is not None:
        lines += drop_lines(drop)
    return lines


def coverage_lines(calibration: CalibrationSummary) -> list[str]:
    """Of what the calibration did not show everything, as that may be forgotten."""
    lines = []
    for c in calibration.covered:
        if c.seen < c.known:
            seen = f"{c.seen:,} of its {c.known:,} {c.kind}"
            says = {"answers": f"the original gave {seen} on these inputs", "ids": f"these inputs hold {seen}"}
            active = "reached 0.5" if c.above == "half" else "rose clearly from the background"
            what = says.get(c.kind, f"{seen} {active} on these inputs")
            lines.append(f"'{c.tensor}': {what}; what the others need may be lost")
    for s in calibration.spans[:SPANS]:
        lines.append(
            f"'{s.tensor}': from {s.low:.3g} to {s.high:.3g} on these inputs; of what goes beyond nothing is known"
        )
    more = len(calibration.spans) - SPANS
    return lines + ([f"and {counted(more, 'more output')} of which only the span is known"] if more > 0 else [])


def drop_lines(drop: Drop) -> list[str]:
    """What is promised of the loss, and how many samples a tighter promise, or the same of a smaller model, would need."""
    about = "about " if drop.is_approximate else ""
    of = "" if drop.held_by == "sample" else f" of {counted(drop.sources, drop.held_by)}"
    lines = [
        f"with {about}{drop.confidence:.0%} confidence the loss is at most {drop.allowed:g} ({drop.metric}); it is {drop.measured:.3g} on "
        f"{counted(drop.samples, 'sample')}{of} that no step has seen"
    ]
    half = f"at most {drop.allowed / 2:g} would need"
    if drop.half_needs is None:
        lines.append(f"{half} a larger model")
    else:
        lines.append(f"{half} about {counted(drop.half_needs, drop.held_by)} like these")
    if drop.bolder is not None:
        b = drop.bolder
        needs = (
            "more than is allowed"
            if b.needed is None
            else f"about {b.needed:,} would be needed to show that it is allowed"
        )
        lines.append(f"at {b.macs:g} of the {b.of} it is {b.measured:.3g}: {needs}")
    return lines


def sentence(line: str) -> str:
    """A line as a sentence."""
    return f"{line[:1].upper()}{line[1:]}."


def pace_lines(report: Report) -> list[str]:
    """What was asked of the time, what was expected and measured, and what the most expensive groups save."""
    p = report.pace
    if p is None:
        return []
    low, high = p.interval
    measured, known = p.graphs
    asked = f"{p.asked:.3g}x asked, " if p.asked > 1 else ""
    lines = [
        f"{asked}{p.measured:.3g}x measured ({low:.3g} to {high:.3g}), {p.expected:.3g}x expected at first; {p.runner}",
        f"{counted(p.rounds, 'whole model')} timed, {counted(measured, 'small graph')} ({known:,} were known) in {p.seconds:.1f} s",
    ]
    saved = ", ".join(f"{g.group} {g.expected:.3g} ms" for g in p.groups[:SAVING])
    return [*lines, f"saved most by {saved}"] if saved else lines


def tuning_lines(report: Report) -> list[str]:
    """How long the result was trained towards the original, on what, and what it has gained."""
    t = report.tuning
    if t is None:
        return []
    inside = f" and {counted(len(t.features), 'tensor')} inside" if t.features else ""
    before, after = t.loss
    gained = (
        f"{number(before)} -> {number(after)}"
        if t.best_step or t.blocks
        else f"{number(before)}: nothing was better, unchanged"
    )
    first = f"{counted(t.blocks, 'block')} on their own, then " if t.blocks else ""
    return [
        f"{t.minutes:.1f} minutes, {first}{counted(t.steps, 'step')} towards the original's outputs{inside}, without labels ({t.stopped})",
        f"held-out loss {gained} (trained on {t.samples} of your own inputs, judged by {t.held_out} others)",
    ]


def held_by(calibration: CalibrationSummary) -> str:
    """What was held out as a whole."""
    if calibration.sources is None:
        return "by sample"
    count, held = calibration.sources
    return f"by {calibration.held_by} ({held} of {count})"


def variant_rows(report: Report) -> list[tuple[str, str, str, str, str, str]]:
    """(which, bytes, milliseconds, divergence, share of other top-1 answers, loss by the metric)."""
    return [
        (
            v.name,
            f"{v.bytes:,}",
            f"{v.ms:.3f}",
            f"{v.divergence:.3g}",
            "-" if v.top1 is None else f"{v.top1:.1%}",
            f"{v.loss:.3g}",
        )
        for v in report.variants
    ]


def _speed(t: Latency) -> str:
    low, high = t.interval
    if not Speedup(t.speedup, low, high).is_measurable:
        return f"which is faster is not measurable here ({low:.2f} to {high:.2f} times as fast)"
    if t.speedup >= 1:
        return f"{t.speedup:.2f}x faster ({low:.2f} to {high:.2f})"
    return f"{1 / max(t.speedup, 1e-9):.2f}x slower ({1 / max(high, 1e-9):.2f} to {1 / max(low, 1e-9):.2f})"


def _where(t: Latency) -> str:
    """Where both were timed, unless that is one thread of ONNX Runtime's CPU."""
    return "" if t.runner == OnnxRuntime().name else f"; {t.runner}"


def _apart(t: Latency) -> list[tuple[str, str, str, str]]:
    """How far outputs elsewhere are from the CPU's."""
    if t.differences is None:
        return []
    before, after = t.differences
    return [("output error", f"{before:.1e}", f"{after:.1e}", "there, against ONNX Runtime on the CPU")]


def number(value: float | None) -> str:
    """Three digits; a dash where there is none."""
    return "-" if value is None else f"{value:.3g}"


# ---------------------------------------------------------------- of sparsity


def zeros_line(report: SparsityReport) -> str:
    """How many weights are zero now."""
    z = report.zeros
    share = z.after / max(z.weights, 1)
    what = f"{share:.1%}; {report.target}; {report.criterion}"
    return f"{z.before:,} -> {z.after:,} of {counted(z.weights, 'weight')} in {counted(len(report.layers), 'layer')} ({what})"


def difference_line(report: SparsityReport) -> str:
    """How far the outputs are from the original's."""
    d = report.difference
    source = "made-up" if d.made_up else "held-out" if d.held_out else "given"
    top1 = "" if d.top1 is None else f", another top class on {d.top1:.1%}"
    on = counted(d.samples, f"{source} sample")
    judged = f"; {judged_line(d.judged_by, d.not_judged)}" if d.not_judged else ""
    judged += f"; {decided_line(d.decided)}" if d.decided else ""
    return f"by {d.error:.2g} of the output's scale at most, divergence {d.divergence:.3g}{top1} ({on}){judged}"


def pruned_line(report: SparsityReport) -> str:
    """What `--then-prune` took away."""
    p = report.pruned
    if p is None or not p.units:
        return "nothing: no unit is zero as a whole, or unread"
    return (
        f"{counted(p.units, 'unit')} of {counted(len(p.groups), 'group')} that were zero or unread; outputs equal the sparse model's to "
        f"{p.error:.1e} of their scale"
    )


def layer_rows(report: SparsityReport) -> list[tuple[str, ...]]:
    """(weight, shape, zeros before, after, share, how)."""
    return [
        (
            x.tensor,
            "×".join(map(str, x.shape)),
            f"{x.zeros.before:,}",
            f"{x.zeros.after:,}",
            f"{x.zeros.after / max(x.weights, 1):.1%}",
            x.criterion + (", stored sparse" if x.stored == "sparse" else ""),
        )
        for x in report.layers
    ]


def size_rows(report: SparsityReport) -> list[tuple[str, str, str, str]]:
    """(what, before, after, ratio)."""
    sizes = (("bytes", report.bytes.file), ("bytes, zipped", report.bytes.compressed))
    rows = [(name, f"{p[0]:,}", f"{p[1]:,}", f"{p[1] / max(p[0], 1):.1%}") for name, p in sizes if p is not None]
    return rows + _time_rows(report.latency_ms)
