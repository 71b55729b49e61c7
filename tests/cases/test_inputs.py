"""Inputs whose sizes, axes and samples are not what most models declare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.analyse.feeds import samples_of
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


TWO = """g (float[] a, float[] b) => (float[] y) <float[8,32] w, float[32,5] v, float[6,5] u> {
    h = MatMul(a, w)
    r = Relu(h)
    s = MatMul(r, v)
    z = MatMul(b, u)
    y = Add(s, z)
}"""


def test_two_inputs_without_a_rank_are_as_wide_as_what_they_are_multiplied_by(tmp_path: Path) -> None:
    """No size that is tried for both fits both; the constants beside them tell."""
    model, data = net(TWO), tmp_path / "data.npz"
    np.savez(data, a=RNG.normal(size=(16, 8)).astype(np.float32), b=RNG.normal(size=(16, 6)).astype(np.float32))
    for given in ({"data": data}, {}):
        result = onnxprune.prune(model, Budget("ratio", 0.5), round_to=1, benchmark=False, **given)
        assert any(g.removed for g in result.plan.groups)
        assert onnxprune.verify(model, result.model, result.plan).error < 1e-5
    shapes = {"a": (3, 8), "b": (1, 6)}
    assert onnxprune.verify(model, result.model, result.plan, input_shapes=shapes).error < 1e-5


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


# ---------------------------------------------------------------- empty axes that are no batch

DECODER = """g (int64[B,S] ids, float[B,4,P,8] past) => (float[B,S,40] logits, float[B,4,T,8] present)
    <float[40,32] table, float[32,32] q, float[32,32] k, float[32,64] w, float[64,32] v, float[32,40] head, int64[4] split, int64[3] join>
{
    x = Gather(table, ids)
    qa = MatMul(x, q)
    qr = Reshape(qa, split)
    qh = Transpose<perm=[0,2,1,3]>(qr)
    ka = MatMul(x, k)
    kr = Reshape(ka, split)
    kh = Transpose<perm=[0,2,1,3]>(kr)
    present = Concat<axis=2>(past, kh)
    kt = Transpose<perm=[0,1,3,2]>(present)
    scores = MatMul(qh, kt)
    p = Softmax(scores)
    o = MatMul(p, present)
    ot = Transpose<perm=[0,2,1,3]>(o)
    oj = Reshape(ot, join)
    r = Add(x, oj)
    a = MatMul(r, w)
    f = Relu(a)
    b = MatMul(f, v)
    y = Add(r, b)
    logits = MatMul(y, head)
}"""
GRAPH = """g (float[N,8] x, int64[2,E] edges) => (float[N,5] y)
    <float[8,32] w, float[32,24] v, float[24,5] s, int64 zero, int64 one, int64[1] last> {
    a = MatMul(x, w)
    r = Relu(a)
    b = MatMul(r, v)
    from = Gather(edges, zero)
    to = Gather(edges, one)
    sent = Gather(b, from)
    at = Unsqueeze(to, last)
    sum = ScatterND<reduction="add">(b, at, sent)
    k = Relu(sum)
    y = MatMul(k, s)
}"""


def decoder() -> onnx.ModelProto:
    return net(DECODER, constants={"split": np.array([0, 0, 4, 8]), "join": np.array([0, 0, 32])})


def graph() -> onnx.ModelProto:
    return net(GRAPH, opset=18, constants={"zero": np.array(0), "one": np.array(1), "last": np.array([-1])})


def folder(path: Path, feeds: list[dict[str, np.ndarray]]) -> Path:
    path.mkdir()
    for k, feed in enumerate(feeds):
        np.savez(path / f"{k:02d}.npz", **feed)
    return path


def texts(count: int) -> list[dict[str, np.ndarray]]:
    past = np.zeros((1, 4, 0, 8), np.float32)
    return [{"ids": RNG.integers(0, 40, (1, 5 + k % 2)), "past": past} for k in range(count)]


def graphs(count: int) -> list[dict[str, np.ndarray]]:
    sizes = [(3 + k % 3, (0, 5, 2)[k % 3]) for k in range(count)]
    return [{"x": RNG.normal(size=(n, 8)).astype(np.float32), "edges": RNG.integers(0, n, (2, e))} for n, e in sizes]


def used(model: onnx.ModelProto, data: Path, samples: int, **options: Any) -> onnxprune.PruneResult:
    """Pruned, repaired, verified, made sparse and fine-tuned on this data, and its samples counted rightly."""
    result = onnxprune.prune(model, Budget("macs", 0.5), data=data, round_to=1, benchmark=False, **options)
    report = result.report
    assert report.calibration is not None and report.calibration.samples == samples
    assert report.repair is not None and report.repair.damage.after < report.repair.damage.before
    assert onnxprune.verify(model, result.model, result.plan).error < 1e-4
    assert onnxprune.sparsify(model, sparsity=0.5, data=data, benchmark=False).report.difference.error < 10
    tuned = onnxprune.finetune(result.model, model, data=data, steps=2)
    assert tuned.training + tuned.held == samples
    return result


def test_a_past_of_length_zero(tmp_path: Path) -> None:
    used(decoder(), folder(tmp_path / "data", texts(16)), 16)


def test_graphs_without_edges_are_not_joined(tmp_path: Path) -> None:
    """A file is a graph: its edges count its own nodes."""
    model = graph()
    result = used(model, folder(tmp_path / "data", graphs(18)), 18)
    alone = onnxprune.prune(
        model, Budget("macs", 0.5), data=folder(tmp_path / "one", graphs(1)[:1]), round_to=1, benchmark=False
    )
    assert alone.report.calibration is not None and result.report.calibration is not None


@pytest.mark.parametrize(
    "shapes",
    [
        {"ids": (0, 5), "past": (0, 4, 2, 8)},
        {"ids": (0, 5), "past": (2, 4, 2, 8)},
        {"ids": (2, 5), "past": (0, 4, 2, 8)},
    ],
    ids=str,
)
def test_an_empty_batch_holds_no_samples(shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    kinds = {"ids": np.int64, "past": np.float32}
    np.savez(tmp_path / "d.npz", **{n: np.zeros(s, kinds[n]) for n, s in shapes.items()})
    with pytest.raises(BadInputError, match="no samples"):
        onnxprune.prune(decoder(), Budget("macs", 0.5), data=tmp_path / "d.npz", benchmark=False)


def test_an_empty_batch_behind_the_steps_holds_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", feats=np.zeros((8, 0, 20), np.float32), lens=np.zeros(0, np.int32))
    with pytest.raises(BadInputError, match="no samples"):
        onnxprune.prune(
            net(SPEECH, constants={"join": np.array([0, 0, 32])}), Budget("ratio", 0.5), data=tmp_path / "d.npz"
        )


# ---------------------------------------------------------------- which axis holds samples

SPEECH = """g (float[T,B,20] feats, int32[B] lens) => (float[T,B,7] y)
    <float[2,64,20] w, float[2,64,16] r, float[2,128] b, float[32,24] p, float[24,7] q, int64[3] join> {
    h, last = LSTM<hidden_size=16,direction="bidirectional">(feats, w, r, b, lens)
    ht = Transpose<perm=[0,2,1,3]>(h)
    f = Reshape(ht, join)
    m = MatMul(f, p)
    k = Relu(m)
    y = MatMul(k, q)
}"""
STEPS = """g (float[T,B,20] feats) => (float[T,B,7] y)
    <float[1,64,20] w, float[1,64,16] r, float[1,128] b, float[16,24] p, float[24,7] q, int64[1] one> {
    h, last = LSTM<hidden_size=16>(feats, w, r, b)
    f = Squeeze(h, one)
    m = MatMul(f, p)
    k = Relu(m)
    y = MatMul(k, q)
}"""
TABLES = """g (float[B,13] dense, int64[3,B] rows, float[2,B] weights) => (float[B,1] y)
    <float[13,24] w, float[50,24] table, float[24,32] v, float[32,1] s, int64[1] zero> {
    a = MatMul(dense, w)
    d = Relu(a)
    e = Gather(table, rows)
    t = ReduceSum<keepdims=0>(e, zero)
    u = Add(d, t)
    g = MatMul(u, v)
    k = Relu(g)
    o = MatMul(k, s)
    wt = Transpose(weights)
    i = ReduceMean<axes=[1]>(wt)
    y = Mul(o, i)
}"""
PICTURE = """g (float[3,16,16] x) => (float[4] y) <float[16,3,3,3] w, float[8,16,3,3] v, float[8,4] s, int64[1] zero> {
    u = Unsqueeze(x, zero)
    a = Conv<pads=[1,1,1,1]>(u, w)
    r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, v)
    k = Relu(b)
    p = GlobalAveragePool(k)
    f = Flatten(p)
    m = MatMul(f, s)
    y = Squeeze(m, zero)
}"""


def speech(steps: int, batch: int) -> dict[str, np.ndarray]:
    return {"feats": RNG.normal(size=(steps, batch, 20)).astype(np.float32), "lens": np.full(batch, steps, np.int32)}


def tables(batch: int) -> dict[str, np.ndarray]:
    return {
        "dense": RNG.normal(size=(batch, 13)).astype(np.float32),
        "rows": RNG.integers(0, 50, (3, batch)),
        "weights": RNG.random((2, batch)).astype(np.float32) + 0.5,
    }


WHERE = {
    "speech, a folder": (SPEECH, [speech(8 + k % 3, 3) for k in range(16)], 16),
    "speech, as many as steps": (SPEECH, [speech(3, 3) for _ in range(8)], 8),
    "speech, one file": (SPEECH, [speech(9, 24)], 24),
    "steps first, one file": (STEPS, [{"feats": speech(9, 24)["feats"]}], 24),
    "steps first, a folder": (STEPS, [{"feats": speech(9, 1)["feats"]} for _ in range(12)], 12),
    "tables, one file": (TABLES, [tables(32)], 32),
    "tables, a folder": (TABLES, [tables(4) for _ in range(16)], 16),
    "a picture each": (PICTURE, [{"x": RNG.normal(size=(3, 16, 16)).astype(np.float32)} for _ in range(12)], 12),
    "pictures stacked": (PICTURE, [{"x": RNG.normal(size=(36, 16, 16)).astype(np.float32)}], 12),
}


@pytest.mark.parametrize(("text", "feeds", "samples"), WHERE.values(), ids=WHERE.keys())
def test_samples_are_found(text: str, feeds: list[dict[str, np.ndarray]], samples: int, tmp_path: Path) -> None:
    constants = {"join": np.array([0, 0, 32]), "one": np.array([1]), "zero": np.array([0])}
    model = net(text, constants={n: a for n, a in constants.items() if f"] {n}" in text})
    if len(feeds) > 1:
        data = folder(tmp_path / "data", feeds)
    else:
        data = tmp_path / "data.npz"
        np.savez(data, **feeds[0])
    used(model, data, samples)


def test_batches_of_a_fixed_size_count_as_such() -> None:
    text = "g (float[8,6] x) => (float[8,5] y) <float[6,32] w, float[32,5] v> { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
    loaded = load(net(text))
    given = [{"x": RNG.normal(size=(24, 6)).astype(np.float32)}]
    found = samples_of(given, graph_inputs(loaded.proto), model=Session(loaded))
    assert found.sizes == (8, 8, 8) and found.count == 24
