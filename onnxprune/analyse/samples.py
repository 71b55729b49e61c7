"""Calibration inputs, in the portions in which they are run."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.groups.observation import Feeds


@dataclass(frozen=True)
class Samples:
    """feeds: each holds `sizes[k]` samples; held[k]: kept out of every fit, to judge with. The first `given` are the user's,
    the others are made from them (see `analyse/feeds.py`). labels: other arrays that came with the user's portions. unseen: set
    aside: no step looks at them until the finished model is judged (`--max-drop` only).
    """

    feeds: tuple[Feeds, ...]
    held: tuple[bool, ...]
    sizes: tuple[int, ...]
    given: int
    labels: tuple[Feeds, ...] = ()
    unseen: Samples | None = None

    @property
    def count(self) -> int:
        """Samples of the user's."""
        return sum(self.sizes[: self.given])

    @property
    def own(self) -> list[int]:
        """The user's portions."""
        return list(range(self.given))

    @property
    def own_held(self) -> list[int]:
        """Those of them that are held out; all, where none is."""
        return [k for k in self.own if self.held[k]] or self.own
