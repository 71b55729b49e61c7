"""What is kept of a run: counted in bytes of arrays and outputs of sessions, not measured."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxprune
from onnxprune import runtime
from onnxprune.calibrate import calibrate
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
    split = calibrate._parts

    def counted(*arguments: object) -> list[list[str]]:
        parts = split(*arguments)  # type: ignore[arg-type]
        seen.append(len(parts))
        return parts

    monkeypatch.setattr(calibrate, "_parts", counted)
    for budget in (1 << 30, 1):
        monkeypatch.setattr(calibrate, "BUDGET", budget)
        options = {"recover": "none", "importance": "obs", "benchmark": False, "data": "models/digits_calib.npz"}
        made.append(onnxprune.prune("models/digits.onnx", onnxprune.Budget("ratio", 0.5), **options).model)
    assert seen[0] == 1 < max(seen)
    assert made[0].SerializeToString() == made[1].SerializeToString()
