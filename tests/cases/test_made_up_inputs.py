"""Inputs that are made up look like real ones where the graph says what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import onnxprune
from onnxprune import Budget, runtime
from onnxprune.analyse.batch import accepts
from onnxprune.analyse.observe import analysis_of
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
