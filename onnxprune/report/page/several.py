"""The pages of `explore` and `compare`: several models side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from onnxprune.report.comparison import Comparison
from onnxprune.report.explore import ExploreReport
from onnxprune.report.front import MODEL_COLUMNS, POINT_COLUMNS, model_rows, point_rows
from onnxprune.report.page.common import seconds_section
from onnxprune.report.page.parts import Fact, Section, facts, listed, markup, notes, table
from onnxprune.report.page.text import number
from onnxprune.report.page.tradeoff import Kind, Point, tradeoff


def explore_sections(report: ExploreReport) -> Iterator[Section]:
    """All of it, in order."""
    points = report.points
    warned = list(dict.fromkeys(f"Point {p.number}: {text}" for p in points for text in p.warnings))
    refused = [f"{', '.join(f'{k} {v:g}' for k, v in u.target.items())}: {u.reason}" for u in report.unreached]
    if warned or refused:
        yield Section("warnings", "Read first", notes([*warned, *refused], "warning"))
    best = [p for p in points if p.is_best]
    found = [
        Fact("Models", str(len(points)), note="each proved equal to the masked original, and repaired"),
        Fact("Best", str(len(best)), note="no other is as small, as fast and as good"),
    ]
    if points:
        least = min(points, key=lambda p: p.share)
        found.append(Fact("Smallest", f"{least.share:.1%}", note="of the MACs", share=least.share))
    yield Section("summary", "Summary", facts(found))
    judged = [p for p in points if p.drop is not None]
    if len(judged) > 1:
        kind: dict[bool, Kind] = {True: "good", False: "other"}
        shown = [Point(f"point {p.number}", p.share, p.drop or 0.0, kind[p.is_best], _asked(p.target)) for p in judged]
        words: dict[Kind, str] = {"good": "best: no other is as small, as fast and as good", "other": "another one is"}
        yield tradeoff(shown, "share of the MACs", f"drop ({report.metric})", words=words)
    timed = [p for p in judged if p.latency_ms is not None]
    if len(timed) > 1:
        shown = [
            Point(f"point {p.number}", p.latency_ms.after, p.drop or 0.0, note=_asked(p.target))
            for p in timed
            if p.latency_ms is not None
        ]
        yield tradeoff(shown, "ms per run", f"drop ({report.metric})", title="By time", id="by-time")
    rows = [list(r) for r in point_rows(report)]
    parts = [table(POINT_COLUMNS, rows, ("asked", "best"), caption="The models")]
    parts.append(
        listed(["onnxprune explore … --pick N writes one of them; each has a plan, which prune --apply replays."])
    )
    yield Section("models", "The models", markup(parts), menu="Models")
    yield seconds_section(report.seconds)


def _asked(target: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in target.items())


def comparison_sections(found: Comparison) -> Iterator[Section]:
    """All of it, in order."""
    first, *others = found.models
    if found.made_up:
        text = "No inputs were given, so made-up ones were used: what outputs differ on them says little. Give some with --data."
        yield Section("warnings", "Read first", notes([text], "warning"))
    remarks = [f"{m.model}: {m.note}" for m in found.models if m.note]
    cards = []
    for m in others:
        share = m.bytes / max(1, first.bytes)
        cards.append(
            Fact(
                PurePath(m.model).name,
                f"{share:.1%}",
                note="of the first model's bytes"
                + ("" if m.divergence is None else f"; divergence {number(m.divergence)}"),
                share=share,
            )
        )
    if cards:
        yield Section("summary", "Against the first", facts(cards), lead=f"The first is {first.model}.")
    shown = [
        Point(
            m.model,
            float(m.bytes if m.median_ms is None else m.median_ms),
            m.divergence or 0.0,
            "original" if m is first else "other",
        )
        for m in found.models
        if m.divergence is not None or m is first
    ]
    if len(shown) > 1:
        cost = "bytes" if first.median_ms is None else "ms per run"
        yield tradeoff(shown, cost, "divergence from the first", words={"original": "the first", "other": "the others"})
    rows = [list(r) for r in model_rows(found)]
    parts = [table(MODEL_COLUMNS, rows, ("model",), caption="The models")]
    said = [f"Outputs on {found.samples:,} {'made-up ' if found.made_up else ''}samples."]
    said += [f"Timed by {found.runner}."] if found.runner else []
    parts.append(listed([*said, *remarks]))
    yield Section("models", "The models", markup(parts), menu="Models")
