"""Inputs that are made up look like real ones where the graph says what they are."""

from __future__ import annotations

import numpy as np

from onnxprune import runtime
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
