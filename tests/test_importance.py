"""An importance of the user's own: the example of `choose/importance.py`, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.choose import importance as importances
from onnxprune.choose.importance import IMPORTANCES
from onnxprune.choose.norms import per_class
from tests.helpers import documented
from tests.oracle import net

MODEL = """g (float[N,6] x) => (float[N,3] y) <float[6,12] w, float[12] b, float[12,3] h> {
    m = MatMul(x, w)
    a = Add(m, b)
    r = Relu(a)
    y = MatMul(r, h)
}"""


Far = documented(importances, "Far", np=np, per_class=per_class)


class LastFirst:
    """Classes go from the last to the first; it remembers what it was given."""

    name = "last-first"
    needs_calibration = True

    def __call__(self, analysis: Any, calibration: Any, seed: int) -> Any:
        self.calibration = calibration
        return -np.arange(analysis.solution.count, dtype=float)


def removed(result: onnxprune.PruneResult) -> list[int]:
    (group,) = result.plan.groups
    return next(list(m.removed) for m in group.members if m.tensor == "b")


def test_the_example_prunes_and_the_plan_has_its_name(tmp_path: Any) -> None:
    model = net(MODEL)
    result = onnxprune.prune(
        model, Budget("ratio", 0.5), importance=Far(), round_to=1, benchmark=False, output=tmp_path / "s.onnx"
    )
    assert result.plan.settings["importance"] == "far"
    values = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    spread = {n: np.abs(np.abs(v) - np.median(np.abs(v))) for n, v in values.items()}
    shares = [spread["w"].sum(axis=0), spread["b"], spread["h"].sum(axis=1)]
    scores = np.mean([s / s.mean() for s in shares], axis=0)
    assert removed(result) == sorted(np.argsort(scores)[:6].tolist())


@pytest.mark.parametrize("recover", ["none", "lsq"])
def test_an_importance_that_needs_calibration_gets_one(recover: str) -> None:
    own = LastFirst()
    result = onnxprune.prune(
        net(MODEL), Budget("ratio", 0.5), importance=own, recover=recover, round_to=1, benchmark=False
    )
    assert own.calibration is not None and removed(result) == list(range(6, 12))


def test_a_function_is_enough() -> None:
    def first(analysis: Any, calibration: Any, seed: int) -> Any:
        return np.arange(analysis.solution.count)

    result = onnxprune.prune(net(MODEL), Budget("ratio", 0.5), importance=first, round_to=1, benchmark=False)
    assert removed(result) == list(range(6)) and result.plan.settings["importance"] == "first"


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0, 2.0], "one per class"), ("none", "failed"), (np.nan, "one per class")]
)
def test_scores_that_are_none_are_said(scores: Any, message: str) -> None:
    def bad(analysis: Any, calibration: Any, seed: int) -> Any:
        return scores

    with pytest.raises(BadInputError, match=message):
        onnxprune.prune(net(MODEL), Budget("ratio", 0.5), importance=bad, benchmark=False)


def test_names_are_those_of_the_table() -> None:
    for name, importance in IMPORTANCES.items():
        assert importance.name == name
        result = onnxprune.prune(net(MODEL), Budget("ratio", 0.5), importance=name, round_to=1, benchmark=False)
        assert result.plan.settings["importance"] == name and len(removed(result)) == 6
