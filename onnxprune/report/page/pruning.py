"""The page of a report of `prune`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from onnxprune.report import lines as told
from onnxprune.report.drawing import Graph
from onnxprune.report.page.charts import Bar, Line, Mark, lines
from onnxprune.report.page.common import (
    commands,
    cost_fact,
    latency_fact,
    samples_note,
    seconds_section,
    warnings_section,
    words_after,
)
from onnxprune.report.page.graph import HELD, NONE, GroupCard, Look, graph_section, level_of
from onnxprune.report.page.parts import MANY, Fact, Section, bars_picture, facts, listed, markup, notes, picture, table
from onnxprune.report.page.text import amount, bytes_of, milliseconds, number, short
from onnxprune.report.page.time import pace_fact, time_sections
from onnxprune.report.page.tradeoff import Kind, Point, tradeoff
from onnxprune.report.report import Report
from onnxprune.report.values import GroupRow
from onnxprune.words import counted

if TYPE_CHECKING:
    from markupsafe import Markup

LISTED = 60  # nodes or weights of a group that are named
CURVES = 80  # that are drawn
QUARTERS = (0.25, 0.5, 0.75)
OUTCOMES: dict[str, Kind] = {
    "chosen": "chosen",
    "passed": "good",
    "failed": "bad",
    "slower": "bad",
    "not taken": "good",
}
LEGEND = {
    0: "nothing went",
    1: "up to a quarter",
    2: "up to half",
    3: "up to three quarters",
    4: "more",
    5: "gone",
    HELD: "pinned",
    NONE: "no units",
}


def pruning_sections(report: Report) -> Iterator[Section]:
    """All of it, in order."""
    if report.warnings:
        yield warnings_section(report.warnings)
    yield _summary(report)
    if report.graph is not None:
        yield graph_section(
            report.graph, _look(report, report.graph), "Graph", "Every node in the colour of what went of its units."
        )
        yield from _widths(report.graph)
    yield from _candidates(report)
    yield from _curves(report)
    yield from _layers(report)
    yield from _resolution(report)
    yield _groups(report)
    yield _pinned(report)
    yield _proof(report)
    yield from time_sections(report)
    yield from _commands(report)
    yield seconds_section(report.seconds)


# ---------------------------------------------------------------- at a glance


def _summary(report: Report) -> Section:
    cost, found = report.cost, []
    if cost.macs is not None:
        found.append(cost_fact("MACs", cost.macs, amount, samples_note(cost.samples)))
    if cost.params is not None:
        found.append(cost_fact("Parameters", cost.params, amount))
    found.append(cost_fact("File", cost.bytes, bytes_of))
    if report.latency_ms is not None:
        found.append(latency_fact(report.latency_ms))
    if report.pace is not None:
        found.append(pace_fact(report.pace))
    if report.drop is not None:
        d = report.drop
        note = f"at most {d.allowed:g} with {d.confidence:.0%} confidence; {counted(d.samples, 'sample')} that no step has seen"
        found.append(Fact(f"Loss ({d.metric})", number(d.measured), tone="good", note=note))
    damage = None if report.repair is None else report.repair.damage
    if damage is not None and damage.after is not None:
        made_up = report.calibration is not None and report.calibration.made_up
        where = "made-up inputs, which say nothing of real ones" if made_up else "held-out samples"
        before = "" if damage.before is None else f"{number(damage.before)} without repair"
        found.append(Fact("Divergence", number(damage.after), before, note=f"from the original, on {where}"))
    units, gone = sum(g.units for g in report.groups), sum(g.removed for g in report.groups)
    hit = sum(1 for g in report.groups if g.removed)
    found.append(
        Fact(
            "Units removed",
            f"{gone:,}",
            f"of {units:,}",
            note=f"from {hit} of {counted(len(report.groups), 'group')}",
        )
    )
    parts = [facts(found)]
    if report.check is not None:
        parts.append(notes([f"Verified: the result {told.check_line(report)}."], "good"))
    else:
        parts.append(
            notes(["Not verified: the comparison with the masked original was switched off (--no-check)."], "warning")
        )
    if report.variants:
        rows = told.variant_rows(report)
        parts.append(table(("model", *told.VARIANT_COLUMNS), rows, ("model",), caption="Beside quantization"))
    return Section("summary", "Before and after", markup(parts), menu="Summary")


# ---------------------------------------------------------------- the graph


def _look(report: Report, graph: Graph) -> Look:
    share = {g.id: g.removed / max(g.units, 1) for g in report.groups}
    levels = []
    for node in graph.nodes:
        if node.state == "gone":
            levels.append(5)
        elif any(g in share for g in node.makes):
            levels.append(level_of(max(share.get(g, 0.0) for g in node.makes)))
        else:
            levels.append(HELD if node.makes else NONE)
    there = set(levels)
    return Look(levels, {k: v for k, v in LEGEND.items() if k in there}, _cards(report, graph))


def _cards(report: Report, graph: Graph) -> dict[str, GroupCard]:
    times = {} if report.pace is None else {g.group: g for g in report.pace.groups}
    weights: dict[str, list[str]] = {}
    for w in graph.weights:
        weights.setdefault(w.group, []).append(f"{w.tensor}, axis {w.axis}")
    cards = {group: GroupCard((("may lose", "nothing"), ("because", reason))) for group, reason in graph.held.items()}
    for g in report.groups:
        rows = [
            ("units", f"{g.units:,} → {g.units - g.removed:,}"),
            ("removed", f"{g.removed:,} ({g.removed / max(g.units, 1):.0%}); at most {g.removable:,} could go"),
            ("kind", g.kind),
            ("from", g.origin),
            ("exact", "yes" if g.exact else "no: a norm is computed over them"),
        ]
        if g.id in times:
            measured = times[g.id].measured
            more = "" if measured is None else f"; {milliseconds(measured)} measured"
            rows.append(("saves", f"{milliseconds(times[g.id].expected)} expected{more}"))
        lists = []
        if g.pins:
            lists.append(("Pinned units", tuple(_pin(p.reason, p.remedy) for p in g.pins[:LISTED])))
        if g.id in weights:
            lists.append(("Weights that got smaller", _some(weights[g.id])))
        cards[g.id] = GroupCard(tuple(rows), tuple(lists))
    return cards


def _some(texts: Sequence[str]) -> tuple[str, ...]:
    more = len(texts) - LISTED
    return (*texts[:LISTED], *((f"and {more:,} more",) if more > 0 else ()))


def _pin(reason: str, remedy: str) -> str:
    return f"{reason}. {remedy[:1].upper()}{remedy[1:]}." if remedy else f"{reason}."


def _widths(graph: Graph) -> Iterator[Section]:
    found = [n for n in graph.nodes if n.macs is not None and n.width is not None]
    if not found:
        return
    drawn, rows, groups = [], [], []
    for n in found:
        assert n.width is not None and n.macs is not None
        before, after = n.width if n.state is None else (n.width.before, 0)
        name = short(n.name or n.key, 80)
        group = next(iter(n.makes), "")
        drawn.append(Bar(after, before - after, f"{n.op} {name}: {before:,} → {after:,}", group))
        share = f"{after / before:.0%}" if before else "–"
        rows.append((name, n.op, f"{before:,}", f"{after:,}", share, amount(n.macs.before), amount(n.macs.after)))
        groups.append(group)
    about = f"Widths of {counted(len(found), 'layer')} from input to output, kept and removed"
    legend = ("kept", "removed")
    heads = ("layer", "operator", "width before", "after", "kept", "MACs before", "MACs after")
    parts = [
        bars_picture(drawn, about, "channels, heads or neurons", "layer", legend),
        table(heads, rows, ("layer", "operator"), caption="Widths per layer", groups=groups, most=MANY),
    ]
    lead = "Every layer that multiplies, from input to output."
    yield Section("widths", "Widths per layer", markup(parts), lead, "Widths")


# ---------------------------------------------------------------- what was looked at


def _candidates(report: Report) -> Iterator[Section]:
    tried = report.candidates
    if tried:
        timed = all(t.time is not None for t in tried)
        cost = "time, by the original's" if timed else "MACs kept"
        measured = all(t.loss is not None for t in tried)
        points = [
            Point(
                t.asked,
                t.time if timed else t.macs,  # type: ignore[arg-type]
                t.loss if measured else t.macs,  # type: ignore[arg-type]
                OUTCOMES[t.outcome],
                f"{t.outcome}, with {t.macs:.1%} of the MACs" if timed else t.outcome,
            )
            for t in tried
        ]
        points.append(Point("the original", 1.0, 0.0 if measured else 1.0, "original"))
        loss = f"loss ({tried[0].measure})" if measured else "MACs kept"
        lead = f"{counted(len(tried), 'whole model')}, all that were made and judged on the way. Down and to the left is better."
        yield tradeoff(points, cost, loss, lead=lead)
    if len(report.variants) > 1:
        points = [
            Point(v.name, v.ms, v.divergence, "original" if v.name == "original" else "other", bytes_of(v.bytes))
            for v in report.variants
        ]
        title = "Beside quantization"
        yield tradeoff(points, "ms per run", "divergence", title=title, id="variants", words={"other": "made of it"})


def _curves(report: Report) -> Iterator[Section]:
    if not report.curves:
        return
    rows = {g.id: g for g in report.groups}
    found = []
    for c in report.curves[:CURVES]:
        g = rows.get(c.group)
        if g is None:
            continue
        marks = tuple(
            Mark(
                p.removed / max(g.units, 1),
                p.damage,
                f"{g.origin} ({g.id}): {p.removed:,} of {g.units:,} removed, {number(p.damage)}",
            )
            for p in c.points
        )
        found.append(Line(marks, "curve", c.group, has_dots=True))
    chosen = [m for c in report.curves[:CURVES] for m in _where_cut(rows.get(c.group), c.points)]
    if chosen:
        found.append(Line(tuple(chosen), "s2", is_line=False))
    about = "How far the outputs are from the original's when one group alone shrinks"
    legend = (("curve", "a group"), ("s2", "where it was cut"))
    svg = lines(found, about, "share of the group removed", "divergence", logarithmic=True)
    body = markup([picture(svg, about, legend, hint="Choose a curve to see its group."), _curve_table(report, rows)])
    lead = "What the whole model suffers when one group alone shrinks. The target was spent where these are low."
    yield Section("curves", "Sensitivity", body, lead, "Sensitivity")


def _curve_table(report: Report, rows: Mapping[str, GroupRow]) -> Markup:
    """The curves at the points nearest to a quarter, half and three quarters of each group."""
    told, ids = [], []
    for c in report.curves:
        g = rows.get(c.group)
        if g is None or not c.points:
            continue
        near = [min(c.points, key=lambda p, at=share * g.units: abs(p.removed - at)) for share in QUARTERS]  # type: ignore[misc]
        told.append((c.group, g.origin, f"{g.units:,}", *(f"{number(p.damage)} ({p.removed:,} gone)" for p in near)))
        ids.append(c.group)
    heads = ("group", "where", "units", "about a quarter", "about half", "about three quarters")
    return table(heads, told, ("group", "where"), caption="Sensitivity by group", groups=ids)


def _where_cut(g: GroupRow | None, points: Sequence[tuple[int, float]]) -> Iterator[Mark]:
    """Where the group's own cut lies on its curve, between the points."""
    if g is None or not g.removed:
        return
    for (a, low), (b, high) in pairwise(points):
        if a < g.removed <= b:
            part = (g.removed - a) / (b - a)
            y = low * (high / low) ** part if low > 0 and high > 0 else low + part * (high - low)
            yield Mark(g.removed / g.units, y, f"{g.origin} ({g.id}): {g.removed:,} of {g.units:,} removed")
            return


def _resolution(report: Report) -> Iterator[Section]:
    found = report.resolution
    if found is None:
        return
    parts = [listed([f"{told.resolution_lines(report)[0]}."])]
    if found.looked:
        rows = [
            (f"{r.size[0]} x {r.size[1]}", "" if r.macs is None else f"{r.macs:.1%}", number(r.damage), r.verdict)
            for r in found.looked
        ]
        heads = ("pixels", "MACs before channels go", "divergence", "verdict")
        parts.append(table(heads, rows, ("pixels", "verdict"), caption="Resolutions that were looked at"))
    yield Section("resolution", "Resolution", markup(parts), menu="Resolution")


def _layers(report: Report) -> Iterator[Section]:
    depth = report.depth
    if depth is None:
        return
    whole = max(1, report.cost.macs.before) if report.cost.macs is not None else 1
    parts, columns = [], ("tensor", "is now", "nodes gone", "MACs gone", "divergence when chosen")
    if depth.channels_alone is not None:
        parts.append(
            listed(
                [f"Channels alone, at the same cost: divergence {number(depth.channels_alone)} on held-out samples."]
            )
        )
    if depth.bypassed:
        rows = [(r.tensor, r.by, str(r.nodes), amount(r.macs), number(r.damage)) for r in depth.bypassed]
        parts.append(table(columns, rows, ("tensor", "is now"), caption="Layers that went"))
    else:
        parts.append(listed(["No layer went."]))
    points = [
        Point(f"{r.tensor} → {r.by}", 1 - r.macs / whole, r.damage, "chosen")
        for r in depth.bypassed
        if r.damage is not None
    ]
    points += [
        Point(f"{x.tensor} → {x.by}", 1 - x.macs / whole, x.damage, "other", x.reason)
        for x in depth.declined
        if x.damage is not None
    ]
    if depth.declined:
        heads = ("tensor", "could be", "MACs", "change", "divergence", "reason")
        others = [
            (x.tensor, x.by, amount(x.macs), number(x.change), number(x.damage), x.reason) for x in depth.declined
        ]
        parts.append(
            table(heads, others, ("tensor", "could be", "reason"), caption="Layers that were looked at and stayed")
        )
    yield Section("layers", "Layers and nodes", markup(parts), menu="Layers")
    if len(points) > 1:
        words: dict[Kind, str] = {"chosen": "went", "other": "stayed"}
        lead = "Every layer that was tried: what it saves, and what the model loses without it."
        yield tradeoff(
            points,
            "MACs left without it",
            "divergence",
            title="Layers that were tried",
            lead=lead,
            id="depth-tradeoff",
            words=words,
        )


# ---------------------------------------------------------------- groups, pins, proof


def _groups(report: Report) -> Section:
    times = {} if report.pace is None else {g.group: g for g in report.pace.groups}
    heads = ["group", "where", "kind", "units", "left", "removed", "exact"] + (["ms saved"] if times else [])
    rows, ids = [], []
    for g in sorted(report.groups, key=lambda g: -g.removed / max(g.units, 1)):
        row = [g.id, g.origin, g.kind, f"{g.units:,}", f"{g.units - g.removed:,}", f"{g.removed / max(g.units, 1):.0%}"]
        row.append("yes" if g.exact else "no")
        if times:
            t = times.get(g.id)
            row.append("–" if t is None else number(t.expected if t.measured is None else t.measured))
        rows.append(row)
        ids.append(g.id)
    lead = "A group is a set of units that are alternatives to each other, such as the channels of one layer. The most pruned come first."
    body = table(heads, rows, ("group", "where", "kind", "exact"), caption="Groups", groups=ids, most=MANY)
    return Section("groups", "Groups", body, lead, "Groups")


def _pinned(report: Report) -> Section:
    parts = []
    rows = [(d.reason, f"{d.units:,}", f"{d.groups:,}", d.remedy or "nothing") for d in report.declined]
    if rows:
        heads = ("what holds them", "units", "groups", "what can be done")
        parts.append(table(heads, rows, ("what holds them", "what can be done"), caption="Pinned groups"))
    else:
        parts.append(listed(["Nothing: every group of more than one unit can be pruned."]))
    if report.unknown_operators:
        shown = ", ".join(short(x) for x in report.unknown_operators[:20])
        parts.append(listed([f"Operators without a rule, which keep what they touch: {shown}."]))
    return Section("pinned", "What had to stay", markup(parts), menu="Pinned")


def _proof(report: Report) -> Section:
    check = report.check
    found = ["Not checked."] if check is None else [f"The result {told.check_line(report)}."]
    if check is not None:
        found.append(f"Masked in the original for it: {counted(check.masked_activations, 'activation')}.")
        if check.float_noise is not None:
            found.append(f"Rounding alone changes the outputs by {number(check.float_noise)} of their scale.")
    found += [f"{x}." for x in told.interface_lines(report)]
    found += [told.sentence(x) for x in (*told.repair_lines(report), *told.tuning_lines(report))]
    parts = [listed(found)]
    if report.repair is not None and report.repair.fits:
        rows = [
            (
                f.layer,
                number(f.error.before),
                number(f.error.after),
                "as it was" if f.ridge is None else "bias" if f.ridge == "bias" else number(f.ridge),
            )
            for f in report.repair.fits
        ]
        heads = ("layer", "error before", "error after", "penalty")
        parts.append(table(heads, rows, ("layer",), caption="Repair, layer by layer"))
    parts.append(listed([f"SHA-256 of the original: {report.model_sha256}"]))
    return Section("proof", "Verification and repair", markup(parts), menu="Proof")


# ---------------------------------------------------------------- commands


def _commands(report: Report) -> Iterator[Section]:
    if not report.command:
        return
    found = [(list(report.command), "The command that did this:")]
    plan, output = words_after(report.command, "--plan"), words_after(report.command, "-o", "--output")
    if plan and report.model and output:
        found.append((["onnxprune", "verify", report.model, output, "--plan", plan], "Prove it again:"))
    yield Section("repeat", "Repeat it", commands(found), menu="Repeat")
