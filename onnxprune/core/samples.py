"""Calibration inputs, in the portions in which they are run."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.core.observation import Feeds


@dataclass(frozen=True)
class Samples:
    """feeds: each holds `sizes[k]` samples; held[k]: kept out of every fit, to judge with. The first `given` are the user's,
    the others are made from them (see `stages/feeds.py`). labels: other arrays that came with the user's portions.
    """

    feeds: tuple[Feeds, ...]
    held: tuple[bool, ...]
    sizes: tuple[int, ...]
    given: int
    labels: tuple[Feeds, ...] = ()

    @property
    def count(self) -> int:
        """Samples of the user's."""
        return sum(self.sizes[: self.given])
