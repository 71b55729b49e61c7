"""What `explore` found: one value per size of the model, each of which is proved, repaired and can be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxprune.cut.plan import Pair
from onnxprune.model.json_text import to_json
from onnxprune.model.typed_json import plain
from onnxprune.proof.verdict import Verdict
from onnxprune.report.values import Latency


@dataclass(frozen=True)
class Point:
    """One pruned model.

    number: from 1 on, the largest model first; `--pick` takes it.
    target: what was asked for, such as `{"macs": 0.5}`.
    macs: multiply-accumulates at the observed batch size, before and after.
    params: stored weights, before and after.
    bytes: of the file, before and after.
    divergence: of its outputs from the original's on held-out samples; null where there was no calibration.
    agreement: share (0 to 1) of held-out samples with the original's top class; null where the outputs have no classes.
    drop: what it loses by `--metric` on held-out samples: the divergence, unless another one was named.
    is_best: no other point is as small, as fast and as good, and better in one of these.
    check: the comparison with the masked original in ONNX Runtime.
    fitted: how many layers the repair fitted anew.
    plan_sha256: of the text of its plan.
    model_sha256: of the model's bytes, without external data.
    latency_ms: milliseconds per run; left out without `--benchmark`.
    warnings: sentences that a person should read, each with what to do.
    """

    number: int
    target: dict[str, float]
    macs: Pair[int]
    params: Pair[int]
    bytes: Pair[int]
    divergence: float | None
    agreement: float | None
    drop: float | None
    is_best: bool
    check: Verdict
    fitted: int
    plan_sha256: str
    model_sha256: str
    latency_ms: Latency | None = None
    warnings: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the MACs that is left."""
        return self.macs.after / self.macs.before if self.macs.before else 1.0


@dataclass(frozen=True)
class Unreached:
    """A target that asks for more than can be removed.

    target: what was asked for.
    reason: how far it gets.
    """

    target: dict[str, float]
    reason: str


@dataclass(frozen=True)
class ExploreReport:
    """What `explore` found. In JSON, a part that was not asked for is left out, and a number that is not finite is null.

    model_sha256: of the original file.
    metric: what `drop` is measured by.
    points: the models, the largest first.
    where: the jobs ran.
    computed: jobs (sensitivities of groups, and points) that ran.
    reused: jobs whose results were in the checkpoint.
    unused: further results in the checkpoint: of other models, options, targets or versions; left out without one.
    seconds: of wall time, by stage.
    unreached: targets that ask for too much.
    """

    model_sha256: str
    metric: str
    points: tuple[Point, ...]
    where: str
    computed: int
    reused: int
    seconds: dict[str, float]
    unreached: tuple[Unreached, ...] = ()
    unused: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON."""
        made: dict[str, Any] = plain(self)
        return made

    def to_json(self) -> str:
        """Indented JSON, as `onnxprune.report.schema("explore-report")` describes it."""
        return to_json(self.to_dict())


def sorted_points(found: Sequence[Point]) -> tuple[list[int], tuple[Point, ...]]:
    """The largest first, numbered, the best marked; and where each was in `found`."""
    order = sorted(range(len(found)), key=lambda k: (-found[k].macs.after, -found[k].bytes.after, k))
    return order, tuple(
        replace(found[k], number=n, is_best=not any(_beats(other, found[k]) for other in found))
        for n, k in enumerate(order, 1)
    )


def _beats(other: Point, one: Point) -> bool:
    costs: list[Callable[[Point], float]] = [lambda p: p.macs.after, lambda p: p.bytes.after]
    if one.latency_ms is not None and other.latency_ms is not None:
        costs.append(lambda p: -(p.latency_ms.speedup if p.latency_ms else 0.0))
    if one.drop is not None and other.drop is not None:
        costs.append(lambda p: p.drop or 0.0)
    pairs = [(of(other), of(one)) for of in costs]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
