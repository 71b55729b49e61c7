"""`compare`: models side by side, from wherever they come."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.cli import main
from tests.test_schemas import faults

DIGITS, DATA = "models/digits.onnx", "models/digits_calib.npz"


def dense(scale: float, name: str = "y", width: int = 4) -> onnx.ModelProto:
    """Logits of a matrix; made by hand, so not from onnxprune."""
    w = np.random.default_rng(0).standard_normal((3, width)).astype(np.float32) * scale
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], [name])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(w, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_models_of_any_origin(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    found = onnxprune.compare([dense(1), dense(1), dense(-1)], runs=3, seconds=0.5, report=report)
    one, same, other = found.models
    assert (one.divergence, same.divergence, same.agreement) == (0, 0, 1) and other.divergence > 0.1
    assert other.agreement is not None and other.agreement < 0.5
    assert one.macs == same.macs and one.params == 12 and found.made_up
    assert one.speedup == 1 and same.interval is not None and same.median_ms is not None
    assert faults("comparison", json.loads(report.read_text())) == []


def test_with_data_and_a_score(tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    onnxprune.prune(DIGITS, Budget("macs", 0.3), data=DATA, samples=24, benchmark=False, output=small)
    found = onnxprune.compare(
        [DIGITS, small],
        data="models/digits_test.npz",
        samples=64,
        metric="tests.readme_metric:accuracy",
        benchmark=False,
    )
    before, after = found.models
    assert before.score is not None and after.score is not None and before.score > 0.9 and after.score <= before.score
    assert after.macs is not None and before.macs is not None and after.macs < 0.31 * before.macs
    assert found.samples == 64 and not found.made_up and found.runner is None and after.speedup is None


def test_models_with_other_names_are_refused() -> None:
    with pytest.raises(BadInputError, match="outputs z, and model 1 has y"):
        onnxprune.compare([dense(1), dense(1, "z")])
    with pytest.raises(BadInputError, match="two models"):
        onnxprune.compare([dense(1)])
    with pytest.raises(BadInputError, match="MODULE:FUNCTION"):
        onnxprune.compare([dense(1), dense(1)], metric="top1")


def test_outputs_of_another_size_are_said() -> None:
    *_, other = onnxprune.compare([dense(1), dense(1, width=5)], benchmark=False).models
    assert "other sizes" in other.note


def test_command_line(tmp_path: Path) -> None:
    for k, scale in enumerate((1, 2)):
        onnx.save(dense(scale), tmp_path / f"{k}.onnx")
    names = [str(tmp_path / f"{k}.onnx") for k in range(2)]
    report = tmp_path / "r.md"
    done = CliRunner().invoke(main, ["compare", *names, "--runs", "3", "--report", str(report)])
    assert done.exit_code == 0 and "made-up inputs" in done.output and names[1] in done.output
    assert "# Models side by side" in report.read_text()
    told = json.loads(CliRunner().invoke(main, ["compare", *names, "--no-benchmark", "--json"]).stdout)
    assert [m["model"] for m in told["models"]] == names and "speedup" not in told["models"][0]
