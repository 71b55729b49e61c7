"""The candidates of `--max-drop` as jobs: each is repaired and judged on the samples set aside. What they are is decided before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.api.points import shared_of, without_moments
from onnxprune.api.quantize import written
from onnxprune.choose.budget import Budget
from onnxprune.choose.layers import Choice, finished, reduced
from onnxprune.choose.max_drop import Audit, Jury
from onnxprune.choose.options import Options
from onnxprune.choose.risk import Evidence
from onnxprune.choose.subject import Subject
from onnxprune.clock import Clock, silent
from onnxprune.cut.bypass import Bypass
from onnxprune.groups.classes import Bools
from onnxprune.jobs import Job, Jobs, Result
from onnxprune.jobs.job import key_of
from onnxprune.model.typed_json import plain


@dataclass(frozen=True)
class Contest:
    """What all candidates share."""

    original: Subject
    budget: Budget
    settings: Options

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "audit"}

    @cached_property
    def audit(self) -> Audit:
        """The original has to be run on the samples once."""
        assert self.original.calibration is not None
        return Audit(self.original.bare, self.original.calibration, self.budget, self.settings)


@dataclass(frozen=True)
class Candidate:
    """bypasses: layers that are gone. removed: bool per class of what is left."""

    bypasses: tuple[Bypass, ...]
    removed: Bools


def jury_of(jobs: Jobs, key: str, original: Subject, budget: Budget, settings: Options) -> Jury:
    """key: of all that candidates depend on but for the limit and themselves (`ground_key`)."""
    shared = shared_of(Contest(without_moments(original), budget, settings), settings)

    def run(choices: Sequence[Choice]) -> list[Evidence]:
        asked = [Candidate(c.subject.bypasses, c.removed) for c in choices]
        listed = [
            Job(
                key_of("candidate", key, budget.amount, plain(c.bypasses), c.removed.tobytes()),
                c,
                f"candidate that removes {int(c.removed.sum()):,} classes",
            )
            for c in asked
        ]
        return [_evidence(r.values) for r in jobs(candidate_job, shared, listed)]

    return Jury(run, jobs.place.width)


def candidate_job(contest: Contest, asked: Candidate) -> Result:
    """What the finished model loses on the samples set aside."""
    settings, clock = contest.settings, Clock(silent)
    subject = reduced(contest.original, asked.bypasses, settings, clock, decides=False)
    model = written(contest.original, settings, finished(Choice(subject, asked.removed), settings, clock))
    found = contest.audit(model)
    return Result(
        {"each": found.each.tolist(), "bounds": found.bounds, "measured": found.measured, "sources": found.sources}
    )


def _evidence(values: dict[str, Any]) -> Evidence:
    bounds = values["bounds"]
    each = np.array(values["each"], np.float64)
    return Evidence(each, None if bounds is None else tuple(bounds), float(values["measured"]), values["sources"])
