"""From moments to a repaired model: every number against least squares by numpy, every model against ONNX Runtime.

Seen red: moments that forget the mean, a surgeon that does not update its inverse or looks at one consumer, a closed form without
`mean' (W - W')`, held-out samples that are fitted too or patched into fitted ones, a refit of weights that another node reads, the
scale behind a layer turned round.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from scipy.special import rel_entr, softmax

import onnxprune
from onnxprune import BadInputError, Budget, VerificationError
from onnxprune.analyse.batch import Batch, first_axes
from onnxprune.analyse.feeds import merged, portions, samples_of
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.analyse.synthesize import synthesize
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.damage import divergence
from onnxprune.calibrate.judging import judged_by
from onnxprune.calibrate.moments import Moments, Waiting
from onnxprune.choose.channels import keeps_size
from onnxprune.choose.costs import CostModel
from onnxprune.choose.options import Options
from onnxprune.choose.order import Order
from onnxprune.choose.sensitivity import closed_form, curve, judge, sense
from onnxprune.choose.surgeon import operate, ranked
from onnxprune.cut.plan import removed_by
from onnxprune.cut.rewrite import rewrite
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.model.patch import constants_at, with_constants
from onnxprune.repair.least_squares import Repaired, compensate
from onnxprune.report.markdown import markdown
from onnxprune.runtime import graph_inputs
from tests.helpers import score
from tests.oracle import Array, feeds, net, session

Feeds = dict[str, Array]

# ---------------------------------------------------------------- moments


def blocks(seed: int = 0) -> tuple[Array, Array, list[tuple[Array, Array]]]:
    """X [g, P, K] and Y [g, P, O] with means far from 0, and cut into uneven parts."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((2, 300, 4)) + [3, 0, -2, 1]).astype(np.float32)
    y = (rng.standard_normal((2, 300, 3)) + 5).astype(np.float32) + x[..., :3]
    return x, y, [(x[:, a:b], y[:, a:b]) for a, b in ((0, 7), (7, 7), (7, 200), (200, 300))]


def test_moments_are_those_of_the_stacked_data() -> None:
    x, y, parts = blocks()
    moments = Moments.empty(2, 4, 3)
    for part in parts:
        moments.add(*part)
    assert moments.count == 300
    for g in range(2):
        both = np.cov(np.concatenate([x[g], y[g]], axis=1), rowvar=False, bias=True)
        assert np.allclose(moments.covariance()[g], both[:4, :4], atol=1e-4)
        assert np.allclose(moments.covariance_of(g), both[:4, :4], atol=1e-4)
        assert np.allclose(moments.cross_covariance()[g], both[:4, 4:], atol=1e-4)
        assert np.allclose(moments.variance_y()[g], np.diag(both)[4:], atol=1e-4)
        assert np.allclose(moments.mean_x[g], x[g].mean(axis=0), atol=1e-5)
        assert np.allclose(moments.mean_y[g], y[g].mean(axis=0), atol=1e-5)


def test_moments_add_up() -> None:
    _, _, parts = blocks()
    whole, left, right = (Moments.empty(2, 4, 3) for _ in range(3))
    for k, part in enumerate(parts):
        whole.add(*part)
        (left if k < 3 else right).add(*part)
    total = left + right
    assert total.count == whole.count and left.count == 200
    assert all(np.allclose(getattr(total, f), getattr(whole, f)) for f in ("x", "xx", "y", "xy", "yy"))


def test_few_rows_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sums, and one product where there would be one of each row."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 40, 16)).astype(np.float32), rng.standard_normal((2, 40, 3)).astype(np.float32)
    products = []
    add = Moments.add

    def counted(self: Moments, *rows: Any) -> None:
        products.append(rows[0].shape[1])
        add(self, *rows)

    monkeypatch.setattr(Moments, "add", counted)
    plain, late, alone, waiting = Moments.empty(2, 16, 3), Moments.empty(2, 16, 3), Moments.empty(2, 16, 0), Waiting()
    for k in range(39):
        waiting.add(late, x[:, k : k + 1], y[:, k : k + 1])
        waiting.add(alone, x[:, k : k + 1])
    assert products == [4] * 18 and late.count == 36
    waiting.finish()
    waiting.finish()
    assert products == [4] * 18 + [3] * 2
    plain.add(x[:, :39], y[:, :39])
    for field in ("count", "x", "xx", "y", "xy", "yy"):
        assert np.allclose(getattr(late, field), getattr(plain, field), rtol=1e-5, atol=1e-5)
    assert np.allclose(alone.xx, plain.xx, rtol=1e-5, atol=1e-5) and not alone.y.any()


def test_error_is_the_mean_square_error() -> None:
    x, y, parts = blocks()
    moments = Moments.empty(2, 4, 3)
    for part in parts:
        moments.add(*part)
    rng = np.random.default_rng(1)
    w, b = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 3))
    direct = np.square(y - x @ w - b[:, None]).mean(axis=1)
    assert np.allclose(moments.error(w, b), direct, rtol=1e-5)
    assert np.array_equal(Moments.empty(1, 2, 3).error(np.ones((1, 2, 3)), np.zeros((1, 3))), np.zeros((1, 3)))


def test_moments_of_inputs_alone() -> None:
    x, _, _ = blocks()
    moments = Moments.empty(2, 4, 0)
    moments.add(x)
    assert np.allclose(moments.xx, np.einsum("gpk,gpl->gkl", x, x), rtol=1e-5)


def test_moments_of_half_floats_do_not_overflow() -> None:
    x = np.full((1, 4000, 2), 30, np.float16)
    moments = Moments.empty(1, 2, 1)
    moments.add(x, x[..., :1])
    assert np.allclose(moments.xx, 4000 * 900) and np.allclose(moments.xy, 4000 * 900)
    assert np.allclose(moments.x, 4000 * 30)


# ---------------------------------------------------------------- the parts, put together


def prepared(model: ModelProto, given: Sequence[Feeds], **options: Any) -> tuple[Analysis, Calibration]:
    settings = Options(**options)
    analysis = analysis_of(load(model), settings.scope)
    samples = samples_of(list(given), graph_inputs(model))
    return analysis, calibrate(analysis, samples, judged_by(analysis.model, keeps_size(analysis)))


def classes_along(analysis: Analysis, tensor: str, axis: int) -> Array:
    """The class of every position along an axis."""
    (facet,) = [f for f in analysis.maps[tensor] if f.shape[axis] == f.size]
    return np.asarray(analysis.solution.classes[facet.ravel()])


def without(analysis: Analysis, tensor: str, axis: int, channels: Sequence[int]) -> Bools:
    removed = np.zeros(analysis.solution.count, bool)
    removed[classes_along(analysis, tensor, axis)[list(channels)]] = True
    return analysis.solution.closure(removed)


def channels_of(analysis: Analysis, tensor: str, axis: int, order: Order) -> list[int]:
    """Which channel goes at each step."""
    along = classes_along(analysis, tensor, axis).tolist()
    return [along.index(c) for step in order.classes for c in step.tolist()]


def tensor_of(model: ModelProto, name: str, given: Sequence[Feeds]) -> list[Array]:
    copy = ModelProto()
    copy.CopyFrom(model)
    if name not in {o.name for o in copy.graph.output}:
        copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    whole = session(copy)
    return [whole.run([name], g)[0] for g in given]


def fitted_on(calibration: Calibration) -> list[Feeds]:
    return [f for f, held in zip(calibration.samples.feeds, calibration.samples.held, strict=True) if not held]


def unexplained(x: Array, y: Array) -> float:
    """What linear regression with a constant leaves of y [P, O], per position."""
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    fit = np.linalg.lstsq(design, y.astype(np.float64), rcond=None)[0]
    return float(np.square(design @ fit - y).sum(axis=1).mean())


def relative(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """Mean square difference over the variance."""
    w, f = np.concatenate([a.ravel() for a in wanted]), np.concatenate([a.ravel() for a in found])
    return float(np.square(w - f).mean() / w.var())


def run(model: ModelProto, given: Sequence[Feeds]) -> list[Array]:
    loaded = session(model)
    return [loaded.run(None, g)[0] for g in given]


def drawn(model: ModelProto, count: int, batch: int = 32, seed: int = 0) -> list[Feeds]:
    """Inputs with a mean, so that biases matter."""
    given = [feeds(model, 100 * seed + k, (batch, 5)) for k in range(count)]
    return [{n: v + 1 if v.dtype.kind == "f" else v for n, v in g.items()} for g in given]


# ---------------------------------------------------------------- surgeon

TINY = """g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[6] b, float[6,3] v> {
    h0 = MatMul(x, a)
    h1 = Add(h0, b)
    h = Relu(h1)
    y = MatMul(h, v)
}"""


def true_curve(h: Array, consumers: list[Array], order: list[int]) -> list[float]:
    """Error after each step, summed over consumers of variance 1: the rest of a regression on what is left of h [P, C, taps]."""
    errors = []
    for k in range(1, len(order) + 1):
        left = np.delete(h, order[:k], axis=1).reshape(len(h), -1)
        errors.append(sum(unexplained(left, y) / y.var(axis=0).sum() for y in consumers))
    return errors


def greedy(h: Array, consumers: list[Array]) -> list[int]:
    """Brute force: the channel whose loss hurts least, again and again."""
    order: list[int] = []
    for _ in range(h.shape[1] - 1):
        rest = [j for j in range(h.shape[1]) if j not in order]
        order.append(min(rest, key=lambda j: true_curve(h, consumers, [*order, j])[-1]))
    return order


def operated(model: ModelProto, given: Sequence[Feeds]) -> tuple[Analysis, Calibration, dict[str, Order]]:
    analysis, calibration = prepared(model, given)
    scores = np.random.default_rng(0).random(analysis.solution.count)
    return analysis, calibration, operate(analysis, calibration, scores)


@pytest.mark.parametrize("seed", range(4))
def test_order_and_curve_are_those_of_least_squares(seed: int) -> None:
    model = net(TINY, seed=seed)
    analysis, calibration, orders = operated(model, drawn(model, 8, seed=seed))
    (order,) = orders.values()
    given = fitted_on(calibration)
    h = np.concatenate(tensor_of(model, "h", given))[..., None]
    y = np.concatenate(tensor_of(model, "y", given))
    found = channels_of(analysis, "h", 1, order)
    assert found[0] == greedy(h, [y])[0] and found == greedy(h, [y])
    assert np.allclose(order.error, true_curve(h, [y], found), rtol=0.02, atol=2e-3), "damping is 1e-3"
    assert (np.diff(order.error) >= 0).all() and order.consumers == ("y",)


def test_errors_of_all_consumers_add_up() -> None:
    model = net("""g (float[N,5] x) => (float[N,3] y, float[N,2] z) <float[5,6] a, float[6,3] v, float[6,2] u, float[6] lift, float[2] ub> {
        h0 = MatMul(x, a)
        h = Tanh(h0)
        y = MatMul(h, v)
        k0 = Mul(h, lift)
        k = Exp(k0)
        z = Gemm(k, u, ub)
    }""")
    analysis, calibration, orders = operated(model, drawn(model, 8))
    (order,) = orders.values()
    given = fitted_on(calibration)
    h, k, y, z = (np.concatenate(tensor_of(model, n, given)) for n in "hkyz")
    found = channels_of(analysis, "h", 1, order)
    wanted = np.add(true_curve(h[..., None], [y], found), true_curve(k[..., None], [z], found))
    assert np.allclose(order.error, wanted, rtol=0.03, atol=2e-3)
    assert sorted(order.consumers) == ["y", "z"]


def test_a_channel_of_a_convolution_is_all_of_its_taps() -> None:
    model = net("""g (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[5,3,1,1] a, float[5] b, float[2,5,3,3] v> {
        h0 = Conv(x, a, b)
        h = Relu(h0)
        y = Conv<pads=[1,1,1,1]>(h, v)
    }""")
    analysis, calibration, orders = operated(model, drawn(model, 8))
    (order,) = orders.values()
    given = fitted_on(calibration)
    h, y = (np.concatenate(tensor_of(model, n, given)) for n in "hy")
    padded = np.pad(h, [(0, 0), (0, 0), (1, 1), (1, 1)])
    taps = np.stack([padded[:, :, i : i + 6, j : j + 6] for i in range(3) for j in range(3)], axis=-1)
    unfolded = taps.transpose(0, 2, 3, 1, 4).reshape(-1, 5, 9)
    outputs = y.transpose(0, 2, 3, 1).reshape(-1, 2)
    found = channels_of(analysis, "h", 1, order)
    assert found == greedy(unfolded, [outputs])
    assert np.allclose(order.error, true_curve(unfolded, [outputs], found), rtol=0.02, atol=2e-3)


def test_of_two_equal_channels_one_goes_first_and_costs_nothing() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((5, 6)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    a[:, 4], b[4] = a[:, 1], b[1]
    model = net(TINY, constants={"a": a, "b": b})
    analysis, _, orders = operated(model, drawn(model, 8))
    (order,) = orders.values()
    found = channels_of(analysis, "h", 1, order)
    assert found[0] in (1, 4) and order.error[0] < 2e-3
    assert found[1] not in (1, 4) and order.error[1] > 5 * order.error[0], "the other has to do for both"


def test_units_without_consumers_go_by_their_scores() -> None:
    model = net(TINY)
    analysis = analysis_of(load(model), Scope())
    scores = np.zeros(analysis.solution.count)
    scores[classes_along(analysis, "h", 1)] = [3, 1, 5, 2, 6, 4]
    (order,) = ranked(analysis, scores).values()
    assert channels_of(analysis, "h", 1, order) == [1, 3, 0, 5, 2]
    assert np.allclose(order.error, np.square(np.arange(1, 6) / 5)) and order.consumers == ()


# ---------------------------------------------------------------- a layer of every kind loses what it can spare

REPAIRED: dict[str, tuple[str, int, tuple[int, ...]]] = {
    # text with a layer `a` that makes `h`; the axis of a's outputs; the channels that are made of others
    "MatMul": (
        "g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[6,3] v> { h = MatMul(x, a)  y = MatMul(h, v) }",
        1,
        (5,),
    ),
    "MatMul of three axes, then Add": (
        "g (float[N,4,5] x) => (float[N,4,3] y) <float[5,6] a, float[6,3] v, float[3] b> { h = MatMul(x, a)  m = MatMul(h, v)  y = Add(b, m) }",
        1,
        (5,),
    ),
    "Gemm": (
        "g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[6,3] v, float[3] b> { h = MatMul(x, a)  y = Gemm(h, v, b) }",
        1,
        (0,),
    ),
    "Gemm, turned and scaled": (
        "g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[3,6] v, float[3] b> { h = MatMul(x, a)  y = Gemm<transB=1, alpha=0.5, beta=2.0>(h, v, b) }",
        1,
        (2,),
    ),
    "Gemm with a bias of two axes": (
        "g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[6,3] v, float[1,3] b> { h = MatMul(x, a)  y = Gemm(h, v, b) }",
        1,
        (5,),
    ),
    "Gemm with one bias for all": (
        "g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[6,3] v, float[1] b> { h = MatMul(x, a)  y = Gemm(h, v, b) }",
        1,
        (5,),
    ),
    "Gemm without bias": (
        "g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[6,3] v> { h = MatMul(x, a)  y = Gemm(h, v) }",
        1,
        (5,),
    ),
    "weights on the left": (
        "g (float[5,N] x) => (float[3,N] y) <float[6,5] a, float[3,6] v> { h = MatMul(a, x)  y = MatMul(v, h) }",
        0,
        (5,),
    ),
    "weights on the left and a bias for columns": (
        "g (float[5,4] x) => (float[4,4] y) <float[6,5] a, float[4,6] v, float[4] b> { h = MatMul(a, x)  m = MatMul(v, h)  y = Add(m, b) }",
        0,
        (5,),
    ),
    "weight turned by the graph": (
        "g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[3,6] v> { vt = Transpose<perm=[1,0]>(v)  vi = Identity(vt)  h = MatMul(x, a)  y = MatMul(h, vi) }",
        1,
        (5,),
    ),
    "Conv": (
        "g (float[N,4,5,5] x) => (float[N,3,5,5] y) <float[6,4,1,1] a, float[3,6,3,3] v, float[3] b> { h = Conv(x, a)  y = Conv<pads=[1,1,1,1]>(h, v, b) }",
        0,
        (5,),
    ),
    "Conv without bias": (
        'g (float[N,4,5,5] x) => (float[N,3,5,5] y) <float[6,4,1,1] a, float[3,6,3,3] v> { h = Conv(x, a)  y = Conv<auto_pad="SAME_UPPER">(h, v) }',
        0,
        (1,),
    ),
    "Conv of three axes": (
        "g (float[N,4,3,4,3] x) => (float[N,3,2,3,2] y) <float[6,4,1,1,1] a, float[3,6,2,2,2] v, float[3] b> { h = Conv(x, a)  y = Conv(h, v, b) }",
        0,
        (5,),
    ),
    "groups": (
        "g (float[N,4,5,5] x) => (float[N,4,5,5] y) <float[6,4,1,1] a, float[4,3,3,3] v, float[4] b> { h = Conv(x, a)  y = Conv<group=2, pads=[1,1,1,1]>(h, v, b) }",
        0,
        (2, 5),
    ),
    "ConvTranspose": (
        "g (float[N,4,5,5] x) => (float[N,3,9,9] y) <float[6,4,1,1] a, float[6,3,3,3] v, float[3] b> { h = Conv(x, a)  y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(h, v, b) }",
        0,
        (5,),
    ),
    "Constant nodes": (
        """g (float[N,2] x) => (float[N,2] y) <float[2,3] a> {
            v = Constant<value = float[3,2] {1.0, 2.0, 3.0, -4.0, 5.0, 6.0}>()
            b = Constant<value = float[2] {1.0, 2.0}>()
            h = MatMul(x, a)
            y = Gemm(h, v, b)
        }""",
        1,
        (2,),
    ),
    "behind normalization": (
        """g (float[N,4,5,5] x) => (float[N,3,5,5] y)
            <float[6,4,1,1] a, float[6] svar, float[6] t, float[6] mean, float[6] var, float[3,6,1,1] v, float[3] b> {
            k = Conv(x, a)
            h = BatchNormalization(k, svar, t, mean, var)
            y = Conv(h, v, b)
        }""",
        0,
        (1,),
    ),
    "inside a branch": (
        """g (float[N,5] x, bool c) => (float[N,3] y) {
            x1 = Identity(x)
            y = If (c) <
                then_branch = t () => (float[N,3] p) <float[5,6] a, float[6,3] v, float[3] b> { h = MatMul(x1, a)  p = Gemm(h, v, b) },
                else_branch = e () => (float[N,3] q) <float[5,3] z> { q = MatMul(x1, z) }
            >
        }""",
        1,
        (5,),
    ),
    "inside a branch, weights outside": (
        """g (float[N,5] x, bool c) => (float[N,3] y) <float[5,6] a, float[6,3] v, float[3] b, float[5,3] z> {
            y = If (c) <
                then_branch = t () => (float[N,3] p) { h = MatMul(x, a)  m = MatMul(h, v)  p = Add(m, b) },
                else_branch = e () => (float[N,3] q) { q = MatMul(x, z) }
            >
        }""",
        1,
        (5,),
    ),
}


def spare(name: str) -> tuple[ModelProto, str, int, tuple[int, ...]]:
    """The model, the key of h, the axis of its channels, and those that are linear in the others (of their group)."""
    text, axis, channels = REPAIRED[name]
    model = net(text)
    tensor = next(t for g in _graphs(model.graph) for t in g.initializer if t.name == "a")
    kernel = np.moveaxis(numpy_helper.to_array(tensor).copy(), axis, 0)
    size = len(kernel) // len(channels)
    for channel in channels:
        first = channel // size * size
        others = [k for k in range(first, first + size) if k != channel]
        kernel[channel] = np.tensordot(np.linspace(-2, 1, len(others)).astype(np.float32), kernel[others], 1)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(kernel, 0, axis)), "a"))
    key = "y.then_branch//h" if "branch" in name else "h"
    return model, key, -2 if "left" in name else 1 if "Conv" in text else -1, channels


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    return [graph, *(g for n in graph.node for a in n.attribute if a.HasField("g") for g in _graphs(a.g))]


def taken(given: list[Feeds]) -> list[Feeds]:
    return [{n: np.array(True) if v.dtype.kind == "b" else v for n, v in g.items()} for g in given]


@pytest.mark.parametrize("name", REPAIRED)
def test_a_layer_does_without_what_the_others_say(name: str) -> None:
    model, key, axis, channels = spare(name)
    analysis, calibration = prepared(model, taken(drawn(model, 8)))
    axis %= len(analysis.observation.shapes[key])
    removed = without(analysis, key, axis, channels)
    cut = rewrite(analysis, removed)
    fresh = taken(drawn(model, 2, seed=7))
    wanted = run(model, fresh)
    assert relative(wanted, run(cut, fresh)) > 1e-2
    closed = with_constants(cut, closed_form(analysis, calibration, removed))
    onnx.checker.check_model(closed, full_check=True)
    assert relative(wanted, run(closed, fresh)) < 1e-4, "its damping is 1e-3"
    repaired = compensate(analysis, removed, cut, calibration)
    onnx.checker.check_model(repaired.model, full_check=True)
    scale = max(np.abs(w).max() for w in wanted)
    worst = max(np.abs(w - f).max() for w, f in zip(wanted, run(repaired.model, fresh), strict=True))
    assert worst < 1e-3 * scale
    assert repaired.repair.changed and {f.layer for f in repaired.repair.fits}
    assert judge(calibration, Model(repaired.model)) < judge(calibration, Model(closed)) + 1e-9
    values = constants_at(Model(repaired.model), repaired.repair.changed)
    assert list(values) == list(repaired.repair.changed)
    assert with_constants(cut, values).SerializeToString() == repaired.model.SerializeToString()


@pytest.mark.parametrize("count", [1, 3])
def test_the_closed_form_is_least_squares(count: int) -> None:
    model = net(
        TINY.replace("y = MatMul(h, v)", "m = MatMul(h, v)  y = Add(m, vb)"), constants={"vb": np.ones(3, np.float32)}
    )
    analysis, calibration = prepared(model, drawn(model, 8))
    removed = without(analysis, "h", 1, range(count))
    changes = closed_form(analysis, calibration, removed)
    assert sorted(changes) == [("m", 1), ("y", 1)]
    given = fitted_on(calibration)
    h, y = (np.concatenate(tensor_of(model, n, given)) for n in "hy")
    left = np.concatenate([h[:, count:], np.ones((len(h), 1))], axis=1)
    best = np.linalg.lstsq(left, y, rcond=None)[0]
    assert np.abs(changes["m", 1] - best[:-1]).max() < 2e-2 * np.abs(best).max()
    found = h[:, count:] @ changes["m", 1] + changes["y", 1]
    error = float(np.square(found - y).sum(axis=1).mean())
    assert error == pytest.approx(unexplained(h[:, count:], y), rel=1e-2)
    assert np.allclose(found.mean(axis=0), y.mean(axis=0), atol=1e-4), "the bias takes the mean"


@pytest.mark.parametrize("bias", ["", "float[6] b", "float[1,6] b", "float[1] b"])
def test_a_layer_that_loses_outputs_too(bias: str) -> None:
    """In a residual stream the inputs and the outputs of a layer go together."""
    arguments = "r, w, b" if bias else "r, w"
    model = net(f"""g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[6,6] w, float[6,3] v, float[3] vb{", " + bias if bias else ""}> {{
        h = MatMul(x, a)
        r = Relu(h)
        k = Gemm({arguments})
        s = Add(k, h)
        y = Gemm(s, v, vb)
    }}""")
    analysis, calibration = prepared(model, drawn(model, 8))
    removed = without(analysis, "h", 1, [0, 3])
    cut = rewrite(analysis, removed)
    closed = with_constants(cut, closed_form(analysis, calibration, removed))
    repaired = compensate(analysis, removed, cut, calibration)
    damage = [judge(calibration, Model(m)) for m in (cut, closed, repaired.model)]
    assert damage[1] < 0.9 * damage[0] and damage[2] < 0.9 * damage[0]


# ---------------------------------------------------------------- damage


def logits(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_divergence_of_logits_and_probabilities() -> None:
    w, f = [[logits(k, 3, 5)] for k in range(4)], [[logits(k + 9, 3, 5)] for k in range(4)]
    p, q = (softmax(np.concatenate([a for (a,) in s]).astype(np.float64), axis=1) for s in (w, f))
    direct = float(rel_entr(p, q).sum(axis=1).mean())
    a, b = (np.concatenate([x - x.mean(axis=1, keepdims=True) for (x,) in s]) for s in (w, f))
    direct += 0.02 * float(np.square(a - b).mean() / a.var())
    assert divergence(w, f) == pytest.approx(direct, rel=1e-5)
    assert divergence(w, [[a + 7] for (a,) in w]) == pytest.approx(0, abs=1e-6), "softmax does not see it"
    soft = [[[softmax(a, axis=1)] for (a,) in s] for s in (w, f)]
    assert divergence(*soft) == pytest.approx(direct, rel=1e-3)
    assert divergence(w, w) == divergence(soft[0], soft[0]) == 0


def test_divergence_of_single_probabilities() -> None:
    p, q = (1 / (1 + np.exp(-logits(k, 4, 3))) for k in (1, 2))
    direct = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean()
    a, b = (np.log(x / (1 - x)) for x in (p, q))
    direct += 0.02 * np.square(a - b).mean() / a.var()
    assert divergence([[p]], [[q]]) == pytest.approx(float(direct), rel=1e-4)


def test_divergence_of_other_values() -> None:
    """Slices along the shortest axis behind the batch count alike, whatever their scales."""
    rng = np.random.default_rng(0)
    scale = np.array([1, 100, 0.5])[:, None]
    w = [[(rng.standard_normal((2, 3, 50)) + 1) * scale] for _ in range(3)]
    f = [[a + 0.1 * rng.standard_normal(a.shape) * scale] for (a,) in w]
    stacked, other = np.concatenate([a for (a,) in w]), np.concatenate([a for (a,) in f])
    parts = [np.square(stacked[:, k] - other[:, k]).mean() / stacked[:, k].var() for k in range(3)]
    assert divergence(w, f) == pytest.approx(float(np.mean(parts)), rel=1e-9)
    flat = [[a.reshape(-1)] for (a,) in w], [[a.reshape(-1)] for (a,) in f]
    assert divergence(*flat) == pytest.approx(relative([a for (a,) in w], [a for (a,) in f]), rel=1e-9)
    uneven = [[a[:, :, : 10 + k]] for k, (a,) in enumerate(w)], [[a[:, :, : 10 + k]] for k, (a,) in enumerate(f)]
    assert divergence(*uneven) == pytest.approx(relative(*([a for (a,) in s] for s in uneven)), rel=1e-9)


def test_divergence_sums_over_outputs_and_counts_labels() -> None:
    a, b, ids = logits(1, 4, 3), logits(2, 4, 3, 2), np.arange(4)
    other = [logits(3, 4, 3), logits(4, 4, 3, 2), ids + 1]
    single = divergence([[a]], [other[:1]]) + divergence([[b]], [other[1:2]])
    assert divergence([[a, b]], [other[:2]]) == pytest.approx(single) and single > 0
    assert divergence([[ids]], [other[2:]]) == 1 and divergence([[ids]], [[np.array([0, 1, 2, 9])]]) == 0.25
    assert divergence([[a]], [[a[:, :2]]]) == float("inf")
    assert all(not divergence([[x]], [[x * np.nan]]) < 1 for x in (a, b, softmax(a, axis=1), softmax(a, axis=1)[:, :1]))


def test_the_curve_goes_through_what_was_measured() -> None:
    error = np.linspace(0.01, 1, 20) ** 2
    found = curve(error, [5, 10, 15], [0.02, 0.1, 0.05])
    assert found[0] == 0 and len(found) == 21 and (np.diff(found) >= 0).all()
    assert np.allclose(found[[5, 10]], [0.02, 0.1]) and found[15] == pytest.approx(0.1, rel=1e-6), "it never falls"
    assert np.allclose(curve(error, [5, 10, 15], 3 * error[[4, 9, 14]])[1:], 3 * error), "damage that follows the error"


def test_sense_measures_each_group_alone() -> None:
    model = net(TINY)
    analysis, calibration, orders = operated(model, drawn(model, 8))
    (damage,) = sense(analysis, calibration, orders, CostModel(analysis)).values()
    (order,) = orders.values()
    found = channels_of(analysis, "h", 1, order)
    held = [f for f, h in zip(calibration.samples.feeds, calibration.samples.held, strict=True) if h]
    for n in (1, 2, 4):  # a quarter, half and three quarters of five steps
        removed = without(analysis, "h", 1, found[:n])
        trial = with_constants(rewrite(analysis, removed), closed_form(analysis, calibration, removed))
        p, q = (softmax(np.concatenate(run(m, held)).astype(np.float64), axis=1) for m in (model, trial))
        assert damage[n] >= 0.999 * rel_entr(p, q).sum(axis=1).mean()
    assert damage[0] == 0 and len(damage) == 6


# ---------------------------------------------------------------- samples


def declared(**shapes: Sequence[int | str]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in shapes.items()]


def numbered(count: int, *shape: int, first: int = 0) -> Array:
    """Sample k is filled with k."""
    return np.broadcast_to(np.arange(first, first + count).reshape(-1, *[1] * len(shape)), (count, *shape)).astype(
        np.float32
    )


def cut(feeds: Sequence[Feeds], inputs: Sequence[onnx.ValueInfoProto]) -> Batch:
    found = first_axes(feeds, inputs)
    assert found is not None
    return found


def test_single_feeds_are_merged_where_the_batch_is_dynamic() -> None:
    inputs = declared(x=["N", 3], m=["N", "T"])
    each = [{"x": numbered(1, 3, first=k), "m": numbered(1, 4 + k % 2, first=k)} for k in range(6)]
    found = merged(each, cut(each, inputs))
    assert [f["x"][:, 0].tolist() for f in found] == [[0, 2, 4], [1, 3, 5]]
    assert [f["m"].shape for f in found] == [(3, 4), (3, 5)]
    fixed = declared(x=[1, 3], m=["N", "T"])
    alone = merged(each, cut(each, fixed))
    assert [(f["x"][0, 0], f["m"].shape) for f in alone] == [(f["x"][0, 0], f["m"].shape) for f in each]
    scalar = [{"x": np.float32(k)} for k in range(3)]
    assert merged(scalar, cut(scalar, declared(x=[]))) is scalar


@pytest.mark.parametrize(
    "count, size, total", [(128, 16, 128), (64, 16, 64), (30, 7, 30), (8, 2, 8), (3, 1, 3), (200, 16, 200)]
)
def test_dynamic_batches_are_cut_into_portions(count: int, size: int, total: int) -> None:
    given = [{"x": numbered(count, 3)}]
    found = portions(given, cut(given, declared(x=["N", 3])))
    assert {len(f["x"]) for f in found[:-1]} <= {size} and 1 <= len(found[-1]["x"]) <= size
    assert np.concatenate([f["x"] for f in found])[:, 0].tolist() == list(range(total))


def test_fixed_batches_are_cut_where_they_must() -> None:
    given = [{"x": numbered(10, 3)}]
    found = portions(given, cut(given, declared(x=[2, 3])))
    assert [f["x"][:, 0].tolist() for f in found] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    given = [{"x": numbered(6, 3), "s": numbered(4, 2)}]
    both = portions(given, cut(given, declared(x=[1, 3], s=[4, 2])))
    assert len(both) == 6 and all(np.array_equal(f["s"], numbered(4, 2)) for f in both), "what is no batch goes along"
    single = [{"x": numbered(2, 3)}]
    assert portions(single, cut(single, declared(x=[2, 3]))) == single


@pytest.mark.parametrize("limit", [1, 5, 12, 99])
def test_portions_are_limited(limit: int) -> None:
    each = [{"x": numbered(8, 3, first=8 * k)} for k in range(5)]
    found = portions(each, cut(each, declared(x=["N", 3])), limit)
    values = [v for f in found for v in f["x"][:, 0].tolist()]
    assert values == sorted(set(values)) and len(values) == min(limit, 40)


def test_every_fourth_portion_is_held_out() -> None:
    inputs = declared(x=["N", 3])
    found = samples_of([{"x": numbered(64, 3)}], inputs)
    assert found.held == (False, False, False, True) and found.sizes == (16,) * 4 and found.count == 64
    few = samples_of([{"x": numbered(2, 3)}], inputs)
    assert few.held == (False, True) and few.given == 2
    assert samples_of([{"x": numbered(1, 3)}], inputs).held == (False,)
    assert samples_of([{"x": numbered(64, 3)}], inputs, limit=20).count == 20


def test_made_samples_mix_what_is_on_the_same_side() -> None:
    """Patches of held-out samples never come into those that are fitted."""
    inputs = declared(x=["N", 1, 16, 16])
    given = numbered(32, 1, 16, 16)
    found = samples_of([{"x": given}], inputs, wanted=100, seed=3)
    assert found.given == 4 and found.count == 32 and len(found.feeds) == 16 and sum(found.sizes) == 128
    assert found.held == (False, False, False, True) * 4
    held = set(range(24, 32))
    for k, (feed, out) in enumerate(zip(found.feeds, found.held, strict=True)):
        for n, image in enumerate(feed["x"]):
            values, counts = np.unique(image, return_counts=True)
            assert (set(values.tolist()) <= held) == out and not (set(values.tolist()) & held and not out)
            own = found.feeds[k % 4]["x"][n].flat[0] if k < 4 else given[8 * (k % 4) + n].flat[0]
            share = dict(zip(values.tolist(), counts.tolist(), strict=True))
            assert share.get(own) in ((256,) if k < 4 else (192, 256)), "a quarter is from another"
    again = samples_of([{"x": given}], inputs, wanted=100, seed=3)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(found.feeds, again.feeds, strict=True))
    assert np.array_equal(given, numbered(32, 1, 16, 16))
    vectors = samples_of([{"x": numbered(32, 5)}], declared(x=["N", 5]), wanted=100)
    assert sum(vectors.sizes) == 32, "there is nothing to cut patches from"


@pytest.mark.parametrize(
    "shape", [(2, 3, 16, 16), (1, 1, 7, 9), (4, 5), (1, 16000), (3, 1, 1), (1, 24, 1, 5), (2, 3, 4, 4, 5)], ids=str
)
def test_made_up_inputs_are_like_the_template(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    template = {
        "x": rng.standard_normal(shape).astype(np.float32),
        "ids": rng.integers(3, 9, (shape[0], 6)),
        "flag": np.array(True),
        "length": np.array([6]),
    }
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in template.items()
    ]
    found = synthesize(template, inputs, seed=1, count=24)
    assert len(found) == max(4, -(-24 // shape[0]))
    for feed in found:
        assert {n: (v.shape, v.dtype) for n, v in feed.items()} == {n: (v.shape, v.dtype) for n, v in template.items()}
        assert np.isfinite(feed["x"]).all() and feed["flag"] == True and feed["length"] == 6  # noqa: E712
        assert template["ids"].min() <= feed["ids"].min() and feed["ids"].max() <= template["ids"].max()
    stacked = np.stack([f["x"] for f in found])
    if len(shape) == 2 and shape[1] > 1000:  # a recording
        assert np.abs(stacked).max() <= 1 and stacked.std() > 0.05
    else:
        assert abs(stacked.mean()) < 1 and (0.3 < stacked.std() < 2)
    assert len(np.unique(stacked.reshape(-1, *shape[1:]), axis=0)) == len(found) * shape[0], "no two alike"
    again = synthesize(template, inputs, seed=1, count=24)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(found, again, strict=True))
    assert not np.array_equal(found[0]["x"], synthesize(template, inputs, seed=2, count=24)[0]["x"])


# ---------------------------------------------------------------- compensate


def repaired_of(
    model: ModelProto, tensor: str, channels: Sequence[int], axis: int = 1, recover: str = "lsq", batch: int = 32
) -> tuple[Calibration, ModelProto, Repaired]:
    analysis, calibration = prepared(model, taken(drawn(model, 8, batch)))
    removed = without(analysis, tensor, axis, channels)
    cut = rewrite(analysis, removed)
    return calibration, cut, compensate(analysis, removed, cut, calibration, recover)


def test_weights_that_two_nodes_read_stay() -> None:
    model = net("""g (float[N,5] x) => (float[N,3] y) <float[5,6] a, float[6,3] v, float[3] b, float[3] c> {
        h = MatMul(x, a)
        r = Relu(h)
        s = Tanh(h)
        p = Gemm(r, v, b)
        q = Gemm(s, v, c)
        y = Sub(p, q)
    }""")
    calibration, cut, found = repaired_of(model, "h", [0, 3])
    assert set(found.repair.changed) == {("p", 2), ("q", 2)}
    assert all(f.ridge == np.inf for f in found.repair.fits if f.layer in ("p", "q"))
    assert np.array_equal(
        constants_at(Model(cut), [("p", 1)])["p", 1], constants_at(Model(found.model), [("p", 1)])["p", 1]
    )
    assert judge(calibration, Model(found.model)) < judge(calibration, Model(cut))


def test_only_biases_are_fitted_on_request() -> None:
    model = net(
        TINY.replace("y = MatMul(h, v)", "m = MatMul(h, v)  y = Add(m, vb)"), constants={"vb": np.ones(3, np.float32)}
    )
    calibration, cut, found = repaired_of(model, "h", [1, 2], recover="bias")
    assert found.repair.recover == "bias" and set(found.repair.changed) == {("y", 1)}
    given = fitted_on(calibration)
    wanted, before, after = (np.concatenate(run(m, given)) for m in (model, cut, found.model))
    shift = (wanted - before).mean(axis=0)
    assert np.allclose(after, before + shift, atol=1e-4), "the mean of what is missing"


def test_a_fit_is_least_squares_on_the_samples_that_are_not_held_out() -> None:
    """Towards the old weights, with the ridge that held-out samples chose."""
    model = net(TINY, constants={"b": np.ones(6, np.float32)})
    calibration, cut, found = repaired_of(model, "h", [1, 2])
    (fit,) = [f for f in found.repair.fits if f.layer == "y"]
    given = list(calibration.samples.feeds)
    kept = [0, 3, 4, 5]
    h, y = (np.concatenate(tensor_of(model, n, fitted_on(calibration))).astype(np.float64) for n in "hy")
    w0 = constants_at(Model(cut), [("y", 1)])["y", 1].astype(np.float64)
    assert fit.ridge is not None and np.isfinite(fit.ridge)
    moment = h[:, kept].T @ h[:, kept] / len(h)
    damping = fit.ridge * np.trace(moment) / 4 * np.eye(4)
    best = np.linalg.solve(moment + damping, h[:, kept].T @ y / len(h) + damping @ w0)  # no bias to move: no Add
    assert np.allclose(constants_at(Model(found.model), [("y", 1)])["y", 1], best, rtol=1e-4, atol=1e-5)
    held = [f for f, out in zip(given, calibration.samples.held, strict=True) if out]
    x, t = (np.concatenate(tensor_of(model, n, held)).astype(np.float64) for n in "hy")
    rate = np.square(t - x[:, kept] @ w0).mean(axis=0).sum() / t.var(axis=0).sum()
    assert fit.before == pytest.approx(rate, rel=1e-3) and fit.after < fit.before


@pytest.mark.parametrize("is_output", [False, True])
def test_what_the_other_operand_of_an_add_lacks_is_made_up_for(is_output: bool) -> None:
    """The shortcut s has weights that two nodes read, so it stays wrong; the layer beside it can say what s lacks.

    It must not if its own output is read behind the model: then that is to be right, not the sum.
    """
    outputs = "float[N,4] y, float[N,4] z" + ", float[N,4] k" * is_output
    model = net(f"""g (float[N,4] x) => ({outputs})
        <float[4,6] a, float[6,4] v, float[4,4] w, float[4] wb, float[4] svar, float[4] t, float[4] mean, float[4] var> {{
        h = MatMul(x, a)
        s = MatMul(h, v)
        h1 = Tanh(h)
        z = MatMul(h1, v)
        k0 = Gemm(s, w, wb)
        k = BatchNormalization(k0, svar, t, mean, var)
        y = Add(k, s)
    }}""")
    calibration, cut, found = repaired_of(model, "h", [0, 1])
    given = list(calibration.samples.feeds)
    after: dict[str, float] = {}
    for name in ("y", "k", "s"):
        wanted = tensor_of(model, name, given)
        assert relative(wanted, tensor_of(cut, name, given)) > 1e-2
        after[name] = relative(wanted, tensor_of(found.model, name, given))
    right, wrong = ("k", "y") if is_output else ("y", "k")
    assert after[right] < 1e-5 < 1e-2 < after[wrong] and after["s"] > 1e-2


def test_half_floats_are_fitted() -> None:
    model = net("""g (float16[N,5] x) => (float16[N,3] y) <float16[5,6] a, float16[6] b, float16[6,3] v, float16[3] vb> {
        h0 = Gemm(x, a, b)
        h = Relu(h0)
        y = Gemm(h, v, vb)
    }""")
    calibration, cut, found = repaired_of(model, "h", [0, 3], batch=256)
    assert judge(calibration, Model(found.model)) < 0.8 * judge(calibration, Model(cut))
    assert all(v.dtype == np.float16 for v in constants_at(Model(found.model), found.repair.changed).values())


def test_a_fit_that_does_not_help_is_not_taken() -> None:
    """Nothing was lost, so nothing can be gained; what is fitted all the same says what it said."""
    model = net(TINY)
    analysis, calibration = prepared(model, drawn(model, 8))
    removed = np.zeros(analysis.solution.count, bool)
    found = compensate(analysis, removed, rewrite(analysis, removed), calibration)
    fresh = drawn(model, 2, seed=5)
    assert relative(run(model, fresh), run(found.model, fresh)) < 1e-9
    assert all(f.after <= f.before for f in found.repair.fits)


# ---------------------------------------------------------------- the pipeline on a trained network

MODELS = Path(__file__).resolve().parent.parent / "models"
DIGITS, DATA = MODELS / "digits.onnx", MODELS / "digits_calib.npz"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnxprune.PruneResult, Path]:
    folder = tmp_path_factory.mktemp("digits")
    result = onnxprune.prune(
        DIGITS,
        Budget("macs", 0.5),
        data=DATA,
        output=folder / "pruned.onnx",
        plan=folder / "plan.json",
        benchmark=False,
    )
    return result, folder


def top1(model: ModelProto | Path) -> float:
    with np.load(MODELS / "digits_test.npz") as test:
        loaded = session(onnx.load(model) if isinstance(model, Path) else model)
        return float((loaded.run(None, {"x": test["x"]})[0].argmax(axis=1) == test["labels"]).mean())


def test_half_of_the_digits_network_is_as_good(pruned: tuple[onnxprune.PruneResult, Path]) -> None:
    result, folder = pruned
    before, after = result.plan.macs
    assert after <= 0.5 * before
    assert top1(folder / "pruned.onnx") >= top1(DIGITS) - 0.01
    assert onnx.load(folder / "pruned.onnx") == result.model


def test_the_repaired_file_is_what_its_plan_says(pruned: tuple[onnxprune.PruneResult, Path]) -> None:
    result, folder = pruned
    assert result.plan.refit
    verdict = onnxprune.verify(DIGITS, folder / "pruned.onnx", folder / "plan.json")
    assert verdict.error <= verdict.tolerance


def test_a_changed_constant_that_was_not_fitted_is_found(pruned: tuple[onnxprune.PruneResult, Path]) -> None:
    result, _ = pruned
    names = {
        n.input[i]
        for n in result.model.graph.node
        for i in range(len(n.input))
        if (n.output[0], i) in result.plan.refit
    }
    assert names
    other = next(t.name for t in result.model.graph.initializer if t.name not in names)
    with pytest.raises(VerificationError, match="differs in more than the fitted constants"):
        onnxprune.verify(DIGITS, scaled(result.model, other, 1.001), result.plan)
    with pytest.raises(VerificationError, match="are not those of the plan"):
        onnxprune.verify(DIGITS, scaled(result.model, sorted(names)[0], 1.001), result.plan)
    with pytest.raises(VerificationError, match="is not finite"):
        onnxprune.verify(DIGITS, scaled(result.model, sorted(names)[0], np.inf), result.plan)


def scaled(model: ModelProto, name: str, factor: float) -> ModelProto:
    """A copy in which one initializer is multiplied."""
    copy = ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    tensor.raw_data = (numpy_helper.to_array(tensor) * np.float32(factor)).tobytes()
    return copy


def test_the_plan_and_the_same_data_give_the_same_file(pruned: tuple[onnxprune.PruneResult, Path]) -> None:
    _, folder = pruned
    onnxprune.prune(DIGITS, apply=folder / "plan.json", data=DATA, output=folder / "again.onnx", benchmark=False)
    assert (folder / "again.onnx").read_bytes() == (folder / "pruned.onnx").read_bytes()


def test_a_plan_applied_otherwise_describes_what_it_made(pruned: tuple[onnxprune.PruneResult, Path]) -> None:
    """Without the repair nothing is fitted; with one of biases, biases are."""
    result, folder = pruned
    plain = onnxprune.prune(DIGITS, apply=folder / "plan.json", recover="none", benchmark=False)
    assert plain.plan.refit == () and plain.plan.groups == result.plan.groups
    onnxprune.verify(DIGITS, plain.model, plain.plan)
    biased = onnxprune.prune(DIGITS, apply=folder / "plan.json", recover="bias", data=DATA, benchmark=False)
    assert biased.plan.refit and {i for _, i in biased.plan.refit} == {2}
    onnxprune.verify(DIGITS, biased.model, biased.plan)
    assert top1(plain.model) < top1(biased.model) < top1(result.model)


def test_the_report_says_what_was_fitted_and_on_what(pruned: tuple[onnxprune.PruneResult, Path]) -> None:
    result, _ = pruned
    data = json.loads(result.report.to_json())
    assert data["calibration"] == {
        "samples": 128,
        "made_samples": 128,
        "held_out": 64,
        "held_by": "sample",
        "passes": 1,
        "tapped_tensors": data["calibration"]["tapped_tensors"],
        "made_up": False,
        "mixed_blocks": 0,
        "judged_by": ["logits"],
        "covered": [{"tensor": "logits", "kind": "answers", "seen": 10, "known": 10}],
    }
    repair = data["repair"]
    layers = [n for n in onnx.load(DIGITS).graph.node if n.op_type in ("Conv", "Gemm")]
    assert repair["recover"] == "lsq" and repair["layers"] == len(layers) == len(repair["fits"])
    assert repair["layers"] - 2 <= repair["fitted"] <= repair["layers"], (
        "a layer keeps its weights where no fit is better"
    )
    assert repair["damage"][1] < 0.1 * repair["damage"][0]
    assert all(f["error"][1] <= f["error"][0] for f in repair["fits"])
    text = markdown(result.report)
    assert "128 calibration samples and 128 patched from them, 64 of all held out by sample" in text


def test_without_recovery_weights_are_only_sliced() -> None:
    result = onnxprune.prune(DIGITS, Budget("macs", 0.5), data=DATA, recover="none", importance="l2", benchmark=False)
    assert result.plan.refit == () and result.report.repair is None
    analysis = analysis_of(load(DIGITS), Scope(data=DATA))
    cut = rewrite(analysis, removed_by(result.plan, analysis))
    assert cut.SerializeToString() == result.model.SerializeToString()
    after = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    checked = 0
    for tensor in onnx.load(DIGITS).graph.initializer:
        members = [m for g in result.plan.groups for m in g.members if m.tensor == tensor.name]
        if len({m.node for m in members}) != 1:
            continue  # not cut, or differently per use
        array = numpy_helper.to_array(tensor)
        for m in members:
            array = np.delete(array, m.removed, m.axis)
        assert np.array_equal(array, after[tensor.name]), tensor.name
        checked += 1
    assert checked > 10


OPTIONS = {
    "recover": ({"recover": "magic"}, "Unknown --recover 'magic'; choose lsq, bias or none."),
    "samples": ({"samples": 0}, "--samples must be at least 1, not 0."),
    "missing": ({"data": "nowhere.npz"}, "--data nowhere.npz does not exist; give a .npz file or a folder of them."),
    "importance": ({"importance": "guess"}, "importance"),
    "unknown": ({"recovery": "lsq"}, "Unknown option 'recovery'"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options_are_said_in_one_sentence(name: str) -> None:
    options, message = OPTIONS[name]
    with pytest.raises(BadInputError) as caught:
        onnxprune.prune(DIGITS, Budget("macs", 0.5), **options)  # type: ignore[arg-type]
    said = str(caught.value)
    assert message in said and "\n" not in said and said.endswith(".") and ". " not in said


@pytest.mark.parametrize(
    "array, message",
    [
        ({"y": np.zeros((4, 1, 16, 16), np.float32)}, "has no array 'x'"),
        ({"x": np.zeros((4, 1, 16, 15), np.float32)}, "the model wants"),
        ({"x": np.full((4, 1, 16, 16), np.nan, np.float32)}, "contains NaN or infinity"),
        ({"x": np.zeros((4, 1, 16, 16), np.complex64)}, "is complex64"),
        ({"x": np.zeros((0, 1, 16, 16), np.float32)}, "no samples"),
    ],
    ids=["name", "shape", "nan", "type", "empty"],
)
def test_bad_data_is_said_in_one_sentence(array: Feeds, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **array)
    with pytest.raises(BadInputError, match=message) as caught:
        onnxprune.prune(DIGITS, Budget("macs", 0.5), data=tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


NETWORK = """g (float[N,3,8,8] x, bool c) => (float[N,5] y) <float[24,3,3,3] a, float[24] ab, float[24,24,3,3] b, float[24] bb> {
    p = Conv<pads=[1,1,1,1]>(x, a, ab)
    q = Relu(p)
    y = If (c) <
        then_branch = t () => (float[N,5] o) <float[24,5] v, float[5] vb> {
            r = Conv<pads=[1,1,1,1]>(q, b, bb)
            s = Relu(r)
            u = Add(s, q)
            g = GlobalAveragePool(u)
            f = Flatten(g)
            m = MatMul(f, v)
            o = Add(m, vb)
        },
        else_branch = e () => (float[N,5] z) <float[24,5] w> { g2 = GlobalAveragePool(q) f2 = Flatten(g2) z = MatMul(f2, w) }
    >
}"""


def saved(folder: Path, given: Feeds) -> Path:
    np.savez(folder / "data.npz", **given)
    return folder / "data.npz"


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "data apart"])
def test_a_network_inside_a_branch_is_pruned_repaired_and_verified(apart: bool, tmp_path: Path) -> None:
    model = net(NETWORK)
    given = feeds(model, 3, (64, 5)) | {"c": np.array(True)}
    onnx.save(net(NETWORK), tmp_path / "m.onnx", save_as_external_data=apart, location="m.data", size_threshold=0)
    result = onnxprune.prune(
        tmp_path / "m.onnx",
        Budget("macs", 0.6),
        data=saved(tmp_path, given),
        output=tmp_path / "small.onnx",
        plan=tmp_path / "plan.json",
        round_to=1,
        benchmark=False,
    )
    assert any(n.startswith("y.then_branch//") for n, _ in result.plan.refit)
    before, after = result.report.repair.damage
    assert after < 0.5 * before
    onnxprune.verify(tmp_path / "m.onnx", tmp_path / "small.onnx", tmp_path / "plan.json", data=tmp_path / "data.npz")
    onnxprune.verify(tmp_path / "m.onnx", tmp_path / "small.onnx", tmp_path / "plan.json")
    small = onnx.load(tmp_path / "small.onnx")
    assert len([t for g in _graphs(small.graph) for t in g.initializer]) == 7, "nothing is left behind"
    fitted = next(p for p in result.plan.refit if p[0].startswith("y.then_branch//"))
    other = with_constants(small, {fitted: constants_at(Model(small), [fitted])[fitted] * np.float32(1.001)})
    with pytest.raises(VerificationError, match="are not those of the plan"):
        onnxprune.verify(tmp_path / "m.onnx", other, tmp_path / "plan.json")
    for model_changed in (small, other):  # whichever constants were worth fitting: an operator never is
        changed = ModelProto()
        changed.CopyFrom(model_changed)
        next(n for g in _graphs(changed.graph) for n in g.node if n.output[0] == "s").op_type = "Tanh"
        with pytest.raises(VerificationError, match="differs in more"):
            onnxprune.verify(tmp_path / "m.onnx", changed, tmp_path / "plan.json")
    assert divergence([run(model, [given])], [run(small, [given])]) < before
    onnxprune.prune(
        tmp_path / "m.onnx",
        apply=tmp_path / "plan.json",
        data=tmp_path / "data.npz",
        output=tmp_path / "again.onnx",
        benchmark=False,
    )
    again = onnx.load(tmp_path / "again.onnx")
    assert [numpy_helper.to_array(t).tolist() for g in _graphs(again.graph) for t in g.initializer] == [
        numpy_helper.to_array(t).tolist() for g in _graphs(small.graph) for t in g.initializer
    ]


def test_samples_of_both_branches_are_judged_by_what_the_model_says() -> None:
    model = net(NETWORK)
    given = [feeds(model, k, (4, 5)) | {"c": np.array(k % 2 == 0)} for k in range(8)]
    _, calibration = prepared(model, given)
    found = [o[0] for o in calibration.outputs]
    assert all(
        np.allclose(a, b, atol=1e-5) for a, b in zip(run(model, list(calibration.samples.feeds)), found, strict=True)
    )
    assert judge(calibration, Model(model)) < 1e-9
    (join,) = [n for n in calibration.flat.graph.node if n.op_type == "If"]
    assert calibration.routing.joins == {join.output[0]} and calibration.passes == 2, "both branches are there"
    assert prepared(net(TINY), drawn(net(TINY), 2))[1].passes == 1


def test_a_target_of_cost_without_data_is_met_with_made_up_inputs() -> None:
    model = net(TINY.replace("[5,6] a", "[5,24] a").replace("[6] b", "[24] b").replace("[6,3] v", "[24,3] v"))
    result = onnxprune.prune(model, Budget("macs", 0.5), round_to=1, benchmark=False)
    assert result.report.calibration.made_up and result.report.repair
    onnxprune.verify(model, result.model, result.plan)
    plain = onnxprune.prune(model, Budget("ratio", 0.5), round_to=1, benchmark=False)
    assert plain.report.calibration is None and plain.plan.refit == ()


def test_attention_as_one_operator_is_repaired() -> None:
    """Cut off from what comes before it, ONNX Runtime wants to know how wide its inputs are."""
    model = net(
        """g (float[N,9,16] x) => (float[N,9,16] y) <float[16,24] wq, float[16,24] wk, float[16,24] wv, float[24,16] wo> {
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            a = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)
            y = MatMul(a, wo)
        }""",
        opset=23,
    )
    result = onnxprune.prune(model, Budget("macs", 0.6), benchmark=False)
    before, after = result.report.repair.damage
    assert after < before


def test_masks_of_the_least_number_score_without_warnings(recwarn: pytest.WarningsRecorder) -> None:
    values = np.ones((16, 4), np.float32)
    values[0] = np.finfo(np.float32).min
    analysis = analysis_of(
        load(
            net(
                "g (float[N,4] x) => (float[N,4] y) <float[16,4] b> { h = Gemm<transB=1>(x, w) y = Gemm(h, b) }",
                constants={"w": values},
            )
        ),
        Options(),
    )
    assert np.isfinite(score(analysis, "l2")).all() and not recwarn.list
