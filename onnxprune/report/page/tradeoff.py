"""The trade-off picture: what each model costs against what it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from onnxprune.report.page.charts import Line, Mark, lines
from onnxprune.report.page.parts import Section, markup, picture, table
from onnxprune.report.page.text import number

Kind = Literal["chosen", "good", "bad", "other", "original"]
KINDS: dict[Kind, tuple[str, str]] = {
    "chosen": ("s2", "the one that was written"),
    "good": ("s0", "keeps to what was asked"),
    "bad": ("s3", "does not"),
    "other": ("s4", "looked at"),
    "original": ("s5", "the original"),
}


@dataclass(frozen=True)
class Point:
    """One model. name: of it. cost, loss: the less the better, both. kind: what became of it. note: more of it."""

    name: str
    cost: float
    loss: float
    kind: Kind = "other"
    note: str = ""


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both (the Pareto front), by cost."""
    found: list[Point] = []
    for p in sorted(points, key=lambda p: (p.cost, p.loss)):
        if isfinite(p.cost) and isfinite(p.loss) and (not found or p.loss < found[-1].loss):
            found.append(p)
    return found


def tradeoff(
    points: Sequence[Point],
    cost: str,
    loss: str,
    *,
    title: str = "Trade-off",
    lead: str = "Down and to the left is better; the line joins the models that no other beats in both.",
    id: str = "tradeoff",
    words: dict[Kind, str] | None = None,
) -> Section:
    """A section with the picture and, below it, the points as a table.

    cost, loss: what the axes are, in words. words: what kinds of points are called, where that differs from `KINDS`.
    """
    best = front(points)
    said = {kind: (words or {}).get(kind, text) for kind, (_, text) in KINDS.items()}
    drawn = [Line(tuple(Mark(p.cost, p.loss, p.name) for p in best), "front", has_dots=False)] if len(best) > 1 else []
    there = [kind for kind in KINDS if any(p.kind == kind for p in points)]
    for kind in there:
        marks = (Mark(p.cost, p.loss, _tip(p, cost, loss)) for p in points if p.kind == kind)
        drawn.append(Line(tuple(marks), KINDS[kind][0], is_line=False))
    about = f"{len(points)} models by {cost} and {loss}; the table below has the numbers."
    svg = lines(drawn, about, cost, loss)
    legend = [(KINDS[kind][0], said[kind]) for kind in there]
    rows = [(p.name, number(p.cost), number(p.loss), said[p.kind], p.note) for p in points]
    columns = ("model", cost, loss, "what became of it", "note")
    if not any(p.note for p in points):
        rows, columns = [r[:4] for r in rows], columns[:4]  # type: ignore[misc, assignment]
    texts = ("model", "what became of it", "note")
    return Section(
        id=id,
        title=title,
        lead=lead,
        menu=title,
        body=markup([picture(svg, about, legend), table(columns, rows, texts, caption=title)]),
    )


def _tip(p: Point, cost: str, loss: str) -> str:
    note = f"; {p.note}" if p.note else ""
    return f"{p.name}: {cost} {number(p.cost)}, {loss} {number(p.loss)}{note}"
