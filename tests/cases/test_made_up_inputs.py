"""Inputs that are made up look like real ones where the graph says what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Budget, runtime
from onnxprune.analyse.batch import accepts
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.ranges import WAYS, range_of, scaled
from onnxprune.analyse.roles import Role, roles
from onnxprune.analyse.scope import Scope
from onnxprune.analyse.synthesize import synthesize
from onnxprune.model.load import load
from tests.oracle import net

ENCODER = """g (int64[N,L] input_ids, int64[N,L] position_ids, int64[N,L] attention_mask, int64 steps) => (float[N,L,6] y)
    <float[300,16] words, float[40,16] places, float[16,6] w, float one, float low, int64[1] last> {
    wide = Unsqueeze(input_ids, last)
    ids = Squeeze(wide, last)
    e = Gather(words, ids)
    p = Gather(places, position_ids)
    s = Add(e, p)
    m = Cast<to=1>(attention_mask)
    missing = Sub(one, m)
    bias = Mul(missing, low)
    b = Unsqueeze(bias, last)
    t = Add(s, b)
    n = Cast<to=1>(steps)
    u = Mul(t, n)
    y = MatMul(u, w)
}"""


def test_ids_take_any_row_and_masks_are_mostly_ones() -> None:
    constants = {"one": np.float32(1), "low": np.float32(-9), "last": np.array([-1])}
    model = net(ENCODER, constants={k: np.asarray(v) for k, v in constants.items()})
    analysis = analysis_of(load(model), Scope())
    found = roles(analysis)
    assert found == {
        "input_ids": Role("index", 300),
        "position_ids": Role("position", 40),
        "attention_mask": Role("mask"),
        "steps": Role("other"),
    }
    feeds = synthesize(analysis.feeds[0], runtime.graph_inputs(model), 0, 64, found)
    ids = np.concatenate([f["input_ids"].ravel() for f in feeds])
    assert ids.min() < 10 and ids.max() > 290 and ids.dtype == np.int64
    masks = np.concatenate([f["attention_mask"] for f in feeds])
    assert set(np.unique(masks)) == {0, 1} and 0.6 < (masks.all(axis=1)).mean() < 0.95 and masks[:, 0].all()
    assert (np.diff(masks, axis=1) <= 0).all(), "only tails"
    assert (feeds[0]["position_ids"] == np.arange(feeds[0]["position_ids"].shape[1])).all()
    session = runtime.Session(analysis.model)
    assert all(accepts(session, f) for f in feeds)


def test_whole_numbers_are_followed_through_casts_and_offsets() -> None:
    text = """g (int32[1,L] tokens, int32[1,L] position, int64 rate) => (float[1,L,6] y)
        <float[300,16] words, float[40,16] places, float[16,6] w, int64 two, int64 wide, int64 narrow, int64[1] last> {
        t = Cast<to=7>(tokens)
        c = Unsqueeze(t, last)
        f = Squeeze(c, last)
        e = Gather(words, f)
        p = Cast<to=7>(position)
        q = Add(p, two)
        g1 = Gather(places, q)
        is_wide = Equal(rate, wide)
        is_narrow = Equal(rate, narrow)
        some = Or(is_wide, is_narrow)
        s = Add(e, g1)
        m = Cast<to=1>(some)
        u = Mul(s, m)
        y = MatMul(u, w)
    }"""
    values = {"two": 2, "wide": 16000, "narrow": 8000, "last": [-1]}
    model = net(text, constants={k: np.asarray(v) for k, v in values.items()})
    analysis = analysis_of(load(model), Scope(input_shapes={"tokens": (1, 8), "position": (1, 8)}))
    found = roles(analysis)
    assert found == {
        "tokens": Role("index", 300),
        "position": Role("position", 38),
        "rate": Role("choice", values=(8000, 16000)),
    }
    feeds = synthesize(analysis.feeds[0], runtime.graph_inputs(model), 0, 16, found)
    assert {int(f["rate"]) for f in feeds} == {16000} and max(int(f["tokens"].max()) for f in feeds) > 250


def test_without_a_target_or_data_most_is_kept(tmp_path: Path) -> None:
    mlp = "g (float[N,8] x) => (float[N,5] y) <float[8,32] w, float[32,5] v> { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32))
    made_up = onnxprune.prune(net(mlp), benchmark=False).report
    assert made_up.target == {"macs": 0.8} and not any("without data" in w for w in made_up.warnings)
    assert onnxprune.prune(net(mlp), data=tmp_path / "d.npz", benchmark=False).report.target == {"macs": 0.5}
    asked = onnxprune.prune(net(mlp), Budget("macs", 0.5), benchmark=False).report
    assert "of the MACs were kept without data" in asked.warnings[0]


@pytest.mark.parametrize("way", list(WAYS))
def test_images_are_in_the_range_that_the_first_norm_was_trained_on(way: str) -> None:
    """The stored statistics are those of other images in that range."""
    text = """g (float[N,3,24,24] x) => (float[N,5,24,24] y)
        <float[16,3,3,3] w, float[16] s, float[16] b, float[16] m, float[16] v, float[5,16,1,1] u> {
        c = Conv<pads=[1,1,1,1]>(x, w)
        n = BatchNormalization(c, s, b, m, v)
        r = Relu(n)
        y = Conv(r, u)
    }"""
    rng = np.random.default_rng(5)
    images = scaled([{"x": rng.normal(size=(32, 3, 24, 24)).cumsum(3).astype(np.float32) / 4}], "x", WAYS[way])
    w = rng.normal(size=(16, 3, 3, 3)).astype(np.float32)
    probe = net(
        "g (float[N,3,24,24] x) => (float[N,16,24,24] c) <float[16,3,3,3] w> { c = Conv<pads=[1,1,1,1]>(x, w) }",
        constants={"w": w},
    )
    (c,) = runtime.Session(load(probe)).run(images[0])
    stored = {"w": w, "m": c.mean(axis=(0, 2, 3)), "v": c.var(axis=(0, 2, 3))}
    analysis = analysis_of(load(net(text, constants=stored)), Scope())
    made = synthesize(analysis.feeds[0], runtime.graph_inputs(analysis.model.proto), 0, 64)
    assert range_of(analysis, made, "x") == way


def test_a_mean_that_is_taken_away_tells_the_range() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,5,8,8] y) <float[1,3,1,1] m, float[5,3,1,1] u> { d = Sub(x, m) y = Conv(d, u) }"
    for mean, way in ((0.45, "0 to 1"), (123.7, "0 to 255")):
        model = net(text, constants={"m": np.full((1, 3, 1, 1), mean, np.float32)})
        analysis = analysis_of(load(model), Scope())
        assert range_of(analysis, list(analysis.feeds), "x") == way


def test_recordings_and_scales() -> None:
    made = synthesize(
        {"w": np.zeros((2, 16000), np.float32), "k": np.zeros(3, np.float32)}, graph_of(w=[2, 16000], k=[3]), 0, 16
    )
    waves, knobs = (np.concatenate([np.atleast_2d(f[n]) for f in made]) for n in "wk")
    assert np.abs(waves).max() <= 1 and np.abs(waves).max(axis=1).min() > 0.15
    loud = np.square(waves).reshape(len(waves), 8, -1).mean(axis=2)
    assert np.median(loud.max(axis=1) / loud.min(axis=1)) > 4, "they swell and fade"
    assert knobs.min() >= 0 and knobs.max() <= 1


def graph_of(**shapes: list[int]) -> list[onnx.ValueInfoProto]:
    return [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in shapes.items()]


def test_one_hot_counts_the_rows() -> None:
    """Embeddings as a product with a table, in exports of models that were trained on TPUs."""
    model = net(
        """g (int64[N,L] ids) => (float[N,L,4] y) <float[500,32] u, float[32,4] v, int64 depth, float[2] offon> {
            far = OneHot(ids, depth, offon)
            h = MatMul(far, u)
            r = Relu(h)
            y = MatMul(r, v)
        }""",
        constants={"depth": np.array(500), "offon": np.array([0, 1], np.float32)},
    )
    analysis = analysis_of(load(model), Scope())
    assert roles(analysis)["ids"] == Role("index", 500)


def test_ids_are_followed_through_bounds_and_factors() -> None:
    """Rows of a table for each second id; ids that are kept within the table before they pick from it."""
    text = """g (int64[1,L] ids, int64[1,L] pairs) => (float[1,L,6] y)
        <float[300,16] words, float[41,16] twos, float[16,6] w, int64 none, int64 last, int64 two, int64 three> {
        kept = Clip(ids, none, last)
        above = Max(kept, none)
        e = Gather(words, above)
        doubled = Mul(pairs, two)
        moved = Add(doubled, three)
        p = Gather(twos, moved)
        s = Add(e, p)
        y = MatMul(s, w)
    }"""
    values = {"none": 0, "last": 299, "two": 2, "three": 3}
    model = net(text, constants={k: np.asarray(v) for k, v in values.items()})
    analysis = analysis_of(load(model), Scope())
    found = roles(analysis)
    assert found == {"ids": Role("index", 300), "pairs": Role("index", 19)}, "2 * 18 + 3 is row 39, 2 * 19 + 3 is none"
    feeds = synthesize(analysis.feeds[0], runtime.graph_inputs(model), 0, 64, found)
    assert all(accepts(runtime.Session(analysis.model), f) for f in feeds)


@pytest.mark.parametrize("kind", ["whole", "float"])
def test_lengths_are_at_least_one_and_vary(kind: str) -> None:
    """A mask is made by comparing positions with a length, which is drawn within the axis and is never 0."""
    to = {"whole": 7, "float": 1}[kind]
    text = f"""g (int64[N,L] ids, int64[N] lengths) => (float[N,L,6] y)
        <float[300,16] words, float[16,6] w, int64 zero, int64 one, int64[1] last, int64 axis> {{
        e = Gather(words, ids)
        shape = Shape(ids)
        count = Gather<axis=0>(shape, axis)
        places = Range(zero, count, one)
        p = Cast<to={to}>(places)
        n0 = Unsqueeze(lengths, last)
        n = Cast<to={to}>(n0)
        inside = Less(p, n)
        m0 = Cast<to=1>(inside)
        m = Unsqueeze(m0, last)
        s = Mul(e, m)
        y = MatMul(s, w)
    }}"""
    values = {"zero": 0, "one": 1, "last": [-1], "axis": 1}
    model = net(text, constants={k: np.asarray(v) for k, v in values.items()})
    analysis = analysis_of(load(model), Scope())
    size = analysis.feeds[0]["ids"].shape[1]
    found = roles(analysis)
    assert found == {"ids": Role("index", 300), "lengths": Role("length", size)}
    feeds = synthesize(analysis.feeds[0], runtime.graph_inputs(model), 0, 256, found)
    lengths = np.concatenate([f["lengths"] for f in feeds])
    assert lengths.min() >= 1 and lengths.max() == size and len(np.unique(lengths)) > size // 2
    assert 0.6 < (lengths == size).mean() < 0.95


def test_floats_that_are_compared_are_no_lengths() -> None:
    text = """g (float[N,8] x) => (float[N,6] y) <float[8] bounds, float[8,16] v, float[16,6] w> {
        above = Greater(x, bounds)
        a = Cast<to=1>(above)
        h = MatMul(a, v)
        r = Relu(h)
        y = MatMul(r, w)
    }"""
    assert roles(analysis_of(load(net(text)), Scope())) == {"x": Role("other")}


@pytest.mark.parametrize("kind", ["int64", "int32", "float"])
def test_masks_are_observed_as_masks(kind: str) -> None:
    """T5 and old BERTs add (1 - mask) times the lowest float: any other number there makes every output NaN."""
    text = f"""g (float[N,T,8] x, float[N,S,8] states, {kind}[N,S] encoder_mask) => (float[N,T,4] y)
        <float[8,16] q, float[8,16] k, float[8,24] v, float[24,4] o, float one, float lowest, int64[1] axis> {{
        a = MatMul(x, q)
        b = MatMul(states, k)
        c = MatMul(states, v)
        bt = Transpose<perm=[0,2,1]>(b)
        scores = MatMul(a, bt)
        wide = Unsqueeze(encoder_mask, axis)
        m = Cast<to=1>(wide)
        missing = Sub(one, m)
        bias = Mul(missing, lowest)
        masked = Add(scores, bias)
        p = Softmax<axis=-1>(masked)
        e = MatMul(p, c)
        y = MatMul(e, o)
    }}"""
    lowest = np.finfo(np.float32).min
    model = net(text, constants={"one": np.float32(1), "lowest": lowest, "axis": np.array([1])})
    analysis = analysis_of(load(model), Scope())
    first, second = (f["encoder_mask"] for f in analysis.feeds)
    assert first.shape != second.shape
    for mask in (first, second):
        assert set(np.unique(mask)) == {0, 1} and (mask[:, 0] == 1).all()
    result = onnxprune.prune(model, Budget("ratio", 0.5))
    assert result.report.check.error < 1e-5
    assert sum(g.removed for g in result.plan.groups) == 12 + 8
