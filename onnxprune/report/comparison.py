"""What `compare` found: models side by side, against the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune.model.json_text import to_json
from onnxprune.model.typed_json import plain
from onnxprune.runtime import Comparison as TimeVerdict


@dataclass(frozen=True)
class Compared:
    """One model.

    model: its path, or which of the models it is.
    bytes: of its file, with external data.
    macs: multiply-accumulates of a run; null where an operator keeps that from being known.
    params: stored weights; null as `macs` is.
    divergence: of its outputs from the first model's: Kullback-Leibler divergence of probabilities, relative square error of others.
    agreement: share (0 to 1) of samples with the first model's top class; null where the outputs have no classes.
    score: by `--metric MODULE:FUNCTION`, larger is better; left out where none was given.
    median_ms: of a run; left out without times.
    speedup: median over the rounds of first / this one; left out without times.
    interval: from where to where the speedup is certain to 95 %; left out without times.
    verdict: `faster`, `slower`, `equal` or `too noisy` to tell; left out without times.
    note: what could not be found out, and why; empty where nothing.
    """

    model: str
    bytes: int
    macs: int | None
    params: int | None
    divergence: float
    agreement: float | None
    note: str
    score: float | None = None
    median_ms: float | None = None
    speedup: float | None = None
    interval: tuple[float, float] | None = None
    verdict: TimeVerdict | None = None


@dataclass(frozen=True)
class Comparison:
    """Models side by side.

    models: in the order given; differences and ratios are from the first.
    samples: that the outputs were compared on.
    made_up: true where the user gave none.
    runner: where models were timed; null without times.
    metric: that `score` is by; null where none was given.
    """

    models: tuple[Compared, ...]
    samples: int
    made_up: bool
    runner: str | None
    metric: str | None

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON."""
        made: dict[str, Any] = plain(self)
        return made

    def to_json(self) -> str:
        """Indented JSON, as `onnxprune.report.schema("comparison")` describes it."""
        return to_json(self.to_dict())
