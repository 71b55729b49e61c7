"""Which sizes to look at, and which point to take: a list of options, and two small languages that are never evaluated.

targets    macs=0.8,0.6,params=0.5            a name counts until the next one
pick       3                                  the point of that number
           drop<=0.01, size<=10MB             all of these conditions
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onnxprune.choose.budget import Budget
from onnxprune.choose.checks import optional, whole_number
from onnxprune.choose.field import documented, option
from onnxprune.errors import BadInputError, quoted

AT = ("macs", "params", "size", "speedup", "latency")
BOLDEST, BOLDEST_UNSEEN = 0.2, 0.6
"""The smallest share of the MACs that is looked at by default: with inputs of the user's, and without."""
MILDEST = 0.9
PICKED = ("drop", "divergence", "agreement", "macs", "params", "size", "speedup", "latency")
COSTS = ("macs", "params", "size", "latency")
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
CONDITION = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*([0-9.]+(?:e[-+]?[0-9]+)?)\s*([a-z%]*)\s*", re.IGNORECASE)
EXAMPLES = "'3', 'drop<=0.01', 'macs<=0.5', 'speedup>=1.5' or 'size<=10MB'"


def _text(flag: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise BadInputError(f"{flag} takes a number or a condition such as {EXAMPLES}, not {quoted(str(value))}.")
    parsed(str(value), flag)
    return str(value)


def _at(flag: str, value: Any) -> tuple[Budget, ...]:
    if isinstance(value, Budget):
        value = (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(x, Budget) for x in value):
        raise BadInputError(f'{flag} takes budgets, such as [Budget("macs", 0.5)].')
    for budget in value:
        if budget.metric not in AT:
            raise BadInputError(f"{flag} takes {', '.join(AT)}, not {budget.metric}.")
    return tuple(dict.fromkeys(value))


def parse_targets(texts: Iterable[str]) -> tuple[Budget, ...]:
    """`["macs=0.8,0.6,params=0.5"]` as the command line has it. Raises `BadInputError`."""
    found = []
    for text in texts:
        name = ""
        for part in text.split(","):
            before, equals, amount = part.rpartition("=")
            name = before.strip().lstrip("-").lower() if equals else name
            if name not in AT:
                raise BadInputError(
                    f"--at {quoted(text)} is not of the form macs=0.8,0.6: a name ({', '.join(AT)}), '=' and numbers between commas."
                )
            try:
                number = float(amount)
            except ValueError:
                raise BadInputError(f"--at {quoted(text)}: {quoted(amount)} is no number.") from None
            found.append(Budget(name, number))  # type: ignore[arg-type]
    return tuple(dict.fromkeys(found))


def usual_targets(points: int, has_data: bool) -> tuple[Budget, ...]:
    """Shares of the MACs from `MILDEST` down, evenly."""
    low = BOLDEST if has_data else BOLDEST_UNSEEN
    step = (MILDEST - low) / max(1, points - 1)
    return tuple(Budget("macs", round(MILDEST - k * step, 4)) for k in range(points))


@dataclass(frozen=True)
class Condition:
    """name: what of a point. sign: <=, >=, < or >. value: a share of the original's, unless `is_absolute`. text: as it was written."""

    name: str
    sign: str
    value: float
    is_absolute: bool
    text: str

    def holds(self, found: float) -> bool:
        below = found <= self.value if self.sign == "<=" else found < self.value
        above = found >= self.value if self.sign == ">=" else found > self.value
        return below if self.sign[0] == "<" else above

    def misses(self, found: float) -> float:
        """By how much, relative to what is asked."""
        lack = found - self.value if self.sign[0] == "<" else self.value - found
        return lack / max(abs(self.value), 1e-12)


def parsed(text: str, flag: str = "--pick") -> int | tuple[Condition, ...]:
    """The number of a point, or conditions. Raises `BadInputError`."""
    if text.strip().isdecimal():
        return int(text)
    found = []
    for part in text.split(","):
        match = CONDITION.fullmatch(part)
        if match is None:
            raise BadInputError(f"{flag} {quoted(text)} cannot be read at {quoted(part.strip())}; write {EXAMPLES}.")
        name, sign, amount, unit = match[1].lower(), match[2], match[3], match[4].lower()
        if name not in PICKED:
            raise BadInputError(f"{flag}: a point has no {quoted(match[1])}; it has {', '.join(PICKED)}.")
        try:
            value = float(amount)
        except ValueError:
            raise BadInputError(f"{flag} {quoted(text)}: {quoted(amount)} is no number.") from None
        found.append(_condition(name, sign, value, unit, part.strip(), flag))
    return tuple(found)


def _condition(name: str, sign: str, value: float, unit: str, text: str, flag: str) -> Condition:
    if unit == "%":
        return Condition(name, sign, value / 100, False, text)
    units = {"size": BYTES, "latency": {"ms": 1.0}, "speedup": {"x": 1.0}}.get(name, {})
    if name in ("macs", "params"):
        units = {k: v for k, v in COUNTS.items() if k}
    if not unit:
        return Condition(name, sign, value, name == "latency", text)
    if unit not in units:
        known = f"; {name} takes {', '.join(units)}" if units else f"; {name} has none"
        raise BadInputError(f"{flag} {quoted(text)}: {quoted(unit)} is no unit of {name}{known}.")
    return Condition(name, sign, value * units[unit], name != "speedup", text)


@documented
@dataclass(frozen=True)
class ExploreOptions:
    """Which sizes to look at, and which of them to take."""

    points: int = option(8, whole_number(1), "So many shares of the multiply-accumulates, evenly.", cli={"type": int})
    at: tuple[Budget, ...] = option(
        (),
        _at,
        "Other targets instead: macs, params, size, speedup or latency, each with its numbers.",
        cli={"multiple": True, "metavar": "NAME=X,X,…", "read": parse_targets},
        by_default="macs, from 0.9 to 0.2 (0.6 without --data)",
    )
    pick: str | None = option(
        None,
        optional(_text),
        "The point to write: its number, or conditions such as 'drop<=0.01' and 'size<=10MB', between commas.",
        cli={"metavar": "N|CONDITIONS"},
        by_default="none",
    )
