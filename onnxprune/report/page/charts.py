"""Charts as SVG, drawn by pygal; colours and fonts are the page's, by classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from onnxprune.report.page.text import amount, short

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 920, 340
LABEL = 17  # pixels that labels have room for: so large are those of a phone, in the units of the picture
BAR = 15  # pixels of a bar, at least, where each stands for itself
BARS = 110  # in a picture, at most
LEAST = 1e-9  # of an axis with logarithms
GEOMETRY = ("x", "y", "width", "height", "cx", "cy", "d", "transform")
DIGITS = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
UNUSED = {"reactive", "tooltip-trigger", "nofill", "always_show", "vertical"}


@dataclass(frozen=True)
class Mark:
    """A point. tip: what is said of it."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Line:
    """A line, or dots alone. style: class of its colour, such as `s0`. group: the id of the group that it is about."""

    marks: tuple[Mark, ...]
    style: str = "s0"
    group: str = ""
    is_line: bool = True
    has_dots: bool = True


@dataclass(frozen=True)
class Bar:
    """A bar of two parts. kept, gone: their lengths. tip: what is said of it. group: the id of the group that it is about."""

    kept: float
    gone: float
    tip: str
    group: str = ""


def gathered(found: Sequence[Bar], what: str, parts: tuple[str, str]) -> tuple[list[Bar], int]:
    """At most `BARS`, and how many of those that were given lie in each, added up. what: each is; parts: what is kept, what is gone."""
    each = ceil(len(found) / BARS)
    if each <= 1:
        return list(found), 1
    made = []
    for start in range(0, len(found), each):
        some = found[start : start + each]
        kept, gone = sum(b.kept for b in some), sum(b.gone for b in some)
        where = f"{what}s {start + 1:,} to {start + len(some):,} of {len(found):,}"
        made.append(Bar(kept, gone, f"{where}: {amount(kept)} {parts[0]}, {amount(gone)} {parts[1]}"))
    return made, each


def bars(found: Sequence[Bar], about: str, y_title: str = "", *, is_dense: bool = False) -> Markup:
    """What is kept below, what is gone on top; in the order given. about: the picture in words, for those who do not see it.
    is_dense: all of them in one width, however many.
    """
    import pygal

    width = WIDTH if is_dense else max(WIDTH, BAR * len(found) + 90)
    chart = pygal.StackedBar(
        **_style(width, 260), y_title=y_title or None, x_labels=["" for _ in found], show_x_labels=False
    )
    chart.add("kept", [{"value": b.kept, "label": str(k)} for k, b in enumerate(found)])
    chart.add("gone", [{"value": b.gone, "label": str(k)} for k, b in enumerate(found)])
    return _svg(chart, about, [[(b.tip, b.group) for b in found]] * 2, ["s0", "s1"], is_wide=width > WIDTH)


def lines(
    found: Sequence[Line], about: str, x_title: str, y_title: str, *, logarithmic: bool = False, height: int = HEIGHT
) -> Markup:
    """Lines over numbers. logarithmic: of y; what is not above 0 is left out."""
    import pygal

    drawn = [_clean(x, logarithmic) for x in found]
    drawn = [x for x in drawn if x.marks]
    chart = pygal.XY(
        **_style(WIDTH, height),
        x_title=x_title,
        y_title=y_title,
        dots_size=4,
        xrange=_range([m.x for x in drawn for m in x.marks]),
        **(_powers if logarithmic else _from_zero)([m.y for x in drawn for m in x.marks]),
    )
    for x in drawn:
        values = [{"value": (m.x, log10(m.y) if logarithmic else m.y), "label": str(k)} for k, m in enumerate(x.marks)]
        chart.add("", values, stroke=x.is_line, show_dots=x.has_dots)
    tips = [[(m.tip, x.group) for m in x.marks] for x in drawn]
    return _svg(chart, about, tips, [x.style for x in drawn], [x.group for x in drawn])


def dots(found: Sequence[Line], about: str, x_title: str, y_title: str) -> Markup:
    """Points over numbers, as `lines` draws them."""
    return lines(found, about, x_title, y_title)


def _clean(line: Line, logarithmic: bool) -> Line:
    least = LEAST if logarithmic else -float("inf")
    marks = tuple(m for m in line.marks if isfinite(m.x) and isfinite(m.y) and m.y >= least)
    return Line(marks, line.style, line.group, line.is_line, line.has_dots)


def _powers(values: Sequence[float]) -> dict[str, Any]:
    """A y axis of powers of ten: pygal's own logarithms would be of x, too."""
    if not values:
        return {}
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    marks = list(range(low, max(high, low + 1) + 1))
    labels = [{"value": k, "label": f"{10.0**k:g}"} for k in marks]
    return {"y_labels": labels, "range": (marks[0], marks[-1])}


def _from_zero(values: Sequence[float]) -> dict[str, Any]:
    """A y axis from 0, unless all values are far from it."""
    if not values:
        return {}
    low, high = min(values), max(values)
    room = 0.04 * (high - low or abs(high) or 1.0)
    return {"range": (0.0 if 0 <= low < high / 2 or low == high >= 0 else low - room, high + room)}


def _range(values: Sequence[float]) -> tuple[float, float] | None:
    """A little more than the values, so that no point lies on the frame."""
    if not values:
        return None
    low, high = min(values), max(values)
    room = 0.04 * (high - low or abs(high) or 1.0)
    return low - room, high + room


def _style(width: int, height: int) -> dict[str, Any]:
    from pygal.style import Style

    return {
        "style": Style(label_font_size=LABEL, major_label_font_size=LABEL, title_font_size=LABEL),
        "width": width,
        "height": height,
        "show_legend": False,
        "js": (),
        "css": (),
        "margin": 14,
        "no_data_text": "nothing to draw",
        "value_formatter": amount,
        "x_value_formatter": amount,
        "truncate_label": -1,
        "max_scale": 8,
    }


def _svg(
    chart: Any,
    about: str,
    tips: Sequence[Sequence[tuple[str, str]]],
    styles: Sequence[str],
    groups: Sequence[str] = (),
    is_wide: bool = False,
) -> Markup:
    """The chart without pygal's own style, script, date and chance id. tips: by series and value, what is said and the group."""
    from markupsafe import Markup

    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            of = child.get("class") or "" if isinstance(child.tag, str) else ""
            if not isinstance(child.tag, str) or child.tag in ("defs", "title") or "-overlay" in of:
                parent.remove(child)
    for series in root.iter("g"):
        names = (series.get("class") or "").split()
        if "series" in names:
            k = next(int(n.removeprefix("serie-")) for n in names if n.startswith("serie-"))
            series.set("class", f"series {styles[k]}")
            if groups and groups[k]:
                series.set("data-group", short(groups[k]))
            _tips(series, tips[k])
    for drawn in reversed(list(root.iter())):
        _lean(drawn)
    root.attrib.pop("id", None)
    root.set("class", "chart wide" if is_wide else "chart")
    root.set("role", "img")
    root.set("aria-label", short(about, 400))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _lean(element: ElementTree.Element) -> None:
    """Without digits, classes and empty bars that nobody sees: a page has thousands of these."""
    for name in GEOMETRY:
        value = element.get(name)
        if value is not None:
            element.set(name, DIGITS.sub(lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), value))
    for name in ("rx", "ry"):
        element.attrib.pop(name, None)
    of = element.get("class")
    if of is not None:
        kept = " ".join(c for c in of.split() if c not in UNUSED)
        element.set("class", kept)
    for child in list(element):
        if (child.tag == "rect" and child.get("height") == "0") or (child.tag == "g" and not len(child)):
            element.remove(child)


def _tips(series: ElementTree.Element, tips: Sequence[tuple[str, str]]) -> None:
    """What pygal says in `desc` elements becomes an attribute, which the page's script shows."""
    for mark in series.iter():
        told = [d for d in mark if d.tag == "desc"]
        label = next((d.text for d in told if d.get("class") == "label"), None)
        for d in told:
            mark.remove(d)
        if label is None:
            continue
        tip, group = tips[int(label)]
        mark.set("data-tip", short(tip, 400))
        if group:
            mark.set("data-group", short(group))
