"""Gates: what must hold of a finished model, measured against the original, each with one line that says how it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune import runtime
from onnxprune.analyse.feeds import load_data, samples_of
from onnxprune.analyse.samples import Samples
from onnxprune.calibrate.answers import answers, other_classes
from onnxprune.calibrate.damage import NAMED, Outputs, angle
from onnxprune.calibrate.judging import judged_by
from onnxprune.calibrate.metric import scorer
from onnxprune.errors import BadInputError
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.pipeline.config import Gates, limit_of
from onnxprune.report.values import Latency
from onnxprune.words import counted


@dataclass(frozen=True)
class Gate:
    """One gate, judged.

    name: as in the config.
    limit: what the config asks for, as it says it.
    measured: what was measured, in the gate's unit; null where it is not finite.
    is_passed: does it hold?
    line: one sentence.
    """

    name: str
    limit: float | str
    measured: float | None
    is_passed: bool
    line: str


def judge_gates(
    gates: Gates,
    original: LoadedModel,
    finished: Model,
    *,
    sizes: tuple[int, int],
    latency: Latency | None,
    data: Path | None,
) -> tuple[Gate, ...]:
    """All gates that the config has, in its order. sizes: bytes of both files. latency: where a gate needs it. data: inputs to judge on.

    Raises `BadInputError` where one cannot be judged.
    """
    found: list[Gate] = []
    if gates.min_speedup is not None:
        assert latency is not None
        low, high = latency.interval
        text = f"{latency.speedup:.3g} times as fast (95 % certain: {low:.3g} to {high:.3g}), at least {gates.min_speedup:g} wanted"
        found.append(
            _gate("min_speedup", gates.min_speedup, latency.speedup, latency.speedup >= gates.min_speedup, text)
        )
    if gates.max_latency is not None:
        assert latency is not None
        text = f"{latency.after:.4g} ms a run, at most {gates.max_latency:g} wanted"
        found.append(_gate("max_latency", gates.max_latency, latency.after, latency.after <= gates.max_latency, text))
    if gates.max_size is not None:
        limit = limit_of(gates.max_size, sizes[0])
        share = f" ({limit:,.0f})" if isinstance(gates.max_size, str) else ""
        text = f"{sizes[1]:,} bytes of the original's {sizes[0]:,}, at most {gates.max_size}{share} wanted"
        found.append(_gate("max_size", gates.max_size, sizes[1], sizes[1] <= limit, text))
    if gates.max_drop is None and gates.min_agreement is None and gates.fidelity is None:
        return tuple(found)
    if data is None:
        wanted = next(n for n in ("max_drop", "min_agreement", "fidelity") if getattr(gates, n) is not None)
        raise BadInputError(
            f"The gate {wanted} compares answers: give inputs, with 'data:' in the model or in its gates."
        )
    compared = Compared(original, finished, data)
    on = counted(compared.count, "sample")
    if gates.max_drop is not None:
        drop = compared.drop(gates.metric)
        text = f"{drop:.4g} lost ({gates.metric}) on {on}, at most {gates.max_drop:g} wanted"
        found.append(_gate("max_drop", gates.max_drop, drop, drop <= gates.max_drop, text))
    if gates.min_agreement is not None:
        equal = compared.agreement()
        text = f"{equal:.4g} of the answers on {on} are the original's, at least {gates.min_agreement:g} wanted"
        found.append(_gate("min_agreement", gates.min_agreement, equal, equal >= gates.min_agreement, text))
    if gates.fidelity is not None:
        cosine = compared.fidelity()
        text = f"cosine similarity {cosine:.4g} to the original's outputs on {on}, at least {gates.fidelity:g} wanted"
        found.append(_gate("fidelity", gates.fidelity, cosine, cosine >= gates.fidelity, text))
    return tuple(found)


def _gate(name: str, limit: float | str, measured: float, is_passed: bool, text: str) -> Gate:
    finite = float(measured) if np.isfinite(measured) else None
    return Gate(name, limit, finite, bool(is_passed), f"{name}: {text}")


class Compared:
    """What both models give for the same inputs. count: samples."""

    def __init__(self, original: LoadedModel, finished: Model, data: Path) -> None:
        inputs = runtime.graph_inputs(original.proto)
        self.data = data
        self.samples: Samples = samples_of(
            load_data(data, inputs, labels=True), inputs, model=runtime.Session(original, what="the original")
        )
        self.count = self.samples.count
        self.judged = judged_by(original, lambda name: False)
        models: list[tuple[str, Model]] = [("the original", original), ("the finished model", finished)]
        self.wanted, self.found = answers(self.judged, models, self.samples.feeds)

    def _by(self, metric: Callable[[Outputs, Outputs], float]) -> float:
        if not self.judged.tensors:
            raise BadInputError(
                "No output of the model holds numbers of a fixed size, so answers cannot be compared: judge with a metric of yours."
            )
        return self.judged.by_tensors(metric)(self.wanted, self.found)

    def agreement(self) -> float:
        """Share of equal top classes."""
        others = other_classes(self.judged, self.wanted, self.found)
        if others is None:
            raise BadInputError(
                "The gate min_agreement needs an output with classes along its last axis; judge with fidelity or max_drop instead."
            )
        return 1 - others

    def fidelity(self) -> float:
        """Cosine similarity, the mean over samples, of the worst output."""
        return 1 - self._by(angle)

    def drop(self, metric: str) -> float:
        """How much worse the finished model is, in the metric's unit."""
        if metric in NAMED:
            return self._by(NAMED[metric])
        score = scorer(metric, self.samples, self.judged, self.samples.own)
        before, after = score(self.wanted), score(self.found)
        if not np.isfinite(before):
            raise BadInputError(f"The metric {metric} gives {before} for the original; it must be a finite number.")
        return before - after if np.isfinite(after) else float("inf")
