"""Weights set to zero: exactly those that the criterion names, nothing else, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget, NothingPrunableError, cli
from onnxprune.calibrate.moments import Moments
from onnxprune.model.tensors import sparse_of
from onnxprune.sparsity.decide import _wanda
from onnxprune.sparsity.obs import by_count, by_mask, damped, factor, refined, sweep
from onnxprune.sparsity.targets import Pattern, obeys, outside_pattern, smallest, smallest_per_output
from tests.oracle import Array, net, session

DIGITS = Path(__file__).parent.parent / "models" / "digits.onnx"
CALIBRATION = DIGITS.with_name("digits_calib.npz")
TOLERANCE = 1e-4  # of the output's own scale: float32 sums in another order


def values(model: ModelProto) -> dict[str, Array]:
    """All stored tensors, dense, by name."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def run(model: ModelProto, seed: int = 5) -> list[Array]:
    rng = np.random.default_rng(seed)
    fed = {}
    for i in model.graph.input:
        shape = [d.dim_value or 3 for d in i.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
        fed[i.name] = rng.standard_normal(shape).astype(dtype)
    return list(session(model).run(None, fed))


def same(a: ModelProto, b: ModelProto) -> bool:
    return all(
        np.abs(x - y).max() <= TOLERANCE * max(np.abs(x).max(), 1e-6) for x, y in zip(run(a), run(b), strict=True)
    )


def mlp(inner: int = 16, **constants: Array) -> ModelProto:
    text = f"""g (float[N,12] x) => (float[N,4] y) <float[{inner},12] w, float[{inner}] b, float[{inner},4] v, float[4] c> {{
        h = Gemm<transB=1>(x, w, b)
        r = Relu(h)
        m = MatMul(r, v)
        y = Add(m, c)
    }}"""
    return net(text, constants=constants)


CONVS = """g (float[N,8,9,9] x) => (float[N,6,11,11] y)
    <float[16,8,3,3] w, float[16] b, float[16,1,3,3] d, float[16,4,1,1] e, float[16,6,3,3] t> {
        a = Conv<pads=[1,1,1,1]>(x, w, b)
        r = Relu(a)
        s = Conv<group=16, pads=[1,1,1,1]>(r, d)
        u = Conv<group=4>(s, e)
        y = ConvTranspose(u, t)
    }"""

# ---------------------------------------------------------------- masks


def test_smallest_takes_exactly_so_many() -> None:
    scores = np.array([[3.0, 1.0, 1.0], [1.0, 0.0, 2.0]])
    assert smallest(scores, 3).tolist() == [[False, True, True], [False, True, False]]
    assert smallest(scores, 0).sum() == 0 and smallest(scores, 6).all()


@pytest.mark.parametrize("count", [0, 7, 20, 23, 40])
def test_per_output_counts_are_equal(count: int) -> None:
    scores = np.random.default_rng(0).random((2, 5, 4))
    mask = smallest_per_output(scores, count)
    counts = mask.sum(axis=1)
    assert mask.sum() == count and counts.max() - counts.min() <= 1
    for g in range(2):
        for o in range(4):
            gone, kept = scores[g, mask[g, :, o], o], scores[g, ~mask[g, :, o], o]
            assert not gone.size or not kept.size or gone.max() < kept.min()


@pytest.mark.parametrize(("keep", "of", "run_"), [(2, 4, 12), (1, 3, 6), (2, 4, 6)])
def test_pattern_against_a_loop(keep: int, of: int, run_: int) -> None:
    scores = np.random.default_rng(1).random((2, 12, 3))
    mask = outside_pattern(scores, Pattern(keep, of), run_)
    for g in range(2):
        for o in range(3):
            for tap in range(0, 12, run_):
                for first in range(tap, tap + run_, of):
                    last = min(first + of, tap + run_)
                    part = scores[g, first:last, o]
                    kept = set(np.argsort(-part)[:keep])
                    assert mask[g, first:last, o].tolist() == [k not in kept for k in range(last - first)]


# ---------------------------------------------------------------- thresholds and shares


def test_threshold_is_numpys() -> None:
    model = mlp()
    edge = float(np.sort(np.abs(values(model)["w"]).ravel())[50])  # a weight of just this magnitude stays
    before, after = values(model), values(onnxprune.sparsify(model, threshold=edge, benchmark=False).model)
    for name in ("w", "v"):
        assert np.array_equal(after[name], np.where(np.abs(before[name]) < edge, 0, before[name]))
    assert (after["w"] != 0).sum() == after["w"].size - 50
    assert np.array_equal(after["b"], before["b"]) and np.array_equal(after["c"], before["c"])


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "obs"])
def test_each_layer_gets_its_share(criterion: str, tmp_path: Path) -> None:
    model = net(CONVS)
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((24, 8, 9, 9)).astype(np.float32))
    result = onnxprune.sparsify(model, sparsity=0.6, criterion=criterion, data=tmp_path / "d.npz", benchmark=False)
    found = values(result.model)
    for name in ("w", "d", "e", "t"):
        assert (found[name] == 0).sum() == round(0.6 * found[name].size), name
    assert {x.criterion for x in result.report.layers} == {criterion}


def test_global_share_is_one_threshold() -> None:
    model = net(CONVS)
    before, after = (
        values(model),
        values(onnxprune.sparsify(model, sparsity=0.3, scope="global", benchmark=False).model),
    )
    names = ("w", "d", "e", "t")
    magnitudes = np.abs(np.concatenate([before[n].ravel() for n in names]))
    zeros = np.concatenate([after[n].ravel() == 0 for n in names])
    assert zeros.sum() == round(0.3 * zeros.size)
    assert magnitudes[zeros].max() <= magnitudes[~zeros].min()
    assert len({(after[n] == 0).mean().round(3) for n in names}) > 1


def test_calibrated_global_share_counts_and_empties_no_layer() -> None:
    for criterion in ("wanda", "obs"):
        result = onnxprune.sparsify(
            DIGITS, sparsity=0.8, scope="global", criterion=criterion, data=CALIBRATION, samples=32, benchmark=False
        )
        rows = result.report.layers
        assert sum(x.zeros.after for x in rows) == round(0.8 * sum(x.weights for x in rows))
        assert all(x.zeros.after < x.weights for x in rows)
        assert len({round(x.zeros.after / x.weights, 2) for x in rows}) > 5


def test_include_and_exclude() -> None:
    model = net(CONVS)
    changed = lambda r: {k for k, v in values(r.model).items() if (v != values(model)[k]).any()}  # noqa: E731
    assert changed(onnxprune.sparsify(model, sparsity=0.5, exclude=("w", "d"), benchmark=False)) == {"e", "t"}
    result = onnxprune.sparsify(model, sparsity=0.5, include=("u",), benchmark=False)
    assert changed(result) == {"e"} and len(result.report.left_alone) == 3


# ---------------------------------------------------------------- patterns


def groups_of_four(w: Array, axis: int) -> Array:
    """Non-zero weights in every four consecutive ones along an axis."""
    moved = np.moveaxis(w, axis, -1)
    return np.count_nonzero(moved.reshape(*moved.shape[:-1], -1, 4), axis=-1)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "obs"])
def test_two_of_four_along_the_inputs(criterion: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = [(net(CONVS), (8, 9, 9), {"w": 1, "e": 1}), (mlp(), (12,), {"w": 1, "v": 0})]
    for model, shape, axes in cases:
        np.savez(tmp_path / "d.npz", x=rng.standard_normal((24, *shape)).astype(np.float32))
        result = onnxprune.sparsify(model, pattern="2:4", criterion=criterion, data=tmp_path / "d.npz", benchmark=False)
        found = values(result.model)
        for name, axis in axes.items():
            assert (groups_of_four(found[name], axis) == 2).all(), name
        left = {x.tensor: x.reason for x in result.report.left_alone}
        assert left == ({"d": "has 1 input along input channels (axis 1), fewer than 4"} if "d" in found else {})
    t = values(onnxprune.sparsify(net(CONVS), pattern="2:4", benchmark=False).model)["t"]
    assert (groups_of_four(t, 0) == 2).all()  # ConvTranspose [i, o, k, k]


def test_gemm_axis_follows_its_flag() -> None:
    for flag, axis in ((0, 0), (1, 1)):
        text = f"g (float[N,8] x) => (float[N,8] y) <float[8,8] w> {{ y = Gemm<transB={flag}, alpha=0.5>(x, w) }}"
        w = values(onnxprune.sparsify(net(text), pattern="1:4", benchmark=False).model)["w"]
        assert (groups_of_four(w, axis) == 1).all() and not (groups_of_four(w, 1 - axis) == 1).all()


# ---------------------------------------------------------------- criteria


def test_wanda_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 50, 6)), rng.standard_normal((1, 6, 3))
    moments = Moments.empty(1, 6, 0)
    moments.add(x)
    scores = _wanda(w, moments)
    for k in range(6):
        for o in range(3):
            assert np.isclose(scores[0, k, o], abs(w[0, k, o]) * np.sqrt((x[0, :, k] ** 2).sum()))


def test_wanda_compares_within_an_output(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 12)) * np.linspace(0.1, 3, 12)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    model = mlp()
    result = onnxprune.sparsify(model, sparsity=0.5, criterion="wanda", data=tmp_path / "d.npz", benchmark=False)
    w, found = values(model)["w"], values(result.model)["w"]
    assert ((found == 0).sum(axis=1) == 6).all()
    assert ((found == w) | (found == 0)).all()
    # the moments are those of the samples that are not held out: every fourth portion is
    used = np.concatenate([x[k : k + 16] for k in range(0, 48, 16)])
    scores = np.abs(w) * np.sqrt((used**2).sum(axis=0))
    assert np.array_equal(found == 0, np.argsort(np.argsort(scores, axis=1), axis=1) < 6)


def test_sweep_is_least_squares_on_what_is_left() -> None:
    """One output whose last inputs go: the others become the regression on them, up to the damping."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 90)) @ rng.standard_normal((90, 90))
    w = rng.standard_normal((1, 90, 2))
    h = (x.T @ x / len(x))[None]
    u = factor(h)
    mask = np.zeros(w.shape, bool)
    mask[:, :5] = True  # inputs that go first are repaired by all the others
    found = sweep(w, u, *by_mask(mask))[0]
    damped = np.linalg.inv(np.swapaxes(u, 1, 2)[0] @ u[0])
    best = w[0, 5:] + np.linalg.solve(damped[5:, 5:], damped[5:, :5] @ w[0, :5])
    assert np.allclose(found[5:], best, rtol=1e-5, atol=1e-6) and (found[:5] == 0).all()


def test_refined_is_least_squares_with_the_zeros_held() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 12)) @ rng.standard_normal((12, 12))
    h = damped((x.T @ x / len(x))[None], 1e-2)
    best, w = rng.standard_normal((1, 12, 3)), rng.standard_normal((1, 12, 3))
    w[0, rng.random((12, 3)) < 0.5] = 0
    found = refined(w, best, h, steps=60)[0]
    for o in range(3):
        keep = np.flatnonzero(w[0, :, o])
        exact = np.linalg.solve(h[0][np.ix_(keep, keep)], h[0][keep] @ best[0, :, o])
        assert np.allclose(found[keep, o], exact, rtol=1e-4) and np.count_nonzero(found[:, o]) == keep.size


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_obs_beats_magnitude_on_inputs_that_it_has_not_seen(share: float) -> None:
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((32, 100)) @ np.diag(np.linspace(0.2, 2, 100))
    draw = lambda n: rng.standard_normal((n, 32)) @ mix + 0.1 * rng.standard_normal((n, 100))  # noqa: E731
    x, other = draw(2000), draw(500)
    w = rng.standard_normal((1, 100, 8))
    count = round(share * w.size)
    h = (x.T @ x / len(x))[None]
    obs = refined(sweep(w, factor(h), *by_count(count, w.shape)), w, damped(h, 1e-3))
    plain = np.where(smallest(np.abs(w), count), 0, w)
    assert (obs == 0).sum() == (plain == 0).sum() == count
    error = {k: np.square(other @ (v[0] - w[0])).mean() for k, v in (("obs", obs), ("magnitude", plain))}
    assert error["obs"] < 0.5 * error["magnitude"]


def test_obs_beats_magnitude_and_wanda_on_a_trained_net() -> None:
    found = {}
    for criterion in ("magnitude", "wanda", "obs"):
        result = onnxprune.sparsify(DIGITS, sparsity=0.7, criterion=criterion, data=CALIBRATION, benchmark=False)
        found[criterion] = result.report.difference.divergence
    assert found["obs"] < 0.1 * min(found["magnitude"], found["wanda"])


def test_defaults() -> None:
    criterion = lambda **k: onnxprune.sparsify(mlp(), benchmark=False, **k).report.criterion  # noqa: E731
    assert criterion(sparsity=0.5) == "magnitude"
    with_data = onnxprune.sparsify(DIGITS, pattern="2:4", data=CALIBRATION, benchmark=False, include=("head.*",))
    assert with_data.report.criterion == "obs"
    plain = onnxprune.sparsify(DIGITS, threshold=0.1, data=CALIBRATION, benchmark=False)
    assert plain.report.criterion == "magnitude"


def test_obs_repairs_around_a_threshold() -> None:
    before = values(onnx.load(DIGITS))
    result = onnxprune.sparsify(DIGITS, threshold=0.05, criterion="obs", data=CALIBRATION, benchmark=False)
    plain = onnxprune.sparsify(DIGITS, threshold=0.05, criterion="magnitude", data=CALIBRATION, benchmark=False)
    after = values(result.model)
    for row in result.report.layers:
        name = row.tensor
        assert np.array_equal(after[name] == 0, np.abs(before[name]) < np.float32(0.05))
    assert result.report.difference.divergence < plain.report.difference.divergence


# ---------------------------------------------------------------- where weights are


def test_a_shared_weight_is_decided_once() -> None:
    text = """g (float[N,8] x) => (float[N,8] y) <float[8,8] w> {
        a = MatMul(x, w)
        r = Relu(a)
        y = MatMul(r, w)
    }"""
    rng = np.random.default_rng(0)
    model = net(text)
    for options in ({}, {"criterion": "obs"}):
        result = _with_data(model, rng.standard_normal((32, 8)), sparsity=0.5, **options)
        assert [t.name for t in result.model.graph.initializer] == ["w"]
        assert (values(result.model)["w"] == 0).sum() == 32
        assert len(result.report.layers) == 1 and result.report.layers[0].uses == 2


def _with_data(model: ModelProto, x: Array, **options: Any) -> onnxprune.SparsifyResult:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "d.npz", x=x.astype(np.float32))
        return onnxprune.sparsify(model, data=Path(folder) / "d.npz", benchmark=False, **options)


def test_weights_behind_a_transpose_in_constant_nodes_and_in_half_precision() -> None:
    w = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float16)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w, "value")),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    for criterion in ("magnitude", "obs"):
        x = np.random.default_rng(1).standard_normal((64, 12))
        result = _with_data(model, x, pattern="2:4", criterion=criterion)
        found = values(result.model)["w"]
        assert found.dtype == np.float16 and (groups_of_four(found, 1) == 2).all()
        assert [n.op_type for n in result.model.graph.node] == ["Constant", "Transpose", "Cast", "MatMul"]
        assert result.report.layers[0].criterion == criterion


def test_recurrent_weights() -> None:
    text = """g (float[5,N,6] x) => (float[5,1,N,4] y) <float[1,16,6] w, float[1,16,4] r, float[1,32] b> {
        y = LSTM<hidden_size=4>(x, w, r, b)
    }"""
    found = values(onnxprune.sparsify(net(text), sparsity=0.5, benchmark=False).model)
    assert (found["w"] == 0).sum() == 48 and (found["r"] == 0).sum() == 32 and (found["b"] != 0).all()


def test_quantized_weights_are_left_alone_with_a_reason() -> None:
    text = """g (float[N,8] x) => (float[N,4] y) <int8[8,8] q, float s, float[8,4] v> {
        w = DequantizeLinear(q, s)
        h = MatMul(x, w)
        y = MatMul(h, v)
    }"""
    result = onnxprune.sparsify(net(text, constants={"s": np.array(0.05, np.float32)}), sparsity=0.5, benchmark=False)
    assert [x.tensor for x in result.report.layers] == ["v"]
    (left,) = result.report.left_alone
    assert left.tensor == "q" and "quantized" in left.reason


def test_external_data(tmp_path: Path) -> None:
    model = mlp(512)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    onnxprune.sparsify(tmp_path / "m.onnx", sparsity=0.5, output=tmp_path / "s.onnx", benchmark=False)
    found = values(onnx.load(tmp_path / "s.onnx"))
    assert (tmp_path / "s.onnx.data").exists() and (found["w"] == 0).sum() == found["w"].size // 2


# ---------------------------------------------------------------- storage


def test_sparse_storage_loads_and_computes_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"sparsity": 0.9, "benchmark": False}
    dense = onnxprune.sparsify(DIGITS, output=tmp_path / "d.onnx", **options)
    for store in ("sparse", "auto"):
        result = onnxprune.sparsify(DIGITS, store=store, output=tmp_path / f"{store}.onnx", **options)
        assert len(result.model.graph.sparse_initializer) == 10
        assert result.report.bytes.file.after == (tmp_path / f"{store}.onnx").stat().st_size
        assert (tmp_path / f"{store}.onnx").stat().st_size < 0.45 * (tmp_path / "d.onnx").stat().st_size
        onnx.checker.check_model(onnx.load(tmp_path / f"{store}.onnx"))
        x = np.load(CALIBRATION)["x"][:8]
        wanted, found = (session(m).run(None, {"x": x})[0] for m in (dense.model, result.model))
        assert np.array_equal(wanted, found)


def test_sparse_storage_only_where_it_is_smaller() -> None:
    for store in ("sparse", "auto", "dense"):
        assert not onnxprune.sparsify(DIGITS, sparsity=0.5, store=store, benchmark=False).model.graph.sparse_initializer
    array = np.array([[0, 2.0], [0, 0], [1, 0]], np.float32)
    sparse = sparse_of("w", array)
    assert list(sparse.dims) == [3, 2] and numpy_helper.to_array(sparse.indices).tolist() == [1, 4]
    assert numpy_helper.to_array(sparse.values).tolist() == [2, 1] and sparse.values.name == "w"


def test_a_sparse_stored_model_is_pruned_repaired_and_proved(tmp_path: Path) -> None:
    thin, out, plan = (tmp_path / n for n in ("thin.onnx", "out.onnx", "plan.json"))
    onnxprune.sparsify(DIGITS, sparsity=0.8, store="sparse", output=thin, benchmark=False)
    result = onnxprune.prune(thin, Budget("macs", 0.6), data=CALIBRATION, output=out, plan=plan, benchmark=False)
    left = {t.values.name for t in result.model.graph.sparse_initializer}
    assert not left & {t.name for t in result.model.graph.initializer}, "what was fitted is stored once"
    before, after = result.report.repair.damage
    assert after < before
    assert onnxprune.verify(thin, out, plan).error < TOLERANCE


# ---------------------------------------------------------------- removal of what died


def test_a_constant_vector_is_multiplied_by() -> None:
    """As spectral normalisation leaves it: a matrix times a vector of its own."""
    text = """g (float[N,12] x) => (float[N,4] y) <float[12,16] w, float[16] u, float[16,4] v, int64 axis> {
        a = MatMul(x, w)
        h = Relu(a)
        z = MatMul(h, v)
        s = MatMul(h, u)
        t = Unsqueeze(s, axis)
        y = Add(z, t)
    }"""
    axis = {"axis": np.array([1])}
    drawn = values(net(text, constants=axis))
    u, v = drawn["u"].copy(), drawn["v"].copy()
    u[[3, 5]] = v[[3, 6]] = 0
    model = net(text, constants=axis | {"u": u, "v": v})
    result = onnxprune.sparsify(model, threshold=1e-9, then_prune=True, benchmark=False)
    assert result.report.pruned.units == 1 and values(result.model)["u"].shape == (15,)
    assert same(model, result.model)


def test_neurons_that_are_zero_or_unread_are_removed() -> None:
    model = mlp()
    v = values(model)
    w, b, out = v["w"].copy(), v["b"].copy(), v["v"].copy()
    w[[1, 2]] = 0
    b[1] = 0  # 1: zero; 2: constant, as its bias speaks
    out[[5, 6]] = 0  # nobody reads these
    result = onnxprune.sparsify(mlp(w=w, b=b, v=out), threshold=1e-6, then_prune=True, benchmark=False)
    found = values(result.model)
    assert found["w"].shape == (13, 12) and found["v"].shape == (13, 4)
    keep = [k for k in range(16) if k not in (1, 5, 6)]
    assert np.array_equal(found["w"], w[keep]) and np.array_equal(found["b"], b[keep])
    assert result.report.pruned.units == 3
    assert same(mlp(w=w, b=b, v=out), result.model)


def test_a_constant_channel_behind_sigmoid_stays() -> None:
    text = """g (float[N,6] x) => (float[N,2] y) <float[8,6] w, float[8,2] v> {
        h = Gemm<transB=1>(x, w)
        s = OP(h)
        y = MatMul(s, v)
    }"""
    w = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    w[3] = 0
    for op, units in (("Sigmoid", 0), ("Tanh", 1), ("Cos", 0)):
        model = net(text.replace("OP", op), constants={"w": w})
        result = onnxprune.sparsify(model, threshold=1e-9, then_prune=True, benchmark=False)
        assert result.report.pruned.units == units, op
        assert same(model, result.model)


def test_depthwise_and_residual_channels() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,8,8,8] y)
        <float[8,3,1,1] a, float[16,8,1,1] e, float[16] eb, float[16,1,3,3] d, float[16] db, float[8,16,1,1] p, float zero, float six> {
            s = Conv(x, a)
            h = Conv(s, e, eb)
            r = Clip(h, zero, six)
            k = Conv<group=16, pads=[1,1,1,1]>(r, d, db)
            q = Clip(k, zero, six)
            o = Conv(q, p)
            y = Add(o, s)
        }"""
    six = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    p = values(net(text, constants=dict(six)))["p"].copy()
    p[:, [2, 9, 11]] = 0
    model = net(text, constants={"p": p, **six})
    result = onnxprune.sparsify(model, threshold=1e-9, then_prune=True, benchmark=False)
    assert values(result.model)["d"].shape == (13, 1, 3, 3) and same(model, result.model)


def test_hidden_units_of_a_recurrence_that_others_hear_stay() -> None:
    text = """g (float[5,N,6] x) => (float[5,1,N,2] y) <float[1,16,6] w, float[1,16,4] r, float[4,2] v> {
        h = LSTM<hidden_size=4>(x, w, r)
        y = MatMul(h, v)
    }"""
    v = values(net(text))["v"].copy()
    v[1] = 0  # nothing reads unit 1, but the other units do, a step later
    model = net(text, constants={"v": v})
    result = onnxprune.sparsify(model, threshold=1e-9, then_prune=True, benchmark=False)
    assert result.report.pruned.units == 0
    r = values(model)["r"].copy()
    r[:, :, 1] = 0
    model = net(text, constants={"v": v, "r": r})
    result = onnxprune.sparsify(model, threshold=1e-9, then_prune=True, benchmark=False)
    assert result.report.pruned.units == 1 and same(model, result.model)


def test_then_prune_on_a_trained_net() -> None:
    sparse = onnxprune.sparsify(DIGITS, threshold=0.15, benchmark=False)
    result = onnxprune.sparsify(DIGITS, threshold=0.15, then_prune=True, benchmark=False)
    assert result.report.pruned.units > 0
    assert result.report.pruned.error <= TOLERANCE
    before, after = (sum(v.size for v in values(m).values()) for m in (sparse.model, result.model))
    assert after < before and same(sparse.model, result.model)


# ---------------------------------------------------------------- refusals, files, reports


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "exactly one target"),
        (["--threshold", "0.2", "--sparsity", "0.5"], "exactly one target"),
        (["--pattern", "2:4", "--sparsity", "0.5"], "exactly one target"),
        (["--threshold", "-1"], "above 0"),
        (["--threshold", "nan"], "above 0"),
        (["--sparsity", "1.5"], "between 0 and 1"),
        (["--pattern", "4:2"], "N:M"),
        (["--pattern", "half"], "N:M"),
        (["--pattern", "2:4", "--scope", "global"], "--scope"),
        (["--sparsity", "0.5", "--criterion", "obs"], "--data"),
        (["--threshold", "0.2", "--criterion", "wanda", "--data", str(CALIBRATION)], "magnitudes"),
        (["--sparsity", "0.5", "--include", "nothing*"], "matches no node"),
        (["--sparsity", "0.5", "--report", "r.txt"], ".md or .json"),
        (["--sparsity", "0.5", "--data", "missing.npz"], "does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(options: list[str], text: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["sparsify", str(DIGITS), "-o", str(tmp_path / "s.onnx"), *options])
    assert result.exit_code == 2 and text in result.output, result.output
    assert not list(tmp_path.iterdir())


def test_bad_arguments_of_the_function() -> None:
    for options in ({"store": "zip"}, {"criterion": "luck"}, {"scope": "all"}, {"importance": "l2"}):
        with pytest.raises(BadInputError):
            onnxprune.sparsify(DIGITS, sparsity=0.5, **options)
    with pytest.raises(NothingPrunableError, match="no weight"):
        onnxprune.sparsify(net("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), sparsity=0.5)


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.onnx").write_text("old")

    def fail(*_: Any, **__: Any) -> None:
        raise BadInputError("no room")

    monkeypatch.setattr("onnxprune.api.sparsify.save_result", fail)
    with pytest.raises(BadInputError):
        onnxprune.sparsify(
            DIGITS, sparsity=0.5, output=tmp_path / "s.onnx", report=tmp_path / "r.json", benchmark=False
        )
    assert [p.name for p in tmp_path.iterdir()] == ["s.onnx"] and (tmp_path / "s.onnx").read_text() == "old"


def test_console_and_reports(tmp_path: Path) -> None:
    command = ["sparsify", str(DIGITS), "-o", str(tmp_path / "s.onnx"), "--pattern", "2:4", "--then-prune"]
    result = CliRunner().invoke(cli.main, [*command, "--report", str(tmp_path / "r.md")])
    assert result.exit_code == 0, result.output
    for word in ("zeros", "stage1.conv1.weight", "stem.0.weight", "fewer than 4", "TensorRT", "ONNX Runtime", "wrote"):
        assert word in result.output
    assert "| head.weight | 10×64 | 0 | 320 | 50.0% | magnitude |" in (tmp_path / "r.md").read_text(encoding="utf-8")
    result = CliRunner().invoke(cli.main, [*command, "--json", "--report", str(tmp_path / "r.json")])
    data = json.loads(result.output)
    assert data["zeros"] == {"weights": 76928, "before": 0, "after": 38464}
    written = json.loads((tmp_path / "r.json").read_text())
    assert {k: v for k, v in written.items() if k not in ("seconds", "latency_ms")} == {
        k: v for k, v in data.items() if k not in ("seconds", "latency_ms")
    }


def test_the_same_twice_and_the_input_is_left_alone(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    before = model.SerializeToString()
    first, second = (
        onnxprune.sparsify(model, sparsity=0.5, data=CALIBRATION, samples=32, benchmark=False) for _ in range(2)
    )
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert model.SerializeToString() == before


def test_obeys() -> None:
    w = np.ones((1, 8, 1))
    assert not obeys(w, Pattern(2, 4), 8)
    w[0, [0, 1, 4, 5]] = 0
    assert obeys(w, Pattern(2, 4), 8) and not obeys(w, Pattern(1, 4), 8)


# ---------------------------------------------------------------- what is there already, and what teaches nothing


@pytest.mark.parametrize(
    "options",
    [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.5, "scope": "global"}, {"threshold": 0.01}],
    ids=str,
)
def test_zeros_that_are_there_stay(options: dict[str, Any]) -> None:
    sparse = onnxprune.sparsify(DIGITS, sparsity=0.9, scope="global", data=CALIBRATION, benchmark=False).model
    again = onnxprune.sparsify(sparse, **options, criterion="obs", data=CALIBRATION, benchmark=False)
    before, after = values(sparse), values(again.model)
    weights = [x.tensor for x in again.report.layers]
    assert weights and all(not after[w][before[w] == 0].any() for w in weights)
    zeros = again.report.zeros
    assert zeros.after >= zeros.before


def test_constant_inputs_do_no_harm(tmp_path: Path) -> None:
    """Fits to them would make up for noise, more of it in every layer."""
    for value in (0.0, 0.7):
        np.savez(tmp_path / "c.npz", x=np.full((32, 1, 16, 16), value, np.float32))
        options: dict[str, Any] = {"sparsity": 0.5, "data": tmp_path / "c.npz", "benchmark": False}
        found = onnxprune.sparsify(DIGITS, **options)
        plain = onnxprune.sparsify(DIGITS, criterion="magnitude", **options)
        assert found.report.difference.divergence <= plain.report.difference.divergence + 1e-3
        norms = [
            [float(np.linalg.norm(values(m)[k])) for k in values(onnx.load(DIGITS))]
            for m in (found.model, onnx.load(DIGITS))
        ]
        assert all(a <= 10 * b + 1e-6 for a, b in zip(*norms, strict=True))


def test_a_scalar_input_of_floats_goes_with_then_prune() -> None:
    model = net("""g (float[N,6] x, float s) => (float[N,4] y) <float[6,8] w, float[8,4] v> {
        h = MatMul(x, w)
        t = Mul(h, s)
        r = Relu(t)
        y = MatMul(r, v)
    }""")
    assert onnxprune.sparsify(model, sparsity=0.9, then_prune=True, benchmark=False).report.pruned.units
