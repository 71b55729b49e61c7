"""What is kept of a run: counted in bytes of arrays and outputs of sessions, not measured."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxprune
from onnxprune import runtime
from onnxprune.calibrate import calibrate
from onnxprune.calibrate.moments import Kept, Moments
from onnxprune.model.load import load

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 3, 64, 64] x, int64[k, 2] i) => (float[k, 64, 64] y) <int64[2] one = {1, 1}> {
  j = Mul(i, one)
  y = GatherND(x, j)
}"""


def test_large_values_that_change_are_not_kept() -> None:
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal((2, 3, 64, 64)).astype("f"), "i": rng.integers(0, 2, (900, 2))} for _ in range(2)
    ]
    probe = runtime.Probe(load(parser.parse_model(MODEL)), {"j"}, set())
    seen = probe.observation((feeds[0], feeds[1]))
    assert seen.values == {} and seen.other_values == {}
    same = probe.observation((feeds[0], {**feeds[1], "i": feeds[0]["i"].copy()}))
    assert same.is_static_value("j")
    assert same.values["j"] is same.other_values["j"]


def test_types_are_read_without_a_run() -> None:
    model = load(parser.parse_model(MODEL))
    assert runtime.types_of(model, ({}, {}), {"j", "y"}) == {"j": "tensor(int64)", "y": "tensor(float)"}


def test_a_small_budget_calibrates_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[onnx.ModelProto] = []
    seen: list[int] = []
    split = calibrate.in_parts

    def counted(*arguments: object) -> list[list[str]]:
        parts = split(*arguments)  # type: ignore[arg-type]
        seen.append(len(parts))
        return parts

    monkeypatch.setattr(calibrate, "in_parts", counted)
    for budget in (1 << 30, 1):
        monkeypatch.setattr(calibrate, "BUDGET", budget)
        options = {"recover": "none", "importance": "obs", "benchmark": False, "data": "models/digits_calib.npz"}
        made.append(onnxprune.prune("models/digits.onnx", onnxprune.Budget("ratio", 0.5), **options).model)
    assert seen[0] == 1 < max(seen)
    assert made[0].SerializeToString() == made[1].SerializeToString()


def test_moments_are_kept_as_triangles_and_read_whole() -> None:
    rng = np.random.default_rng(0)
    moments = Moments.empty(2, 7, 0)
    moments.add(rng.standard_normal((2, 50, 7)).astype("f"))
    moments.xx = (moments.xx + moments.xx.transpose(0, 2, 1)) / 2
    kept = Kept()
    kept["a"] = moments
    kept.share("b", "a")
    assert sum(a.size for a in kept._kept["a"][1]) == 2 * 7 * 8 / 2
    assert kept._kept["a"] is kept._kept["b"]
    for key in kept:
        assert np.array_equal(kept[key].xx, moments.xx) and np.array_equal(kept[key].x, moments.x)
    kept.clear()
    assert not kept


def test_moments_count_in_what_a_run_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "BUDGET", 1000)
    analysis, samples = (
        SimpleNamespace(feeds=[{"x": np.zeros(1)}], observation=SimpleNamespace(shapes={})),
        [{"x": np.zeros(1)}],
    )
    taken = SimpleNamespace(feeds=samples)
    names = {name: name for name in "abc"}
    assert calibrate.in_parts(names, {"a": 300, "b": 150, "c": 100}, analysis, taken) == [["a", "b"], ["c"]]  # type: ignore[arg-type]
