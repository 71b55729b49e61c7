"""Names and numbers as a page shows them."""

from __future__ import annotations

import re
from math import isfinite

LONGEST = 160  # characters of a name that are shown
UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)
"""What changes a text without being seen: control characters, marks of writing direction, halves of characters."""


def short(text: str, longest: int = LONGEST) -> str:
    """A name from a file, fit to be shown: nothing unseen in it, and its middle left out where it is too long."""
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]}…{text[-longest // 3 :]}"
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def amount(value: float) -> str:
    """A large number with three digits and a unit: 6.10 M."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            scaled = value / limit
            return f"{scaled:.{max(0, 2 - len(str(int(abs(scaled)))) + 1)}f}{unit}"
    return f"{value:.3g}"


def bytes_of(value: float) -> str:
    """Bytes: 315 kB."""
    return f"{amount(value)}B" if abs(value) >= 1e3 else f"{value:.0f} B"


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def number(value: float | None) -> str:
    """Three digits; a dash where there is none."""
    return "–" if value is None or not isfinite(value) else f"{value:.3g}"


def percent(share: float) -> str:
    """A change: -51 %, with a true minus sign."""
    points = round(100 * share, 1 if abs(share) < 0.1 else 0)
    sign = "+" if points > 0 else "\N{MINUS SIGN}" if points < 0 else "±"
    return f"{sign}{abs(points):g} %"
