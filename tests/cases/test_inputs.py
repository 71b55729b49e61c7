"""Inputs whose sizes, axes and samples are not what most models declare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.model.load import load
from onnxprune.runtime import Session, graph_inputs, vary
from tests.oracle import net

MATRIX = """g (float[] x) => (float[] y) <float[8,32] v, float[32,5] s> {
    a = MatMul(x, v)
    r = Relu(a)
    y = MatMul(r, s)
}"""
IMAGES = """g (float[] x, float[] scale) => (float[] y) <float[32,3,3,3] w, float[5,32,1,1] s> {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    m = Mul(r, scale)
    y = Conv(m, s)
}"""
TOKENS = """g (int64[] ids) => (float[] y) <float[40,32] table, float[32,5] s> {
    a = Gather(table, ids)
    r = Relu(a)
    y = MatMul(r, s)
}"""
RNG = np.random.default_rng(0)
UNRANKED = {
    "matrix": (MATRIX, {"x": RNG.normal(size=(64, 8)).astype(np.float32)}, {"x": (4, 8)}),
    "sequences": (MATRIX, {"x": RNG.normal(size=(64, 5, 8)).astype(np.float32)}, {"x": (2, 6, 8)}),
    "images": (
        IMAGES,
        {"x": RNG.normal(size=(16, 3, 9, 8)).astype(np.float32), "scale": np.float32(2)},
        {"x": (2, 3, 6, 6), "scale": ()},
    ),
    "tokens": (TOKENS, {"ids": RNG.integers(0, 40, (64, 7))}, {"ids": (2, 5)}),
}


@pytest.mark.parametrize(("text", "arrays", "shapes"), UNRANKED.values(), ids=UNRANKED.keys())
def test_inputs_without_a_declared_rank(
    text: str, arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    model = net(text)
    assert not model.graph.input[0].type.tensor_type.HasField("shape")
    data = tmp_path / "data.npz"
    np.savez(data, **arrays)
    sources = [{"data": data}, {"input_shapes": shapes}] + [{}] * (text is not IMAGES)
    for given in sources:
        for budget in (Budget("ratio", 0.5), Budget("macs", 0.5)):
            result = onnxprune.prune(model, budget, round_to=1, benchmark=False, **given)
            group = next(g for g in result.plan.groups if g.removed)
            assert group.units == 32 and group.removed >= 16
            assert onnxprune.verify(model, result.model, result.plan, data=given.get("data")).error < 1e-4
    first = next(iter(arrays.values()))
    if first.shape[0] > 16:
        assert onnxprune.prune(model, Budget("macs", 0.5), data=data, benchmark=False).report.calibration.samples == 64


def test_nameless_axes_that_two_inputs_share_change_together() -> None:
    model = net(
        """g (float[?,?,20] feats, int32[?] lens) => (float[?,?,?,16] h) <float[1,64,20] w, float[1,64,16] r, float[1,128] b> {
            h, last = LSTM<hidden_size=16>(feats, w, r, b, lens)
        }""",
    )
    shapes = {"feats": (8, 3, 20), "lens": (3,)}
    loaded = load(model)
    session = Session(loaded)
    for seed in (0, 1):
        found = vary(session, graph_inputs(loaded.proto), shapes, seed, 8)
        assert found is not None
        steps, batch, _ = found["feats"].shape
        assert steps != 8 and batch != 3 and found["lens"].shape == (batch,)
