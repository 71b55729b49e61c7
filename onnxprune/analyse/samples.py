"""Inputs to calibrate and to judge with."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.analyse.sources import Kind
from onnxprune.groups.observation import Feeds


@dataclass(frozen=True)
class Samples:
    """Calibration inputs, in portions that are run at once.

    feeds: the portions, by input name. sizes: samples in each. held: whether each is held out, that is, kept out of every fit and
    used to judge with.
    given: so many portions, the first ones, are the user's; the others were made from them (`analyse/feeds.py`).
    labels: other arrays that came with the user's portions.
    unseen: samples set aside, which no step looks at until finished models are judged (`--max-drop` only); source_of: there, the number
    of the source of each portion, in an order of chance.
    held_by, sources: what is held out as a whole (`analyse/sources.py`), and how many of these there are and are held out; None by sample.
    """

    feeds: tuple[Feeds, ...]
    held: tuple[bool, ...]
    sizes: tuple[int, ...]
    given: int
    labels: tuple[Feeds, ...] = ()
    unseen: Samples | None = None
    held_by: Kind = "sample"
    sources: tuple[int, int] | None = None
    source_of: tuple[int, ...] = ()

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
