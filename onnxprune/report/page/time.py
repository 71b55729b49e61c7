"""What a page says of time: how a target was met, what each group saves, how long its layers take at each width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnxprune.choose.group_times import Pace, TimeCurve
from onnxprune.report import lines as told
from onnxprune.report.page.charts import Line, Mark, lines
from onnxprune.report.page.common import commands, words_after
from onnxprune.report.page.parts import Fact, Section, facts, listed, markup, picture, table
from onnxprune.report.page.text import milliseconds, number
from onnxprune.report.report import Report
from onnxprune.report.values import GroupRow
from onnxprune.words import counted

SHARES = (0.75, 0.5, 0.25)  # of a group's units, at which the table has times


def pace_fact(pace: Pace) -> Fact:
    """How many times as fast the model is that was chosen, and was to be."""
    asked = f"{pace.asked:.3g}× asked" if pace.asked > 1 else ""
    low, high = pace.interval
    return Fact("Times as fast", f"{pace.measured:.3g}×", asked, note=f"{low:.3g} to {high:.3g} with 95 % confidence")


def time_sections(report: Report) -> Iterator[Section]:
    """The widths and their times where a time was asked for; then all that was measured, and how to measure more."""
    rows = {g.id: g for g in report.groups}
    if report.pace is not None:
        yield from _curves(report.pace, rows)
    parts = [] if report.pace is None else [facts(_facts(report.pace))]
    found = [told.sentence(x) for x in told.pace_lines(report)]
    t = report.latency_ms
    if t is not None:
        (a, b), (c, d) = t.spread[0], t.spread[1]
        found.append(f"{counted(t.runs, 'round')} on {t.runner}: {a:g} to {b:g} ms before, {c:g} to {d:g} ms after.")
    parts += [listed(found)] if found else []
    if report.pace is not None and report.pace.groups:
        saved = [_saved(g.group, g.expected, g.measured, rows) for g in report.pace.groups]
        heads = ("group", "where", "units", "ms expected", "ms measured", "measured / expected")
        ids = [g.group for g in report.pace.groups]
        parts.append(table(heads, saved, ("group", "where"), caption="What each group saves", groups=ids))
    output = words_after(report.command, "-o", "--output")
    if report.model and output:
        words = ["onnxprune", "profile", report.model, output]
        plan = words_after(report.command, "--plan", "--apply")
        words += ["--plan", plan] if plan else []
        parts.append(
            commands([(words, "Times per node were not recorded; this measures them, before and after side by side:")])
        )
    if parts:
        yield Section("time", "Time", markup(parts), menu="Time")


def _facts(pace: Pace) -> list[Fact]:
    low, high = pace.interval
    measured, known = pace.graphs
    asked = [Fact("Asked", f"{pace.asked:.3g}×", note="as fast as the original")] if pace.asked > 1 else []
    return [
        *asked,
        Fact("Expected", f"{pace.expected:.3g}×", note="by the table of times, before whole models were timed"),
        Fact(
            "Measured", f"{pace.measured:.3g}×", note=f"{low:.3g} to {high:.3g} with 95 % confidence, before the repair"
        ),
        Fact(
            "Timed",
            counted(pace.rounds, "model"),
            note=f"and {counted(measured + known, 'small graph')}, on {pace.runner}",
        ),
    ]


def _saved(
    group: str, expected: float, measured: float | None, rows: Mapping[str, GroupRow]
) -> tuple[str, str, str, str, str, str]:
    g = rows.get(group)
    units = "–" if g is None else f"{g.units:,} → {g.units - g.removed:,}"
    share = "–" if measured is None or expected <= 0 else f"{measured / expected:.0%}"
    return group, "–" if g is None else g.origin, units, number(expected), number(measured), share


def _curves(pace: Pace, rows: Mapping[str, GroupRow]) -> Iterator[Section]:
    """Width against time, a line for each group."""
    drawn: list[Line] = []
    cut: list[Mark] = []
    told_rows, ids = [], []
    for c in pace.curves:
        g = rows.get(c.group)
        if g is None:
            continue
        marks = [
            Mark(
                (g.units - p.removed) / max(g.units, 1),
                p.ms,
                f"{g.origin} ({g.id}): {g.units - p.removed:,} of {g.units:,} units, {milliseconds(p.ms)}",
            )
            for p in c.points
        ]
        drawn.append(Line(tuple(marks), "curve", c.group))
        cut += [m for m, p in zip(marks, c.points, strict=True) if p.removed == g.removed and g.removed]
        told_rows.append(_at_widths(c, g))
        ids.append(c.group)
    if not drawn:
        return
    drawn += [Line(tuple(cut), "s2", is_line=False)] if cut else []
    about = f"How long the layers of {counted(len(ids), 'group')} take, by the share of the group's units that is left"
    legend = (("curve", "a group"), *((("s2", "the width that was chosen"),) if cut else ()))
    svg = lines(drawn, about, "share of the group's units left", "ms of its layers")
    heads = ("group", "where", "units", "ms whole", *(f"about {s:.0%}" for s in SHARES), "ms as chosen")
    body = markup(
        [
            picture(svg, about, legend, hint="Choose a line to see its group."),
            table(heads, told_rows, ("group", "where"), caption="Width against time", groups=ids),
        ]
    )
    lead = (
        "How long the layers take whose sizes follow a group, when that group alone shrinks; by the table of times. "
        "Steps are where kernels work in blocks."
    )
    yield Section("time-widths", "Width against time", body, lead, "Width and time")


def _at_widths(curve: TimeCurve, g: GroupRow) -> list[str]:
    near = [min(curve.points, key=lambda p, at=(1 - s) * g.units: abs(p.removed - at)) for s in SHARES]  # type: ignore[misc]
    chosen = next((p for p in curve.points if p.removed == g.removed), None)
    row = [curve.group, g.origin, f"{g.units:,}", number(curve.points[0].ms)]
    row += [f"{number(p.ms)} ({g.units - p.removed:,} left)" for p in near]
    return [*row, "–" if chosen is None else f"{number(chosen.ms)} ({g.units - g.removed:,} left)"]
