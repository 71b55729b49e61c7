"""Channels in chunks, each with a depthwise convolution of its own (CoaT): no chunk may lose all of them, in no trial either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import onnxprune
from onnxprune import Budget
from tests.oracle import net

TEXT = """g (float[N,3,6,6] x) => (float[N,4] y)
    <float[8,3,1,1] w, float[2,1,3,3] a, float[6,1,5,5] b, float[16,8,1,1] v, float[16,4] h, int64[2] sizes> {
    c = Conv(x, w)
    r = Relu(c)
    p, q = Split<axis=1>(r, sizes)
    pa = Conv<group=2, pads=[1,1,1,1]>(p, a)
    qb = Conv<group=6, pads=[2,2,2,2]>(q, b)
    z = Concat<axis=1>(pa, qb)
    e = Conv(z, v)
    f = Relu(e)
    m = GlobalAveragePool(f)
    k = Flatten(m)
    y = MatMul(k, h)
}"""


def chunked() -> onnx.ModelProto:
    """The first chunk is the least important: a trial that takes a quarter of the channels would take all of it."""
    model = net(TEXT, constants={"sizes": np.array([2, 6])})
    for tensor in model.graph.initializer:
        if tensor.name == "v":
            value = numpy_helper.to_array(tensor).copy()
            value[:, :2] *= 1e-3
            tensor.CopyFrom(numpy_helper.from_array(value, "v"))
    return model


def test_no_trial_empties_a_chunk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(48, 3, 6, 6)).astype(np.float32))
    made = onnxprune.prune(
        chunked(), Budget("macs", 0.5), data=tmp_path / "x.npz", round_to=1, mix=False, benchmark=False
    )
    sizes = {t.name: tuple(t.dims) for t in made.model.graph.initializer}
    kept = [dims[0] for dims in sizes.values() if dims[1:] in ((1, 3, 3), (1, 5, 5))]
    assert len(kept) == 2 and min(kept) >= 1 and sum(kept) < 8
    assert made.report.check is not None and made.report.check.error < 1e-5
