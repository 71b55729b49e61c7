"""A page for people: one HTML file without anything from elsewhere, made of sections.

    from onnxprune.report.page import Point, page, tradeoff
    text = page("Two models", [tradeoff([Point("a", 0.5, 0.01), Point("b", 0.4, 0.03)], "MACs kept", "divergence")])

Every text may come from a model's file, where names can be anything: templates escape all of it, data in JSON is escaped too, and the
page's content security policy lets nothing run or load but its own script and style. Charts are drawn by pygal, templates by jinja2,
graphs are laid out by fast-sugiyama; all three are imported when a page is made.
"""

from onnxprune.report.page.charts import Bar, Line, Mark, bars, dots, lines
from onnxprune.report.page.parts import Fact, Section, command, facts, notes, picture, table
from onnxprune.report.page.shell import page
from onnxprune.report.page.tradeoff import Point, tradeoff

__all__ = [
    "Bar",
    "Fact",
    "Line",
    "Mark",
    "Point",
    "Section",
    "bars",
    "command",
    "dots",
    "facts",
    "lines",
    "notes",
    "page",
    "picture",
    "table",
    "tradeoff",
]
