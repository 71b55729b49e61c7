"""What a model computed for one repair, remembered for the next one.

Every repair runs the original part by part (`calibrate/stepwise.py`), and mostly in the same parts. A part is found again by its nodes and
by what is read of it, so that a repair gives the same bits with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

ROOM = 1 << 29
"""Bytes that several repairs may remember; what takes more is computed again."""

Values = list[Any]


class Recall:
    """room: bytes to remember at most."""

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self._known: dict[Hashable, list[Values]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which finds out by itself."""
        return {"room": self.room + self._taken(), "_known": {}}

    def _taken(self) -> int:
        return sum(_bytes(values) for runs in self._known.values() for values in runs)

    def runs(self, part: Hashable, run: Callable[[], Iterator[Values]]) -> Iterator[Values]:
        """What a part gives, sample by sample: as it is known, or as `run` computes it now."""
        known = self._known.get(part)
        if known is not None:
            yield from (list(values) for values in known)
            return
        found: list[Values] | None = [] if self.room > 0 else None
        taken = 0
        for values in run():
            if found is not None:
                taken += _bytes(values)
                if taken > self.room:
                    found = None
                else:
                    found.append(list(values))
            yield values
        if found is not None:
            self._known[part] = found
            self.room -= taken


def _bytes(values: Values) -> int:
    """Sequences and texts count as more than there ever is."""
    if any(v is not None and (not isinstance(v, np.ndarray) or v.dtype == object) for v in values):
        return ROOM + 1
    return sum(v.nbytes for v in values if v is not None)


NOTHING = Recall(0)
