"""The building blocks of a page: sections, facts, tables, sentences, commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from onnxprune.report.page.charts import Bar, bars, gathered
from onnxprune.report.page.text import short
from onnxprune.words import counted

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

ROWS = 150  # of a table, at most
MANY = 2000  # of one that is the only place where all of its rows are
Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    id: its anchor: letters, digits and hyphens. title: the heading. body: HTML, made by this package. lead: a sentence under the heading.
    menu: what the list of sections calls it; empty: not in it.
    """

    id: str
    title: str
    body: Markup
    lead: str = ""
    menu: str = ""


@dataclass(frozen=True)
class Fact:
    """A number of a model's, before and after.

    name: what it is. after: now, in words. before: of the original, in words; empty where there is only one. change: how much more or less.
    tone: is the change good? note: more of it, such as an interval. share: after / before, drawn as a bar; None: no bar.
    """

    name: str
    after: str
    before: str = ""
    change: str = ""
    tone: Tone = "plain"
    note: str = ""
    share: float | None = None


@cache
def environment() -> Environment:
    """The templates of this package; everything that is not markup already is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("onnxprune.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["short"] = short
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made


def rendered(template: str, **values: Any) -> Markup:
    """A template as markup."""
    from markupsafe import Markup

    return Markup(environment().get_template(template).render(**values))


def markup(parts: Iterable[Markup]) -> Markup:
    """Several parts in a row."""
    from markupsafe import Markup

    return Markup("\n").join(parts)


def facts(found: Sequence[Fact]) -> Markup:
    """Large numbers in a row of cards."""
    return rendered("facts.html", facts=found)


def notes(texts: Sequence[str], kind: Literal["warning", "good", "plain"] = "plain") -> Markup:
    """Sentences, each in a box of its own."""
    return rendered("notes.html", texts=[short(t, 2000) for t in texts], kind=kind)


def listed(texts: Sequence[str]) -> Markup:
    """Sentences in a list."""
    return rendered("list.html", texts=[short(t, 2000) for t in texts])


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[str] = (),
    *,
    caption: str,
    groups: Sequence[str] = (),
    most: int = ROWS,
) -> Markup:
    """left: heads of the columns of text; the others are numbers. groups: by row, the id of a group that it leads to in the graph."""
    shown = [[short(str(cell), 300) for cell in row] for row in rows[:most]]
    return rendered(
        "table.html",
        heads=heads,
        rows=shown,
        left=set(left),
        caption=caption,
        groups=groups,
        more=len(rows) - len(shown),
    )


def picture(
    svg: Markup, caption: str, legend: Sequence[tuple[str, str]] = (), *, note: str = "", hint: str = ""
) -> Markup:
    """A chart. legend: class of a series (`s0`, `s1`, …) and what it is. note: a sentence below; hint: one that is not printed."""
    return rendered("picture.html", svg=svg, caption=caption, legend=legend, note=note, hint=hint)


def bars_picture(found: Sequence[Bar], about: str, y_title: str, what: str, parts: tuple[str, str]) -> Markup:
    """Bars, neighbours together where there are many. what: each bar is, in the singular. parts: what is kept, what is gone."""
    shown, each = gathered(found, what, parts)
    note = ""
    if each > 1:
        note = f"{counted(len(found), what)} in {counted(len(shown), 'bar')}, {each} neighbours in each; the table has every one."
    legend = (("s0", parts[0]), ("s1", parts[1]))
    return picture(bars(shown, about, y_title, is_dense=each > 1), about, legend, note=note)


def command(words: Sequence[str], about: str) -> Markup:
    """A command to copy, quoted for a shell."""
    return rendered("command.html", text=short(shlex.join(words), 4000), about=about)
