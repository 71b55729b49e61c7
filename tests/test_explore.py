"""`explore`: its points are what `prune` makes, whoever computes them, and the one that is asked for is picked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import BadInputError, Budget, Options, TargetNotReachableError, ops
from onnxprune.api import points as points_module
from onnxprune.api.pick import check_pick, picked
from onnxprune.calibrate.recall import Recall
from onnxprune.choose.explore_options import parse_targets, parsed, usual_targets
from onnxprune.cli import main
from onnxprune.cut.plan import Pair
from onnxprune.jobs.local import Processes
from onnxprune.jobs.opened import opened
from onnxprune.ops.base import Rule
from onnxprune.proof.verdict import Verdict
from onnxprune.report.explore import Point, sorted_points
from onnxprune.report.front import picture
from onnxprune.report.values import Latency
from tests.test_free import CACHE, samples, step
from tests.test_schemas import faults

DIGITS, DATA = "models/digits.onnx", "models/digits_calib.npz"
QUICK: dict[str, Any] = {"data": DATA, "samples": 24, "jobs": 1}
AT = [Budget("macs", 0.7), Budget("macs", 0.4)]


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnxprune.ExploreResult, Path]:
    folder = tmp_path_factory.mktemp("explored")
    found = onnxprune.explore(
        DIGITS,
        at=AT,
        output=folder / "sizes",
        models=True,
        report=folder / "r.json",
        checkpoint=folder / "kept",
        **QUICK,
    )
    return found, folder


def test_a_point_is_what_prune_makes(explored: tuple[onnxprune.ExploreResult, Path], tmp_path: Path) -> None:
    found, folder = explored
    for budget, point, plan in zip(AT, found.report.points, found.plans, strict=True):
        alone = onnxprune.prune(
            DIGITS, budget, data=DATA, samples=24, benchmark=False, output=tmp_path / "a.onnx", plan=tmp_path / "a.json"
        )
        assert plan == alone.plan
        assert (folder / "sizes" / found.file_name(point, ".plan.json")).read_bytes() == (
            tmp_path / "a.json"
        ).read_bytes()
        assert (folder / "sizes" / found.file_name(point, ".onnx")).read_bytes() == (tmp_path / "a.onnx").read_bytes()
        assert alone.report.repair is not None and point.divergence == alone.report.repair.damage.after
        assert point.check == alone.report.check


def test_a_plan_is_replayed_byte_for_byte(explored: tuple[onnxprune.ExploreResult, Path], tmp_path: Path) -> None:
    found, folder = explored
    point = found.report.points[1]
    plan = folder / "sizes" / found.file_name(point, ".plan.json")
    onnxprune.prune(DIGITS, apply=plan, data=DATA, benchmark=False, output=tmp_path / "again.onnx")
    assert hashlib.sha256((tmp_path / "again.onnx").read_bytes()).hexdigest() == point.model_sha256


def test_other_processes_give_the_same_bytes(
    explored: tuple[onnxprune.ExploreResult, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.jobs.run.Processes", lambda count: Processes(count, start=-1.0))
    found = onnxprune.explore(DIGITS, at=AT, **(QUICK | {"jobs": 2}))
    assert found.report.where == "up to 2 processes"
    assert [(p.plan_sha256, p.model_sha256) for p in found.report.points] == [
        (p.plan_sha256, p.model_sha256) for p in explored[0].report.points
    ]


def test_a_checkpoint_spares_what_is_there(
    explored: tuple[onnxprune.ExploreResult, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One point is gone from it, one is new: these two run, and no group's damage."""
    first, folder = explored
    gone = next(p for p in (folder / "kept").glob("*.onnx"))
    gone.unlink()
    ran = []
    work = points_module.point_job
    monkeypatch.setattr(points_module, "point_job", lambda base, asked: ran.append(asked.budget) or work(base, asked))
    found = onnxprune.explore(DIGITS, at=[*AT, Budget("params", 0.5)], checkpoint=folder / "kept", **QUICK)
    assert found.report.computed == len(ran) == 2 and Budget("params", 0.5) in ran
    assert found.report.reused == first.report.computed - 1
    assert {p.plan_sha256 for p in first.report.points} < {p.plan_sha256 for p in found.report.points}


def test_another_option_finds_nothing_in_the_checkpoint(explored: tuple[onnxprune.ExploreResult, Path]) -> None:
    found = onnxprune.explore(DIGITS, at=AT[:1], checkpoint=explored[1] / "kept", **(QUICK | {"seed": 1}))
    assert found.report.reused == 0 and found.report.computed > 1
    assert found.report.unused == len(list((explored[1] / "kept").glob("*.json"))) - found.report.computed > 0


def test_the_report_follows_its_schema(explored: tuple[onnxprune.ExploreResult, Path]) -> None:
    told = json.loads((explored[1] / "r.json").read_text())
    assert faults("explore-report", told) == [] and len(told["points"]) == 2


def test_rules_of_ones_own_travel_with_what_is_shared() -> None:
    rule = Rule(("explored.domain::Same",), "pointwise", lambda ctx: [ctx.maps(0)])
    with ops.registered(rule):
        shared = points_module.shared_of({"a": 1}, Options())
        packed = shared.packed
    try:
        assert opened(shared.digest, lambda: packed) == {"a": 1} and ("explored.domain", "Same") in ops.REGISTERED
    finally:
        ops.unregister("explored.domain::Same")


def test_a_score_of_ones_own_is_the_drop() -> None:
    found = onnxprune.explore(
        DIGITS,
        at=[Budget("macs", 0.15)],
        metric="tests.readme_metric:accuracy",
        **(QUICK | {"data": "models/digits_test.npz"}),
    )
    (point,) = found.report.points
    assert (
        point.drop is not None
        and point.drop != point.divergence
        and found.report.metric == "tests.readme_metric:accuracy"
    )


def test_what_cannot_be_reached_is_listed_and_the_rest_is_there() -> None:
    found = onnxprune.explore(DIGITS, at=[Budget("macs", 0.9), Budget("macs", 1e-6)], **QUICK)
    assert len(found.report.points) == 1 and found.report.unreached[0].target == {"macs": 1e-6}
    with pytest.raises(TargetNotReachableError):
        onnxprune.explore(DIGITS, at=[Budget("macs", 1e-6)], **QUICK)


def test_times_are_of_every_point_and_can_be_picked_by(tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    found = onnxprune.explore(DIGITS, at=AT, benchmark=True, pick="speedup>=0.01", output=out, **QUICK)
    assert all(p.latency_ms is not None for p in found.report.points)
    assert found.picked is not None and found.picked.number == 2
    assert hashlib.sha256(out.read_bytes()).hexdigest() == found.picked.model_sha256


def test_a_point_whose_inputs_shrink_is_fed_what_it_takes(tmp_path: Path) -> None:
    model = step()
    data = samples(tmp_path / "x.npz", model)
    given: dict[str, Any] = {"data": data, "free": CACHE, "round_to": 1}
    found = onnxprune.explore(model, at=[Budget("macs", 0.6)], benchmark=True, jobs=1, **given)
    alone = onnxprune.prune(model, Budget("macs", 0.6), benchmark=False, **given)
    assert found.plans == (alone.plan,) and alone.plan.interface and alone.report.repair is not None
    (point,) = found.report.points
    assert point.divergence == alone.report.repair.damage.after and point.latency_ms is not None


def test_the_command_line_picks_and_writes(tmp_path: Path) -> None:
    base = ["explore", DIGITS, "--data", DATA, "--samples", "24", "--jobs", "1", "--at", "macs=0.7,0.4"]
    out, plan = tmp_path / "small.onnx", tmp_path / "p.json"
    done = CliRunner().invoke(main, [*base, "--pick", "macs<=0.5", "-o", str(out), "--plan", str(plan)])
    assert done.exit_code == 0 and "picked    point 2" in done.output and "MACs" in done.output
    assert out.exists() and json.loads(plan.read_text())["settings"]["target"] == {"macs": 0.4}
    none = CliRunner().invoke(main, [*base, "--pick", "drop<=1e-9", "-o", str(tmp_path / "none.onnx")])
    assert none.exit_code == 3 and "nearest is point 1" in none.output and not (tmp_path / "none.onnx").exists()


# ---------------------------------------------------------------- picking


def point(macs: int, size: int, drop: float | None, speedup: float | None = None) -> Point:
    latency = None
    if speedup is not None:
        latency = Latency(2.0, 2.0 / speedup, speedup, (speedup, speedup), 3, ((1.0, 2.0), (1.0, 2.0)), "here")
    pairs = {"macs": Pair(1000, macs), "params": Pair(2_000_000, 2000 * macs), "bytes": Pair(10_000_000, size)}
    verdict = Verdict(0.0, 1e-4, True, 1, None)
    return Point(0, {"macs": macs / 1000}, **pairs, divergence=drop, agreement=None, drop=drop, is_best=False, check=verdict,
                 fitted=0, plan_sha256="", model_sha256="", latency_ms=latency)  # fmt: skip


POINTS = sorted_points([
    point(300, 3_000_000, 0.2, 2.0), point(900, 9_000_000, 0.01, 1.1), point(600, 6_000_000, 0.05, 1.5), point(600, 6_500_000, 0.06, 1.4)
])[1]  # fmt: skip


@pytest.mark.parametrize(
    "text, number",
    [
        ("3", 3),
        ("drop<=0.05", 3),
        ("drop < 0.05", 1),
        ("macs<=0.6", 3),
        ("macs<=60%", 3),
        ("size<=6.2MB", 3),
        ("size<=3.5MB", 4),
        ("params<=1.3M", 3),
        ("speedup>=1.45", 4),
        ("speedup>=1.45x, drop<=0.1", 3),
        ("latency<=1.9ms", 1),
        ("latency<=70%", 3),
    ],
)
def test_pick(text: str, number: int) -> None:
    assert picked(POINTS, text).number == number


def test_points_are_numbered_by_size_and_those_that_are_beaten_are_marked() -> None:
    assert [p.macs.after for p in POINTS] == [900, 600, 600, 300]
    assert [p.is_best for p in POINTS] == [True, False, True, True]


def test_nothing_keeps_the_condition() -> None:
    with pytest.raises(TargetNotReachableError, match=r"nearest is point 4 \(macs 0.3\)"):
        picked(POINTS, "macs<=0.2")
    with pytest.raises(BadInputError, match="1 to 4"):
        picked(POINTS, "5")


@pytest.mark.parametrize(
    "text, told",
    [
        ("drop=0.01", "cannot be read"),
        ("__import__('os').system('true')", "cannot be read"),
        ("loss<=1", "has no 'loss'"),
        ("size<=10MW", "no unit of size"),
        ("drop<=1MB", "no unit of drop"),
        ("macs<=1.2.3", "no number"),
        ("macs<=0.5,", "cannot be read"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        parsed(text)


def test_conditions_on_times_need_times() -> None:
    with pytest.raises(BadInputError, match="--benchmark"):
        check_pick("speedup>=1.5", False, 4)
    with pytest.raises(BadInputError, match="no drop was measured"):
        picked([replace(p, drop=None) for p in POINTS], "drop<=1")


def test_targets_of_the_command_line() -> None:
    assert parse_targets(["macs=0.8,0.6,params=0.5"]) == (
        Budget("macs", 0.8),
        Budget("macs", 0.6),
        Budget("params", 0.5),
    )
    assert parse_targets(["macs=0.8", "speedup=1.5"]) == (Budget("macs", 0.8), Budget("speedup", 1.5))
    for text in ("0.8", "macs", "max-drop=0.1", "macs=a"):
        with pytest.raises(BadInputError, match="--at"):
            parse_targets([text])
    assert [b.amount for b in usual_targets(8, True)] == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    assert usual_targets(3, False)[-1] == Budget("macs", 0.6)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"models": True}, "-o DIR"),
        ({"pick": "9", "output": "x.onnx"}, "from 1 to 8"),
        ({"plan": "p.json"}, "--pick"),
        ({"pick": "1", "models": True, "output": "x.onnx"}, "--models"),
        ({"output": "pyproject.toml"}, "is a file"),
        ({"at": [Budget("ratio", 0.5)]}, "--at"),
        ({"depth": "auto"}, "depth"),
        ({"report": "r.txt"}, "must end in"),
    ],
)
def test_what_does_not_go_together_is_refused_before_work(options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        onnxprune.explore("models/none.onnx", **options)


def test_the_picture_shows_every_point_and_nothing_where_there_is_no_drop() -> None:
    text = "\n".join(picture(POINTS))
    assert all(str(k) in text for k in (1, 3, 4)) and "% of the MACs" in text
    assert picture([replace(p, drop=None) for p in POINTS]) == []


def test_what_is_recalled_is_what_was_computed_and_takes_no_more_than_its_room() -> None:
    ran = []

    def run() -> Any:
        for k in range(3):
            ran.append(k)
            values = [np.full(100, k), None]
            yield values
            values.clear()

    recall = Recall(10_000)
    first = [list(v) for v in recall.runs("a", run)]
    again = [list(v) for v in recall.runs("a", run)]
    assert ran == [0, 1, 2] and all(x[0] is y[0] and x[1] is y[1] is None for x, y in zip(first, again, strict=True))
    small = Recall(1000)
    for _ in range(2):
        assert len(list(small.runs("a", run))) == 3
    assert len(ran) == 9 and small.room == 1000
