"""The page of a report of `profile`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from onnxprune.report.drawing import Graph
from onnxprune.report.page.charts import Line, Mark, lines
from onnxprune.report.page.common import commands
from onnxprune.report.page.graph import NONE, GroupCard, Look, graph_section
from onnxprune.report.page.parts import Fact, Section, facts, markup, notes, picture, table
from onnxprune.report.page.text import amount, milliseconds, percent
from onnxprune.report.profile import ModelProfile, ProfileReport
from onnxprune.report.profile_lines import finding_line, sections
from onnxprune.words import counted

BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1)  # of the run: where the levels of nodes begin
LEGEND = {
    0: "under 0.1 % of the run",
    1: "0.1 %",
    2: "0.3 %",
    3: "1 %",
    4: "3 %",
    5: "10 % or more",
    NONE: "not timed by itself",
}
DRAWN = 400  # kernels in the picture


def profile_sections(report: ProfileReport) -> Iterator[Section]:
    """All of it, in order."""
    if report.findings:
        texts = [finding_line(f).removeprefix("- ").replace("\n  -> ", " → ") for f in report.findings]
        yield Section("findings", "What to do", notes(texts), menu="What to do")
    yield _summary(report)
    if report.graph is not None:
        yield _graph(report, report.graph)
    yield _rates(report.pruned or report.model)
    for k, part in enumerate(sections(report, None)):
        if part.rows:
            *model, what = part.title.rsplit(": ", 1)
            title = ": ".join([*(PurePath(m).name for m in model), what])
            title = title if model else title[:1].upper() + title[1:]
            body = table(part.heads, part.rows, part.left, caption=title)
            yield Section(f"part{k}", title, body, menu=_menu(part.title))
    if report.command:
        body = commands([(report.command, "The command that did this:")])
        yield Section("repeat", "Repeat it", body, menu="Repeat")


def _menu(title: str) -> str:
    """The part of a title behind the model's name, and before an explanation."""
    text = title.rsplit(": ", 1)[-1].split(" (", 1)[0].split(", ", 1)[0]
    return text[:1].upper() + text[1:]


def _summary(report: ProfileReport) -> Section:
    first, last = report.model, report.pruned
    shown = last or first
    share = last.run_ms / first.run_ms if last is not None and first.run_ms else None
    found = [
        Fact(
            "Time per run",
            milliseconds(shown.run_ms),
            f"{milliseconds(first.run_ms)} before" if last is not None else "",
            percent(share - 1) if share is not None else "",
            "good" if share is not None and share < 1 else "plain",
            f"{milliseconds(shown.measured_ms)} as timed from outside; {counted(shown.runs, 'run')}",
            share,
        )
    ]
    macs = last.macs / first.macs if last is not None and first.macs else None
    before = f"{amount(first.macs)} before" if last is not None else ""
    found.append(
        Fact(
            "MACs",
            amount(shown.macs),
            before,
            percent(macs - 1) if macs is not None else "",
            "good" if macs is not None and macs < 1 else "plain",
            share=macs,
        )
    )
    saved = shown.part("prunable")
    note = f"{milliseconds(saved)} at most, if everything went that may"
    found.append(
        Fact(
            "Pruning could save",
            f"{saved / max(shown.run_ms, 1e-12):.0%}",
            note=note,
            share=saved / max(shown.run_ms, 1e-12),
        )
    )
    outside = shown.outside_ms / max(shown.run_ms, 1e-12)
    found.append(
        Fact(
            "Outside of kernels", f"{outside:.0%}", note="inputs, outputs, and the start of every kernel", share=outside
        )
    )
    found.append(
        Fact(
            "Kernels",
            f"{len(shown.kernels):,}",
            f"{len(first.kernels):,} before" if last is not None else "",
            note=f"loaded in {milliseconds(shown.load_ms)}",
        )
    )
    sizes = ", ".join(f"{k} {'×'.join(map(str, v)) or 'scalar'}" for k, v in report.inputs.items())
    blocks = f"; blocks of {report.block} channels" if report.block else ""
    where = f"{report.engine}; inputs {sizes}; a copy moves {report.gb_per_s:.1f} GB/s{blocks}."
    return Section("summary", "At a glance", markup([facts(found), notes([where])]), menu="Summary")


def _graph(report: ProfileReport, graph: Graph) -> Section:
    """Of the first model; a fused kernel's time stands at its main node."""
    model = report.model
    times: dict[str, float] = {}
    fused: dict[str, str] = {}
    for k in model.kernels:
        if k.node:
            times[k.node] = times.get(k.node, 0.0) + k.ms
            fused.update(dict.fromkeys(k.fused, k.name))
    after = {c.node: c for c in report.compared if c.node}
    levels, labels, more = [], [], []
    for n in graph.nodes:
        ms = times.get(n.key)
        share = 0.0 if ms is None else ms / max(model.run_ms, 1e-12)
        levels.append(NONE if ms is None else sum(share >= b for b in BOUNDS))
        labels.append("" if ms is None else f"{share:.1%}")
        rows = [] if ms is None else [("time", f"{milliseconds(ms)} ({share:.1%} of the run)")]
        if n.key in fused:
            rows.append(("time", f"within {fused[n.key]}"))
        if n.key in after:
            c = after[n.key]
            rows.append(("after", f"{milliseconds(c.after_ms)}; {milliseconds(c.expected_ms)} by what is left of it"))
            rows += [("why", c.reason)] if c.reason else []
        more.append(tuple(rows))
    cards = {
        t.name: GroupCard((("time", f"{milliseconds(t.ms)} ({t.share:.1%} of the run)"), ("from", t.about)))
        for t in model.groups
    }
    there = set(levels)
    look = Look(levels, {k: v for k, v in LEGEND.items() if k in there}, cards, more, labels)
    return graph_section(
        graph,
        look,
        "Graph",
        f"Every node of {model.model} in the colour of its time; what ONNX Runtime fused stands at the main node.",
    )


def _rates(model: ModelProfile) -> Section:
    """How the time of a run adds up over its kernels, the longest first."""
    marks, sum_ms = [Mark(0, 0, "no kernel")], 0.0
    for k, kernel in enumerate(model.kernels[:DRAWN], 1):
        sum_ms += kernel.ms
        share = sum_ms / max(model.run_ms, 1e-12)
        marks.append(
            Mark(
                k,
                100 * share,
                f"{kernel.operator} {kernel.name}: {milliseconds(kernel.ms)}; {share:.0%} of the run up to here",
            )
        )
    about = "How much of the run the longest kernels take together"
    svg = lines([Line(tuple(marks), "s0")], about, "kernels, the longest first", "% of the run")
    most = next((k for k, m in enumerate(marks) if m.y >= 50), None)
    lead = (
        f"{most} of {counted(len(model.kernels), 'kernel')} take half of the run."
        if most
        else f"{counted(len(model.kernels), 'kernel')}."
    )
    return Section("sum", "How the time adds up", picture(svg, about), lead, "Sum")
