"""Each criterion and repair of a paper gives what the paper says: numbers made by hand, and least squares by numpy.

Seen red: a variance without its mean, a norm that is not squared, scores that are not standardised within each layer, columns of a
convolution averaged where they are summed and the other way round, GRAIL with centred moments or with those of one tap, CORP and FLAP
without the shift of the bias, logit maps turned round, a share of all layers that goes further than the target.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.moments import Moments
from onnxprune.choose.costs import CostModel
from onnxprune.cut.rewrite import rewrite
from onnxprune.groups.analysis import Analysis
from onnxprune.model.patch import with_constants
from tests.benchmarks.criteria import Case, Cell, observed, table
from tests.benchmarks.papers import METHODS, RIDGE, chosen, gram, logit_maps
from tests.oracle import net, session

Array = np.ndarray[Any, Any]

# four inputs; the hidden units are the inputs themselves
X = np.array([[1, 2, 0], [3, 2, 0], [1, 2, 4], [3, 2, 4]], np.float32)
W = np.array([[1, -3], [2, 2], [0.5, -0.5]], np.float32)
MLP = """g (float[N,3] x) => (float[N,2] y) <float[3,3] v, float[3,2] w, float[2] c> {
    h0 = MatMul(x, v)
    h = Relu(h0)
    y = Gemm(h, w, c)
}"""


def watched(tmp_path: Path, model: onnx.ModelProto, **inputs: Array) -> tuple[Analysis, Calibration]:
    """A model's groups and moments on these inputs, all of them."""
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **inputs)  # type: ignore[arg-type]
    return observed(Case("model", tmp_path / "model.onnx", tmp_path / "data.npz", lambda path: 0.0))


def mlp(tmp_path: Path, x: Array = X) -> tuple[Analysis, Calibration]:
    return watched(tmp_path, net(MLP, constants={"v": np.eye(3, dtype=np.float32), "w": W}), x=x)


def hidden(analysis: Analysis) -> Array:
    """Classes of the hidden units, in order."""
    (units,) = analysis.along("h", 1)
    return analysis.solution.classes[units]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Wanda-sp", [2 * 5**0.5, 2 * 4**0.5, 0.5 * 8**0.5]),  # mean |w| x root of the mean square
        ("GRAIL", [2 * 5**0.5, 2 * 4**0.5, 0.5 * 8**0.5]),
        ("VBP", [1, 0, 4]),
        ("CORP", [5, 4, 8]),
        ("FLAP", np.array([10 - 4, 0 - 4, 2 - 4]) / 28**0.5),  # variance x squared norm is 10, 0, 2
    ],
)
def test_scores(tmp_path: Path, name: str, wanted: Any) -> None:
    analysis, calibration = mlp(tmp_path)
    found = METHODS[name].scores(analysis, calibration, 0)
    assert found[hidden(analysis)] == pytest.approx(np.asarray(wanted), rel=1e-5)


def test_columns_of_a_convolution_are_summed_or_averaged(tmp_path: Path) -> None:
    model = net(
        "g (float[N,2,4] x) => (float[N,1,3] y) <float[2,2,1] v, float[1,2,2] w> {\n a = Conv(x, v)\n y = Conv(a, w)\n}",
        constants={"v": np.eye(2, dtype=np.float32)[..., None], "w": np.array([[[3, 1], [-2, 2]]], np.float32)},
    )
    x = np.array([[[1, 1, 1, 1], [2, -2, 2, -2]]] * 4, np.float32)
    analysis, calibration = watched(tmp_path, model, x=x)
    (units,) = analysis.along("a", 1)
    at = analysis.solution.classes[units]
    assert METHODS["CORP"].scores(analysis, calibration, 0)[at] == pytest.approx([1, 4])
    assert METHODS["Wanda-sp"].scores(analysis, calibration, 0)[at] == pytest.approx([4, 8])  # |3|+|1|, 2 (|-2|+|2|)


def removal(analysis: Analysis, *units: int) -> Array:
    removed = np.zeros(analysis.solution.count, bool)
    removed[hidden(analysis)[list(units)]] = True
    return removed


def repaired(analysis: Analysis, calibration: Calibration, name: str, removed: Array) -> onnx.ModelProto:
    repair = METHODS[name].repair
    assert repair is not None
    return with_constants(rewrite(analysis, removed), repair(analysis, calibration, removed))


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("name", ["FLAP", "VBP"])
def test_means_go_into_the_bias(tmp_path: Path, name: str) -> None:
    analysis, calibration = mlp(tmp_path)
    before, after = weights(analysis.model.proto), weights(repaired(analysis, calibration, name, removal(analysis, 0)))
    assert after["w"] == pytest.approx(W[1:])
    assert after["c"] == pytest.approx(before["c"] + 2 * W[0])  # the mean of unit 0 is 2


def correlated() -> Array:
    x = np.abs(np.random.default_rng(3).standard_normal((64, 3))).astype(np.float32)
    x[:, 2] = 2 * x[:, 0] + 0.5 * x[:, 1] + 1 + 0.1 * x[:, 2]
    return x


def ridge(x: Array, y: Array) -> Array:
    """Least squares with a ridge of `RIDGE` times the mean square of a column, as more rows of it."""
    size = np.sqrt(RIDGE * np.square(x).sum() / x.shape[1])
    rows, zeros = size * np.eye(x.shape[1]), np.zeros((x.shape[1], y.shape[1]))
    return np.linalg.lstsq(np.concatenate([x, rows]), np.concatenate([y, zeros]), rcond=None)[0]


def test_grail_is_a_ridge_from_the_units_that_stay_to_all(tmp_path: Path) -> None:
    x = correlated()
    analysis, calibration = mlp(tmp_path, x)
    before, after = (
        weights(analysis.model.proto),
        weights(repaired(analysis, calibration, "GRAIL", removal(analysis, 2))),
    )
    assert after["w"] == pytest.approx(ridge(x[:, :2], x) @ W, rel=1e-4)
    assert after["c"] == pytest.approx(before["c"])


def test_corp_is_a_ridge_around_the_means(tmp_path: Path) -> None:
    x = correlated()
    analysis, calibration = mlp(tmp_path, x)
    before, after = (
        weights(analysis.model.proto),
        weights(repaired(analysis, calibration, "CORP", removal(analysis, 2))),
    )
    mean = x.mean(axis=0)
    b = ridge(x[:, :2] - mean[:2], x[:, 2:] - mean[2:])
    assert after["w"] == pytest.approx(W[:2] + b @ W[2:], rel=1e-4)
    assert after["c"] == pytest.approx(before["c"] + (mean[2:] - mean[:2] @ b) @ W[2:], rel=1e-4)


def test_grail_has_one_map_of_channels_for_every_tap() -> None:
    """Two channels, two taps, channel 1 goes: x_1 = (g_01 / g_00) x_0, with G the mean over the taps."""
    xx = np.array([[2, 1, 9, 9], [1, 3, 9, 9], [9, 9, 4, 1], [9, 9, 1, 5]], float)[None]  # tap 0: 0, 1; tap 1: 2, 3
    moments = replace(Moments.empty(1, 4, 1), count=1, xx=xx)
    w = np.array([[1.0], [10.0], [2.0], [20.0]])
    found = gram(np.array([0, 1, 0, 1]))(moments, 0, np.array([0, 2]), np.array([1, 3]), w)
    exact = 1 / 3
    assert found == pytest.approx(np.array([[1 + 10 * exact], [2 + 20 * exact]]), rel=2 * RIDGE)


HEADS = """g (float[N,6,8] x) => (float[N,6,6] y) <float[8,3] wq, float[8,3] wk> {
    q = MatMul(x, wq)
    k0 = MatMul(x, wk)
    k = Transpose<perm=[0,2,1]>(k0)
    y = MatMul(q, k)
}"""


def test_corp_maps_logits_to_what_is_left_of_them(tmp_path: Path) -> None:
    """The third query is the sum of the others, the third key twice the second: the logits need two units."""
    rng = np.random.default_rng(0)
    wq, wk = (rng.standard_normal((8, 3)).astype(np.float32) for _ in range(2))
    wq[:, 2], wk[:, 2] = wq[:, 0] + wq[:, 1], 2 * wk[:, 1]
    x = rng.standard_normal((32, 6, 8)).astype(np.float32)
    analysis, calibration = watched(tmp_path, net(HEADS, constants={"wq": wq, "wk": wk}), x=x)
    (units,) = analysis.along("q", 2)
    removed = np.zeros(analysis.solution.count, bool)
    removed[analysis.solution.classes[units[2:]]] = True
    new = logit_maps(analysis, calibration, removed)
    assert set(new) == {("q", 1), ("k0", 1)}
    assert new["k0", 1] == pytest.approx(wk)
    from onnxprune.choose.subject import with_model

    mapped = with_model(analysis, with_constants(analysis.model.proto, new))
    wanted = session(analysis.model.proto).run(None, {"x": x})[0]
    apart = [np.abs(session(rewrite(a, removed)).run(None, {"x": x})[0] - wanted).mean() for a in (analysis, mapped)]
    assert apart[1] < 5 * RIDGE * np.abs(wanted).mean() < 0.1 * apart[0]


TWO = """g (float[N,4] x) => (float[N,4] y) <float[4,8] v, float[8,4] w, float[4,8] p, float[8,4] r> {
    a = MatMul(x, v)
    b = MatMul(a, w)
    c = MatMul(b, p)
    y = MatMul(c, r)
}"""


def test_one_share_of_every_layer_or_the_lowest_of_all(tmp_path: Path) -> None:
    analysis, _ = watched(tmp_path, net(TWO), x=np.ones((8, 4), np.float32))
    first, last = (analysis.solution.classes[analysis.along(t, 1)[0]] for t in ("a", "c"))
    middle = analysis.solution.classes[analysis.along("b", 1)[0]]
    scores = np.zeros(analysis.solution.count)
    scores[first], scores[last], scores[middle] = np.arange(8) + 100, np.arange(8), 1000
    cost = CostModel(analysis).of("macs")
    lowest, shared = chosen(analysis, scores, "all", cost, 0.6), chosen(analysis, scores, "share", cost, 0.45)
    assert not lowest[first].any() and lowest[last].sum() == 7  # one always stays
    assert [int(shared[ids].sum()) for ids in (first, middle, last)] == [4, 2, 3]  # half of each, less one
    assert not shared[first[4:]].any() and cost.total(shared) / cost.total() == (4 * 4 + 4 * 2 + 2 * 5 + 5 * 4) / 128


def test_standardised_within_each_layer(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    analysis, calibration = watched(tmp_path, net(TWO, constants={"r": np.eye(8, 4, dtype=np.float32) * 100}), x=x)
    found = METHODS["FLAP"].scores(analysis, calibration, 0)
    for tensor in ("a", "b", "c"):
        values = found[analysis.solution.classes[analysis.along(tensor, 1)[0]]]
        assert values.mean() == pytest.approx(0, abs=1e-6) and values.std(ddof=1) == pytest.approx(1)


def test_table_has_a_row_for_a_model_and_target() -> None:
    cells = [
        Cell("net", 0.9, "CORP", 0.5, 0.7, 0.5, 1.0),
        Cell("net", 0.9, "VBP", 0.5, note="not reached"),
        Cell("net", 0.9, "onnxprune", 0.5, 0.65, 0.49, 1.0),
    ]
    row = table(cells, ["CORP", "VBP", "onnxprune"], [0.7, 0.5]).splitlines()[2]
    assert row == "| `net` | 0.900 | 0.5 | 0.700 (0.500) | not reached | 0.650 (0.490) | CORP | -0.050 |"
