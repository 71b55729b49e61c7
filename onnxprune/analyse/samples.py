"""Inputs to calibrate and to judge with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from onnxprune.analyse.sources import Kind
from onnxprune.groups.observation import Feeds


@dataclass(frozen=True)
class Place:
    """What of a portion a run takes: `count` of its `of` pieces, from `first` on."""

    portion: int
    first: int = 0
    count: int = 1
    of: int = 1


@dataclass(frozen=True)
class Samples:
    """Calibration inputs, in what is run at once: portions, or parts of these (`analyse/runs.py`).

    feeds: the runs, by input name. sizes: samples in each. held: whether each is held out, that is, kept out of every fit and
    used to judge with.
    given: so many runs, the first ones, are the user's; the others were made from them (`analyse/feeds.py`).
    labels: other arrays that came with the user's runs.
    unseen: samples set aside, which no step looks at until finished models are judged (`--max-drop` only); source_of: there, the number
    of the source of each run, in an order of chance.
    held_by, sources: what is held out as a whole (`analyse/sources.py`), and how many of these there are and are held out; None by sample.
    places: of each run in its portion; none where every run is a portion.
    left_out: samples of the user's that are not used at all.
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
    places: tuple[Place, ...] = ()
    left_out: int = 0

    @property
    def count(self) -> int:
        """Samples of the user's."""
        return sum(self.sizes[: self.given])

    @property
    def own(self) -> list[int]:
        """The user's runs."""
        return list(range(self.given))

    @property
    def own_held(self) -> list[int]:
        """Those of them that are held out; all, where none is."""
        return [k for k in self.own if self.held[k]] or self.own

    def place(self, run: int) -> Place:
        """Where in its portion a run is."""
        return self.places[run] if self.places else Place(run)

    def portions(self, of: Iterable[int] | None = None) -> list[list[int]]:
        """The runs (all, or these) of each portion. Whatever leaves samples out chooses among portions: runs are cut as memory asks for."""
        found: dict[int, list[int]] = {}
        for run in range(len(self.feeds)) if of is None else of:
            found.setdefault(self.place(run).portion, []).append(run)
        return list(found.values())

    def size(self, portion: Iterable[int]) -> int:
        """Samples in some runs."""
        return sum(self.sizes[k] for k in portion)

    def only(self, runs: Iterable[int]) -> Samples:
        """These runs and no others, without labels and what is set aside."""
        few = sorted(runs)
        places = [replace(self.place(k), portion=n) for n, portion in enumerate(self.portions(few)) for k in portion]
        return replace(
            self,
            feeds=tuple(self.feeds[k] for k in few),
            held=tuple(self.held[k] for k in few),
            sizes=tuple(self.sizes[k] for k in few),
            given=sum(k < self.given for k in few),
            labels=(),
            unseen=None,
            places=tuple(places) if self.places else (),
        )
