"""What the calibration inputs covered is said: how many answers the original gave on them, and how many ids of a table they hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.report.lines import repair_lines
from onnxprune.report.markdown import markdown
from onnxprune.report.report import Report
from tests.oracle import net

SURE = """g (float[N,6] x) => (float[N,6] y) <float[6,16] w, float[16,6] v>
    { a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) s = Constant<value_float = 0.001>() d = Mul(c, s) y = Add(d, x) }"""
TOKENS = """g (int64[N,T] ids) => (float[N,T,3] y) <float[40,16] table, float[16,3] v>
    { e = Gather(table, ids) r = Relu(e) y = MatMul(r, v) }"""


def report(text: str, tmp_path: Path, **arrays: np.ndarray) -> Report:
    np.savez(tmp_path / "x.npz", **arrays)
    return onnxprune.prune(
        net(text), Budget("ratio", 0.25), data=tmp_path / "x.npz", round_to=1, benchmark=False
    ).report


@pytest.mark.parametrize("ending", ["logits", "probabilities"])
def test_classes_that_never_came_up(tmp_path: Path, ending: str) -> None:
    """The largest entry of an input is, with 20 added, that of the output: of six classes, four are shown."""
    text = SURE if ending == "logits" else SURE.replace("y = Add(d, x)", "z = Add(d, x) y = Softmax(z)")
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    x[np.arange(64), np.arange(64) % 4] += 20
    found = report(text, tmp_path, x=x)
    said = "'y': the original gave 4 of its 6 answers on these inputs; what the others need may be lost"
    assert said in repair_lines(found) and said in markdown(found)
    assert json.loads(found.to_json())["calibration"]["covered"] == [
        {"tensor": "y", "kind": "answers", "seen": 4, "known": 6}
    ]
    x[np.arange(64), np.arange(64) % 6] += 50
    found = report(text, tmp_path, x=x)
    assert found.calibration is not None and found.calibration.covered[0].seen == 6
    assert not any("may be lost" in line for line in repair_lines(found)), "nothing to say"


def test_a_vector_that_describes_its_input_has_no_classes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    found = report(SURE.replace("y = Add(d, x)", "y = Identity(d)"), tmp_path, x=x)
    assert found.calibration is not None and found.calibration.covered == ()


def test_ids_that_never_came_up(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(5, 17, (64, 8))
    found = report(TOKENS, tmp_path, ids=ids)
    assert "'ids': these inputs hold 12 of its 40 ids; what the others need may be lost" in repair_lines(found)


def test_made_up_inputs_cover_nothing() -> None:
    found = onnxprune.prune(net(TOKENS), Budget("ratio", 0.25), recover="lsq", round_to=1, benchmark=False).report
    assert found.calibration is not None and found.calibration.made_up and found.calibration.covered == ()
