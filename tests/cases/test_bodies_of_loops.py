"""Layers in bodies of loops: what they read in every step is looked at, and they are fitted to all steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.samples import Samples
from onnxprune.analyse.scope import Scope
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.judging import judged_by
from onnxprune.model.load import load
from tests.oracle import net

STEP = "{p}h = MatMul({s}, a) {p}hb = Add({p}h, b) {p}r = Relu({p}hb) {p}d = MatMul({p}r, e) {p}m = Add({s}, {p}d)"
INNER = STEP.format(p="", s="s")
WEIGHTS = "float[6,16] a, float[16] b, float[16,6] e"
LOOP = f"""
    y0 = Loop(n, go, x) <body = step (int64 i, bool c, float[N,6] s) => (bool c2, float[N,6] m)
        {{ c2 = Identity(c) {INNER} }}>"""
OWN = f"""
    y0 = Loop(n, go, x) <body = step (int64 i, bool c, float[N,6] s) => (bool c2, float[N,6] m)
        <{WEIGHTS}> {{ c2 = Identity(c) {INNER} }}>"""
UNTIL = f"""
    y0 = Loop(n, go, x) <body = step (int64 i, bool c, float[N,6] s) => (bool c2, float[N,6] m)
        {{ {INNER} q = ReduceMax<keepdims=0>(m) c2 = Less(q, three) }}>"""
SCAN = f"""
    z = Unsqueeze(x, ax)
    zz = Concat<axis=0>(z, z, z)
    zero = Sub(x, x)
    last, y1 = Scan(zero, zz) <num_scan_inputs=1, body = step (float[N,6] t, float[N,6] u) => (float[N,6] m, float[N,6] o)
        {{ s = Add(t, u) {INNER} o = Identity(m) }}>
    y0 = Add(last, x)"""
GROWS = f"""
    y1 = Loop(n, go, x) <body = step (int64 i, bool c, float[M,6] s) => (bool c2, float[K,6] l)
        {{ c2 = Identity(c) {INNER} l = Concat<axis=0>(s, m) }}>
    y0 = Add(y1, y1)"""
KINDS = {
    "constants outside": LOOP,
    "constants of the body": OWN,
    "until": UNTIL,
    "scan": SCAN,
    "tensors that grow": GROWS,
}
TRIPS = {"constants outside": 3, "constants of the body": 3, "scan": 3, "tensors that grow": 3}
CONSTANTS = {"n": np.array(3), "go": np.array(True), "three": np.array(3, np.float32), "ax": np.array([0])}


def model(body: str, more: str = "", opset: int = 17) -> onnx.ModelProto:
    outside = "" if "<float[6,16]" in body else f", {WEIGHTS}"
    text = f"g (float[N,6] x) => (float[M,5] y) <float[6,5] v{outside}> {{ {body} {more} y = MatMul(y0, v) }}"
    words = text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    return net(text, opset, constants={k: v for k, v in CONSTANTS.items() if k in words})


def calibrated(proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> Calibration:  # type: ignore[type-arg]
    loaded = load(proto)
    analysis = analysis_of(loaded, Scope())
    samples = Samples(tuple(feeds), (False,) * len(feeds), (3,) * len(feeds), len(feeds))
    return calibrate(analysis, samples, judged_by(loaded, lambda name: True))


def steps(proto: onnx.ModelProto, x: np.ndarray, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:  # type: ignore[type-arg]
    """What `a` and `e` read in each step, computed by hand."""
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for node in proto.graph.node:
        for attribute in node.attribute:
            stored |= {t.name: onnx.numpy_helper.to_array(t) for t in attribute.g.initializer}
    state, found = (0 * x if kind == "scan" else x), []
    for _ in range(3):
        s = state + x if kind == "scan" else state
        r = np.maximum(s @ stored["a"] + stored["b"], 0)
        found.append((s, r))
        m = s + r @ stored["e"]
        state = np.concatenate([s, m]) if kind == "tensors that grow" else m
        if kind == "until" and not m.max() < 3:
            break
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_all_steps(kind: str) -> None:
    proto = model(KINDS[kind])
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((4, 6)).astype(np.float32)} for _ in range(5)]
    found = calibrated(proto, feeds)
    seen = [each for f in feeds for each in steps(proto, f["x"], kind)]
    loop = "last" if kind == "scan" else "y1" if kind == "tensors that grow" else "y0"
    for key, k in (("h", 0), ("d", 1)):
        rows = np.concatenate([each[k] for each in seen]).astype(np.float64)
        moments = found.moments[f"{loop}.body//{key}"]
        assert moments.count == len(rows)
        assert np.allclose(moments.xx[0], rows.T @ rows, rtol=1e-4, atol=1e-4)
        assert np.allclose(moments.x[0], rows.sum(axis=0), rtol=1e-4, atol=1e-4)
    session = ort.InferenceSession(proto.SerializeToString())
    for f, outputs in zip(feeds, found.outputs, strict=True):
        assert np.allclose(outputs[0], session.run(None, f)[0], atol=1e-4)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(1)
    base = rng.standard_normal((3, 6))  # what is of rank 3 can be fitted well by half of the hidden positions
    np.savez(tmp_path / "x.npz", x=(rng.standard_normal((240, 3)) @ base).astype(np.float32))
    return str(tmp_path / "x.npz")


def pruned(proto: onnx.ModelProto, data: str, **options: object) -> onnxprune.PruneResult:
    given = {"importance": "random", "mix": False} | options
    return onnxprune.prune(proto, Budget("ratio", 0.5), data=data, round_to=1, benchmark=False, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_fitted_to_all_steps(kind: str, data: str) -> None:
    proto = model(KINDS[kind])
    made = pruned(proto, data)
    repair = made.report.repair
    assert repair is not None
    fits = {f.layer.rsplit("//", 1)[-1]: f for f in repair.fits}
    assert {"h", "d"} <= fits.keys() and fits["d"].ridge is not None
    assert fits["d"].error.after < fits["d"].error.before / 2
    assert repair.damage.after is not None and repair.damage.before is not None
    assert repair.damage.after < repair.damage.before / 2
    assert onnxprune.verify(proto, made.model, made.plan, data=data).error < 1e-4
    assert not [w for w in made.report.warnings if "loop" in w]


def test_a_loop_in_a_branch_that_some_samples_take(tmp_path: Path) -> None:
    text = f"""g (float[N,6] x, bool c) => (float[N,5] y) <float[6,5] v> {{
        y1 = If(c) <then_branch = t () => (float[N,6] y0) <{WEIGHTS}> {{ {LOOP} }}, else_branch = e () => (float[N,6] ey) {{ ey = Neg(x) }}>
        y = MatMul(y1, v) }}"""
    proto = net(text, constants={"n": np.array(3), "go": np.array(True)})
    rng = np.random.default_rng(1)
    base = rng.standard_normal((3, 6))
    for k in range(40):
        x = (rng.standard_normal((6, 3)) @ base).astype(np.float32)
        np.savez(tmp_path / f"{k:02}.npz", x=x, c=np.array(k % 2 == 0))
    made = pruned(proto, str(tmp_path))
    assert made.report.repair is not None
    fits = {f.layer: f.error for f in made.report.repair.fits}
    error = fits["y1.then_branch//y0.body//d"]
    assert error.after < error.before / 2


@pytest.mark.parametrize("kind", ["constants outside", "scan"])
def test_data_choose_among_units_of_a_body(kind: str, data: str) -> None:
    """Scored by what the loss of each would cost, the best half costs less than a random one."""
    proto = model(KINDS[kind])
    best, chance = (pruned(proto, data, importance=i).report.repair for i in ("obs", "random"))
    assert best is not None and chance is not None
    assert best.damage.after is not None and chance.damage.after is not None
    assert best.damage.after < chance.damage.after


def test_weights_of_a_body_are_made_sparse_by_data(data: str) -> None:
    proto = model(LOOP)
    made = onnxprune.sparsify(proto, sparsity=0.5, data=data, benchmark=False)
    assert {x.tensor for x in made.report.layers} >= {"a", "e", "v"}
    onnx.checker.check_model(made.model)


@pytest.mark.parametrize("why", ["nested", "old"])
def test_what_cannot_be_watched_is_named(why: str, data: str) -> None:
    body = LOOP
    if why == "nested":
        inner = "k = Loop(n, go, s0) <body = within (int64 j, bool o, float[N,6] s) => (bool o2, float[N,6] m)"
        body = f"""y0 = Loop(n, go, x) <body = step (int64 i, bool c, float[N,6] s0) => (bool c2, float[N,6] k)
            {{ c2 = Identity(c) {inner} {{ o2 = Identity(o) {INNER} }}> }}>"""
    made = pruned(model(body, opset=12 if why == "old" else 17), data)
    said = [w for w in made.report.warnings if "loop" in w.lower()]
    assert len(said) == 1 and "2 layers inside Loop 'y0' were not calibrated ('h', 'd')" in said[0]
    assert ("another" in said[0]) if why == "nested" else ("opset 13" in said[0])
