"""Checks of options: each takes an option's name as people write it and a value, and gives the value, or one sentence of what is wrong.

Nothing is loaded for them, so that a wrong option is said at once; no numpy either, so that `--help` is quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from math import isfinite
from operator import index
from pathlib import Path
from typing import Any, TypeAlias

from onnxprune.errors import BadInputError, quoted
from onnxprune.model.files import instead

Check: TypeAlias = Callable[[str, Any], Any]
LARGEST = (1 << 31) - 1  # of an axis


def optional(check: Check) -> Check:
    """None goes, too."""
    return lambda flag, value: None if value is None else check(flag, value)


def one_of(*choices: str) -> Check:
    """One of these words."""
    *others, last = choices
    listed = f"{', '.join(others)} or {last}" if others else last

    def check(flag: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise BadInputError(f"Unknown {flag} {_shown(value)}; choose {listed}.")
        return value

    return check


def whole_number(least: int, note: str = "") -> Check:
    """An integer of at least so much. note: said behind the number, such as ` (off)`."""

    def check(flag: str, value: Any) -> int:
        try:
            number = index(value)
        except TypeError:
            number = None
        if number is None or isinstance(value, bool):
            raise BadInputError(f"{flag} must be a whole number, {least} or more, not {_shown(value)}.")
        if number < least:
            wanted = f"{least}{note} or more" if note else f"at least {least}"
            raise BadInputError(f"{flag} must be {wanted}, not {number}.")
        return number

    return check


def whole_numbers(least: int) -> Check:
    """Integers of at least so much, one or several."""

    def check(flag: str, value: Any) -> tuple[int, ...]:
        found = value if isinstance(value, list | tuple) else (value,)
        return tuple(whole_number(least)(flag, x) for x in found)

    return check


def parse_numbers(flag: str) -> Callable[[str | None], tuple[int, ...]]:
    """`"1,2,4"` as the command line has it -> `(1, 2, 4)`."""

    def parse(text: str | None) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in (text or "").split(",")) if text else ()
        except ValueError:
            raise BadInputError(f"{flag} takes whole numbers such as 1,2,4, not {_shown(text)}.") from None

    return parse


def number(least: float, most: float = float("inf"), *, above: bool = False, span: str = "") -> Check:
    """A finite number in [least, most]. above: `least` itself is not allowed. span: how a message puts that."""

    def check(flag: str, value: Any) -> float:
        found = float_of(flag, value)
        if not (least < found if above else least <= found) or not found <= most or not isfinite(found):
            raise BadInputError(f"{flag} must be {span or f'{least:g} or more'}, not {value}.")
        return found

    return check


def float_of(flag: str, value: Any) -> float:
    """A number as Python's float. Raises `BadInputError` for what is none."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadInputError(f"{flag} must be a number, such as 0.5, not {_shown(value)}.") from None


def switch(flag: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise BadInputError(f"{flag} must be True or False, not {_shown(value)}.")
    return value


def globs(flag: str, value: Any) -> tuple[str, ...]:
    """Patterns of names; a string is one of them."""
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(x, str) for x in found):
        raise BadInputError(f"{flag} takes a pattern such as 'stem*', or a list of them, not {_shown(value)}.")
    return tuple(found)


def file(flag: str, value: Any) -> str | os.PathLike[str]:
    """A path; whether there is a file is seen when it is read."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise BadInputError(f"{flag} takes the path of a file, not {_shown(value)}.")
    return value


def existing(what: str) -> Check:
    """The path of something that exists. what: what to give."""

    def check(flag: str, value: Any) -> str | os.PathLike[str]:
        path = file(flag, value)
        if not Path(path).exists():
            raise BadInputError(f"{flag} {path} does not exist; {instead(Path(path), f'give {what}.')}")
        return path

    return check


def files(flag: str, value: Any) -> tuple[str | os.PathLike[str], ...]:
    """Paths of files that exist; a single path is one of them."""
    found = (value,) if isinstance(value, str | os.PathLike) else value
    if not isinstance(found, list | tuple):
        raise BadInputError(f"{flag} takes the path of a file, or a list of them, not {_shown(value)}.")
    return tuple(existing("the path of a file")(flag, x) for x in found)


def shapes(flag: str, value: Any) -> dict[str, tuple[int, ...]]:
    """Sizes by input, such as `{"x": (1, 3, 224, 224)}`."""
    if not isinstance(value, Mapping):
        raise BadInputError(f'{flag} takes sizes by input, such as {{"x": (1, 3, 224, 224)}}, not {_shown(value)}.')
    found = {}
    for name, sizes in value.items():
        try:
            if isinstance(sizes, str) or any(isinstance(d, bool) for d in sizes):
                raise TypeError
            shape = tuple(index(d) for d in sizes)
        except TypeError:
            shape = (-1,)
        if not isinstance(name, str) or not name or any(not 1 <= d <= LARGEST for d in shape):
            raise BadInputError(
                f"{flag} of {_shown(name)} must be sizes above zero, such as (1, 3, 224, 224), not {_shown(sizes)}."
            )
        found[name] = shape
    return found


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """`["x:1,3,224,224"]` as the command line has it -> `{"x": (1, 3, 224, 224)}`."""
    found = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        try:
            shape = tuple(int(d) for d in dims.split(",") if d.strip())
        except ValueError:
            shape = (-1,)
        if not name or not shape or any(not 1 <= d <= LARGEST for d in shape):
            raise BadInputError(f"--input-shape '{text}' is not of the form name:1,3,224,224 with sizes above zero.")
        found[name] = shape
    return found


def known(names: Iterable[str], options: Iterable[str]) -> None:
    """Raise `BadInputError` for the first of the names that is no option, with the nearest one that is."""
    listed = list(options)
    for name in sorted(set(names) - set(listed)):
        near = get_close_matches(name, listed, 1)
        listing = (
            f"the nearest is '{near[0]}', of {', '.join(listed)}" if near else f"the options are {', '.join(listed)}"
        )
        raise BadInputError(f"Unknown option '{name}'; {listing}.")


def _shown(value: Any) -> str:
    """A value, fit for a message."""
    if isinstance(value, str):
        return quoted(value)
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
