"""Numbers as sentences have them."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """A number of something, in the singular where it is one: `1 place`, `1,200 places`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def were(count: int, what: str) -> str:
    """The same with its verb: `1 place was`, `3 places were`."""
    return f"{counted(count, what)} {'was' if count == 1 else 'were'}"
