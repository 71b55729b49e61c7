"""The page of a report of `sparsify`."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.report import lines as told
from onnxprune.report.drawing import Graph
from onnxprune.report.page.charts import Bar
from onnxprune.report.page.common import commands, cost_fact, latency_fact, seconds_section
from onnxprune.report.page.graph import NONE, Look, graph_section, level_of
from onnxprune.report.page.parts import MANY, Fact, Section, bars_picture, facts, listed, markup, notes, table
from onnxprune.report.page.text import amount, bytes_of, number, short
from onnxprune.report.sparsity import SparseLayer, SparsityReport
from onnxprune.words import counted

LEGEND = {
    0: "no zeros",
    1: "up to a quarter zero",
    2: "up to half",
    3: "up to three quarters",
    4: "more",
    5: "all zero",
    NONE: "no weight was made sparse",
}


def sparsity_sections(report: SparsityReport) -> Iterator[Section]:
    """All of it, in order."""
    yield _summary(report)
    if report.graph is not None:
        yield _graph(report, report.graph)
    yield from _weights(report)
    yield _left(report)
    if report.pruned is not None:
        rows = [(g.origin, g.kind, f"{g.units:,}", f"{g.removed:,}") for g in report.pruned.groups]
        parts = [listed([f"Removed: {told.pruned_line(report)}."])]
        if rows:
            parts.append(
                table(
                    ("where", "kind", "units", "removed"),
                    rows,
                    ("where", "kind"),
                    caption="Units that were zero or unread",
                )
            )
        yield Section("removed", "Then removed", markup(parts), menu="Removed")
    if report.command:
        body = commands([(report.command, "The command that did this:")])
        yield Section("repeat", "Repeat it", body, menu="Repeat")
    yield seconds_section(report.seconds)


def _summary(report: SparsityReport) -> Section:
    z, d = report.zeros, report.difference
    share = z.after / max(z.weights, 1)
    found = [
        Fact(
            "Zeros",
            f"{share:.1%}",
            f"{z.before / max(z.weights, 1):.1%} before",
            note=f"{z.after:,} of {z.weights:,} weights in {counted(len(report.layers), 'layer')}",
            share=share,
        ),
        cost_fact("File", report.bytes.file, bytes_of),
    ]
    if report.bytes.compressed is not None:
        found.append(cost_fact("File, zipped", report.bytes.compressed, bytes_of))
    if report.latency_ms is not None:
        found.append(latency_fact(report.latency_ms))
    source = (
        "made-up inputs, which say nothing of real ones"
        if d.made_up
        else "held-out samples"
        if d.held_out
        else "your samples"
    )
    found.append(Fact("Divergence", number(d.divergence), note=f"from the original, on {d.samples:,} {source}"))
    if d.top1 is not None:
        found.append(Fact("Same answer", f"{1 - d.top1:.1%}", note="of the samples have the top class that they had"))
    lines = [f"Asked for: {report.target}, by {report.criterion}.", f"Outputs differ {told.difference_line(report)}."]
    parts = [facts(found), notes([*lines, *report.runtimes])]
    return Section("summary", "Before and after", markup(parts), menu="Summary")


def _graph(report: SparsityReport, graph: Graph) -> Section:
    by_node: dict[str, list[SparseLayer]] = {}
    for x in report.layers:
        by_node.setdefault(x.node, []).append(x)
    levels, labels, more = [], [], []
    for n in graph.nodes:
        own = by_node.get(f"{n.op.rsplit('::', 1)[-1]} '{n.name or n.key}'", [])
        weights, zeros = sum(x.weights for x in own), sum(x.zeros.after for x in own)
        share = zeros / weights if weights else 0.0
        levels.append(level_of(share) if own else NONE)
        labels.append(f"{share:.0%}" if own else "")
        more.append((("zeros", f"{zeros:,} of {weights:,} ({share:.1%})"),) if own else ())
    there = set(levels)
    look = Look(levels, {k: v for k, v in LEGEND.items() if k in there}, facts=more, labels=labels)
    return graph_section(graph, look, "Graph", "Every node in the colour of the share of its weights that is zero.")


def _weights(report: SparsityReport) -> Iterator[Section]:
    drawn = [
        Bar(
            x.weights - x.zeros.after,
            x.zeros.after,
            f"{short(x.tensor, 80)}: {x.zeros.after / max(x.weights, 1):.1%} of {amount(x.weights)} zero",
        )
        for x in report.layers
    ]
    about = f"Weights of {counted(len(drawn), 'layer')}, zero and not"
    heads = ("weight", "shape", "zeros before", "after", "share", "how")
    parts = [
        bars_picture(drawn, about, "weights", "layer", ("not zero", "zero")),
        table(heads, told.layer_rows(report), ("weight", "shape", "how"), caption="Weights", most=MANY),
    ]
    yield Section("weights", "Weights", markup(parts), menu="Weights")


def _left(report: SparsityReport) -> Section:
    rows = [(x.tensor, x.node, x.reason) for x in report.left_alone]
    heads = ("weight", "node", "why")
    body = table(heads, rows, heads, caption="Left alone") if rows else listed(["Nothing."])
    return Section("left", "Left alone", body, menu="Left alone")
