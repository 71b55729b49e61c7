"""Change of basis: which units may be mixed, that the model stays what it was, and that what is cut then is worth the least.

Seen red: a factor that tells units apart (rotary embeddings), lines of queries and of keys taken for one, units from nowhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.analyse.observe import analysis_of
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.judging import judged_by
from onnxprune.choose import mix as basis
from onnxprune.choose.budget import Budget as Target
from onnxprune.choose.channels import keeps_size, samples_for
from onnxprune.choose.costs import CostModel
from onnxprune.choose.mix import Basis, bases, changes
from onnxprune.choose.options import Options, completed
from onnxprune.choose.subject import whole
from onnxprune.cli import main
from onnxprune.clock import Clock
from onnxprune.groups.analysis import Analysis
from onnxprune.model.load import load
from onnxprune.model.patch import with_constants
from onnxprune.report.markdown import markdown
from tests.oracle import Array, deviation, net, session
from tests.zoo import SHARED, files, load_graph

MODELS = Path(__file__).resolve().parent.parent / "models"
VIT, DATA, TEST = MODELS / "digits_vit.onnx", MODELS / "digits_calib.npz", MODELS / "digits_test.npz"
SILENT = Clock(lambda stage: None)

ATTENTION = """g (float[N,9,16] x) => (float[N,9,16] y)
<float[16,24] wq, float[16,24] wk, float[16,24] wv, float[24,16] wo, float[24] bq, float[24] bv, float[24] each, float two = {{2.0}},
 int64[4] heads = {{0, 0, 3, 8}}, int64[3] flat = {{0, 0, 24}}> {{
    q0 = MatMul(x, wq)
    q1 = Add(q0, bq)
    {queries}
    q4 = Reshape(q3, heads)
    q = Transpose<perm=[0,2,1,3]>(q4)
    k0 = MatMul(x, wk)
    k1 = Reshape(k0, heads)
    k = Transpose<perm=[0,2,3,1]>(k1)
    s = MatMul(q, k)
    t = Mul(s, half)
    p = Softmax(t)
    v0 = MatMul(x, wv)
    v1 = Add(bv, v0)
    {values}
    v3 = Reshape(v2, heads)
    v = Transpose<perm=[0,2,1,3]>(v3)
    a = MatMul(p, v)
    a1 = Transpose<perm=[0,2,1,3]>(a)
    a2 = Reshape(a1, flat)
    y = MatMul(a2, wo)
}}"""


def attention(
    queries: str = "q3 = Mul(q1, half)", values: str = "v2 = Identity(v1)", seed: int = 0, **constants: Array
) -> ModelProto:
    """Three heads of eight."""
    text = ATTENTION.format(queries=queries, values=values)
    return net(text, seed=seed, constants={"half": np.array(0.5, np.float32), **constants})


def studied(model: ModelProto | Path, data: Path | None = None, made_up: int = 64) -> tuple[Analysis, Calibration]:
    settings = completed(Options(data=data), Target("macs", 0.5))
    analysis = analysis_of(load(model), settings.scope)
    samples = samples_for(analysis, settings, CostModel(analysis), data is not None, made_up)
    return analysis, calibrate(analysis, samples, judged_by(analysis.model, keeps_size(analysis)))


def found(model: ModelProto | Path, data: Path | None = None, made_up: int = 64) -> tuple[Analysis, list[Basis]]:
    analysis, calibration = studied(model, data, made_up)
    return analysis, bases(analysis, calibration)


def mixed(analysis: Analysis, chosen: list[Basis]) -> ModelProto:
    return with_constants(analysis.model.proto, changes(analysis, chosen))


def apart(analysis: Analysis, other: ModelProto) -> float:
    return max(
        deviation(session(analysis.model.proto).run(None, f), session(other).run(None, f)) for f in analysis.feeds
    )


# ---------------------------------------------------------------- the model stays what it was


def test_queries_keys_and_values_of_every_head() -> None:
    analysis, chosen = found(attention())
    assert sorted(bool(b.block.product) for b in chosen) == [False] * 3 + [True] * 3
    assert {use for b in chosen for c in b.block.constants for use in [c.use]} == {
        ("q0", 1), ("q1", 1), ("k0", 1), ("v0", 1), ("v1", 0), ("y", 1)
    }  # fmt: skip
    new = mixed(analysis, chosen)
    assert apart(analysis, new) < 1e-5
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (analysis.model.proto, new)
    )
    assert all(np.abs(before[n] - after[n]).max() > 0.05 for n in ("wq", "wk", "wv", "wo", "bq", "bv"))


def test_each_block_alone_leaves_the_outputs() -> None:
    analysis, chosen = found(attention())
    for one in chosen:
        new = mixed(analysis, [one])
        assert apart(analysis, new) < 1e-5
        assert any(
            not np.allclose(numpy_helper.to_array(a), numpy_helper.to_array(b))
            for a, b in zip(analysis.model.proto.graph.initializer, new.graph.initializer, strict=True)
        )


def test_values_are_the_principal_directions() -> None:
    """In the new basis both sides have diagonal moments, the same ones, the largest first."""
    analysis, calibration = studied(attention())
    for one in bases(analysis, calibration):
        values = one.values
        assert (np.diff(values) <= 1e-12).all()
        if one.block.product:
            new = mixed(analysis, [one])
            probe = onnx.ModelProto()
            probe.CopyFrom(new)
            probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in ("q", "k"))
            sums = [np.zeros((8, 8)), np.zeros((8, 8))]
            for feeds, held in zip(calibration.samples.feeds, calibration.samples.held, strict=True):
                if not held:
                    q, k = session(probe).run(["q", "k"], feeds)
                    head = int(one.block.product[0][1].lines[0, 0]) // 8
                    for side, rows in enumerate(
                        (q[:, head].reshape(-1, 8), k[:, head].transpose(0, 2, 1).reshape(-1, 8))
                    ):
                        sums[side] += rows.T.astype(np.float64) @ rows
            for total in sums:
                off = np.abs(total - np.diag(np.diag(total))).max()
                assert off < 0.05 * np.diag(total).max()


SHARED_KEYS = """g (float[N,9,16] x) => (float[N,9,16] y)
<float[16,32] wq, float[16,16] wk, float[32,16] wo, float[16,16] wv, int64[5] many = {0, 0, 2, 2, 8}, int64[5] few = {0, 0, 2, 1, 8},
 int64[5] wide = {1, 1, 1, 2, 1}, int64[3] flat = {0, 0, 32}> {
    q0 = MatMul(x, wq)
    q1 = Reshape(q0, many)
    q = Transpose<perm=[0,2,3,1,4]>(q1)
    k0 = MatMul(x, wk)
    k1 = Reshape(k0, few)
    k2 = Expand(k1, wide)
    k = Transpose<perm=[0,2,3,4,1]>(k2)
    s = MatMul(q, k)
    p = Softmax(s)
    v0 = MatMul(x, wv)
    v1 = Reshape(v0, few)
    v2 = Expand(v1, wide)
    v = Transpose<perm=[0,2,3,1,4]>(v2)
    a = MatMul(p, v)
    a1 = Transpose<perm=[0,3,1,2,4]>(a)
    a2 = Reshape(a1, flat)
    y = MatMul(a2, wo)
}"""


def test_grouped_queries() -> None:
    """Two heads of queries share one of keys: one T for all three."""
    analysis, chosen = found(net(SHARED_KEYS))
    products = [b for b in chosen if b.block.product]
    assert len(products) == 2
    lines = {c.use: len(c.carried.lines) for c in products[0].block.constants}
    assert lines == {("q0", 1): 2, ("k0", 1): 1}
    assert apart(analysis, mixed(analysis, chosen)) < 1e-5


def test_queries_and_keys_in_one_tensor() -> None:
    analysis, chosen = found(VIT, DATA)
    products = [b for b in chosen if b.block.product]
    assert len(products) == 12 and len(chosen) == 24  # 4 heads in each of 3 layers
    sides = {c.sides for b in products for c in b.block.constants}
    assert sides in ({(0, 1)}, {(1, 0)}), "queries are mixed by one map, keys by its inverse"
    assert apart(analysis, mixed(analysis, chosen)) < 1e-4


BOTTLENECK = """g (float[N,8,6,6] x) => (float[N,8,6,6] y)
<float[10,8,3,3] a, float[10] b, float[12,10,3,3] c, float[8,12,1,1] d> {
    h = Conv<pads=[1,1,1,1]>(x, a, b)
    MIDDLE
    r = Conv<pads=[1,1,1,1]>(m, c)
    s = Relu(r)
    y = Conv(s, d)
}"""


@pytest.mark.parametrize(
    ("middle", "count"),
    [
        ("m = Identity(h)", 1),
        ("m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)", 1),
        ("m = Neg(h)", 1),
        ("m = Relu(h)", 0),
        ("m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)", 0),
        ("m = Mul(h, h)", 0),
    ],
)
def test_between_two_convolutions(middle: str, count: int) -> None:
    analysis, chosen = found(net(BOTTLENECK.replace("MIDDLE", middle)))
    assert len(chosen) == count
    assert apart(analysis, mixed(analysis, chosen)) < 1e-5


@pytest.mark.parametrize(
    "queries",
    [
        "q3 = Mul(q1, each)",
        "q3 = Relu(q1)",
        "q3 = Div(two, q1)",
        "q3 = Add(q1, two)",
        "q3 = Mul(q1, q1)",
        "m = ReduceMean<axes=[-1]>(q1)\n q3 = Sub(q1, m)",
        "h = Tanh(q1)\n q3 = Sub(q1, h)",
    ],
)
def test_what_tells_units_apart(queries: str) -> None:
    analysis, chosen = found(attention(queries))
    assert not any(b.block.product for b in chosen) and len(chosen) == 3, "the values stay free"
    assert apart(analysis, mixed(analysis, chosen)) < 1e-5


ROTARY = """h4 = Reshape(q1, heads)
    h1, h2 = Split<axis=-1>(h4)
    n = Neg(h2)
    turned = Concat<axis=-1>(n, h1)
    c = Mul(h4, cosine)
    d = Mul(turned, sine)
    e = Add(c, d)
    q3 = Reshape(e, flat)"""


def test_rotary_embeddings() -> None:
    angles = np.random.default_rng(0).uniform(0, 6, (9, 1, 4)).repeat(2, axis=2).reshape(9, 1, 4, 2)
    table = {
        n: f(angles).transpose(0, 1, 3, 2).reshape(9, 1, 8).astype(np.float32)
        for n, f in (("cosine", np.cos), ("sine", np.sin))
    }
    _, chosen = found(attention(ROTARY, cosine=table["cosine"], sine=table["sine"]))
    assert not any(b.block.product for b in chosen) and len(chosen) == 3


def test_shared_constants_stay() -> None:
    text = ATTENTION.format(queries="q3 = Mul(q1, half)", values="v2 = Identity(v1)").replace(
        "v0 = MatMul(x, wv)", "v0 = MatMul(x, wk)"
    )
    _, chosen = found(net(text, constants={"half": np.array(0.5, np.float32)}))
    assert not chosen


def test_two_readers_share_directions() -> None:
    text = ATTENTION.format(queries="q3 = Mul(q1, half)", values="v2 = Identity(v1)").replace(
        "y = MatMul(a2, wo)", "y0 = MatMul(a2, wo)\n y1 = MatMul(a2, other)\n y = Mul(y0, y1)"
    )
    other = np.random.default_rng(5).standard_normal((24, 16)).astype(np.float32)
    analysis, chosen = found(net(text, constants={"half": np.array(0.5, np.float32), "other": other}))
    assert len(chosen) == 6 and [len(b.block.layers) for b in chosen if not b.block.product] == [2, 2, 2]
    assert apart(analysis, mixed(analysis, chosen)) < 1e-5


RESIDUAL = """g (float[N,6] x) => (float[N,9] y)
<float[6,12] start, float[12,16] up0, float[16,12] down0, float[12,16] up1, float[16,12] down1, float[12,9] end> {
    s0 = MatMul(x, start)
    a0 = MatMul(s0, up0)
    b0 = Relu(a0)
    c0 = MatMul(b0, down0)
    s1 = Add(s0, c0)
    a1 = MatMul(s1, up1)
    b1 = Relu(a1)
    c1 = MatMul(b1, down1)
    s2 = Add(s1, c1)
    y = MatMul(s2, end)
}"""


def residual() -> ModelProto:
    """A residual stream of 12 units that all its layers use no more than eight directions of."""
    model, rng = net(RESIDUAL), np.random.default_rng(7)
    narrow, writers = rng.standard_normal((12, 8)), ("start", "down0", "down1")
    for t in model.graph.initializer:
        w = numpy_helper.to_array(t)
        w = w @ narrow @ np.linalg.pinv(narrow) if t.name in writers else w
        t.CopyFrom(numpy_helper.from_array(w.astype(np.float32), t.name))
    return model


def test_residual_stream() -> None:
    analysis, chosen = found(residual())
    assert len(chosen) == 1 and len(chosen[0].block.layers) == 3, "two blocks and what comes after them"
    turned = mixed(analysis, chosen)
    assert apart(analysis, turned) < 1e-5
    assert (chosen[0].values[8:] < 0.05 * chosen[0].values[0]).all(), "what nobody writes is worth next to nothing"
    last = {t.name: numpy_helper.to_array(t) for t in turned.graph.initializer}["start"][:, 8:]
    assert np.abs(last).max() < 1e-2 * np.abs(numpy_helper.to_array(residual().graph.initializer[0])).max()


def test_weights_that_are_declared_as_inputs() -> None:
    """IR version 3 declares all of them."""
    model = net(BOTTLENECK.replace("MIDDLE", "m = Identity(h)"), opset=13)
    model.ir_version = 3
    for t in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    onnx.checker.check_model(onnxprune.prune(model, Budget("macs", 0.7), benchmark=False).model)
    settings = completed(Options(), Target("macs", 0.5))
    assert whole(analysis_of(load(model), settings.scope), settings, SILENT).blocks == 1


@pytest.mark.parametrize("name", ["wq", "wk", "wv", "wo"])
def test_dead_sides(name: str) -> None:
    shape = (24, 16) if name == "wo" else (16, 24)
    onnxprune.prune(attention(**{name: np.zeros(shape, np.float32)}), Budget("macs", 0.7), benchmark=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 100.1])
def test_inputs_that_never_change(value: float, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.full((32, 9, 16), value, np.float32))
    onnxprune.prune(attention(), Budget("macs", 0.7), data=tmp_path / "data.npz", benchmark=False)


def test_what_a_layer_adds_has_the_units_too() -> None:
    text = """g (float[N,8] x) => (float[N,8] y) <float[8,12] a, float[BIAS] b, float[12,8] c, float[8,8] d> {
        h = Gemm(x, a, b)
        m = Gemm(h, c)
        r = Relu(m)
        y = Gemm(r, d)
    }"""
    for size, count in ((12, 1), (1, 0)):
        analysis, chosen = found(net(text.replace("BIAS", str(size))))
        assert len(chosen) == count and apart(analysis, mixed(analysis, chosen)) < 1e-5


@pytest.mark.parametrize(
    ("middle", "count"),
    [
        ("m = Cast<to=1>(h)", 1),
        ("i = Cast<to=6>(h)\n m = Cast<to=1>(i)", 0),
        ('m = Resize<mode="linear">(h, , twice)', 1),
        (
            'm = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=3.0>(h, region, twice)',
            0,
        ),
        ("m = Pad(h, pads, three)", 0),
    ],
)
def test_operators_that_are_linear_with_some_attributes(middle: str, count: int) -> None:
    constants = {
        "twice": np.array([1, 1, 2, 2], np.float32),
        "region": np.array([0, 0, -1, -1, 1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "three": np.array(3, np.float32),
    }
    text = BOTTLENECK.replace("MIDDLE", middle).replace("(float[N,8,6,6] y)", "(float[N,8,a,b] y)")
    analysis, chosen = found(net(text, constants=constants))
    assert len(chosen) == count and apart(analysis, mixed(analysis, chosen)) < 1e-5


def with_own_constants(model: ModelProto) -> ModelProto:
    """Untrained exports share constants that happen to be equal; trained ones do not."""
    stored = {t.name: t for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Identity" and n.input[0] in stored]:
        model.graph.initializer.append(renamed(stored[node.input[0]], node.output[0]))
        model.graph.node.remove(node)
    stored = {t.name: t for t in model.graph.initializer}
    seen: set[str] = set()
    for k, node in enumerate(model.graph.node):
        for i, name in enumerate(node.input):
            if name in seen and stored[name].data_type == onnx.TensorProto.FLOAT:
                node.input[i] = f"{name}__{k}_{i}"
                model.graph.initializer.append(renamed(stored[name], node.input[i]))
            seen |= {name} & stored.keys()
    return model


def renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


REACH = {"hf__gpt2__dynamo": 16, "hf__llama_gqa__dynamo": 4, "hf__mamba__dynamo": 0}


@pytest.mark.parametrize("name", REACH)
def test_own_zoo(name: str) -> None:
    analysis, chosen = found(with_own_constants(load_graph(files()[name])))
    assert len(chosen) == REACH[name]
    assert apart(analysis, mixed(analysis, chosen)) < 1e-4


LARGER = {
    "hf__bert_eager__dynamo": 16,
    "hf__roberta__dynamo": 16,
    "hf__vit__dynamo": 16,
    "hf__dinov2__dynamo": 16,
    "hf__beit_hf__dynamo": 16,
    "hf__dpt__dynamo": 37,
    "hf__qwen3__dynamo": 4,
    "hf__gemma2__dynamo": 4,
    "timm__deit_tiny_patch16_224__legacy": 72,
    "timm__tiny_vit_5m_224__legacy": 116,
    "timm__mobilevit_xxs__legacy": 76,
    "timm__pit_ti_224__legacy": 120,
}


@pytest.mark.slow
@pytest.mark.skipif(not files(SHARED), reason="no shared/zoo beside this checkout")
@pytest.mark.parametrize("name", LARGER)
def test_larger_zoo(name: str) -> None:
    analysis, chosen = found(with_own_constants(load_graph(files(SHARED)[name])), made_up=4)
    assert len(chosen) == LARGER[name]
    assert apart(analysis, mixed(analysis, chosen)) < 1e-4


# ---------------------------------------------------------------- what it is worth


def low_rank(rank: int) -> ModelProto:
    """One head, whose scores have this rank, and so has what the values contribute: in directions that no unit has alone."""
    rng = np.random.default_rng(3)
    made = {"half": np.array(0.5, np.float32), "bq": np.zeros(24, np.float32), "bv": np.zeros(24, np.float32)}
    for name in ("wq", "wv"):
        directions = np.linalg.qr(rng.standard_normal((24, 24)))[0][:, :rank]
        made[name] = (rng.standard_normal((16, rank)) / 4 @ directions.T).astype(np.float32)
    text = ATTENTION.format(queries="q3 = Mul(q1, half)", values="v2 = Identity(v1)").replace(
        "{0, 0, 3, 8}", "{0, 0, 1, 24}"
    )
    return net(text, constants=made)


def test_what_has_low_rank_loses_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    inputs, unseen = (
        rng.standard_normal((64, 9, 16)).astype(np.float32),
        rng.standard_normal((64, 9, 16)).astype(np.float32),
    )
    np.savez(tmp_path / "data.npz", x=inputs)
    model = low_rank(9)
    wanted = session(model).run(None, {"x": unseen})
    errors = {}
    for mix in (True, False):
        result = onnxprune.prune(
            model, Budget("ratio", 0.5), data=tmp_path / "data.npz", recover="lsq", mix=mix, benchmark=False
        )
        assert result.report.calibration.mixed_blocks == (2 if mix else 0)
        errors[mix] = deviation(wanted, session(result.model).run(None, {"x": unseen}))
    assert errors[True] < 0.02 and errors[False] > 10 * errors[True]


def test_a_trained_transformer_loses_less() -> None:
    with np.load(TEST) as file:
        x, labels = file["x"], file["labels"]

    def top1(model: ModelProto) -> float:
        return float((session(model).run(None, {"x": x})[0].argmax(axis=1) == labels).mean())

    plain, better = (
        onnxprune.prune(VIT, Budget("macs", 0.3), data=DATA, mix=mix, benchmark=False) for mix in (False, True)
    )
    damage = [r.report.repair.damage[1] for r in (plain, better)]
    assert damage[1] < 0.6 * damage[0]
    assert top1(better.model) > top1(plain.model) > 0.9


# ---------------------------------------------------------------- in the program


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnxprune.PruneResult, Path, Path]:
    """The transformer at half of its MACs, its file and its plan."""
    folder = tmp_path_factory.mktemp("halved")
    out, plan = folder / "s.onnx", folder / "p.json"
    return onnxprune.prune(VIT, Budget("macs", 0.5), data=DATA, output=out, plan=plan, benchmark=False), out, plan


def test_plan_replay_and_verify(halved: tuple[onnxprune.PruneResult, Path, Path], tmp_path: Path) -> None:
    result, out, plan = halved
    again = tmp_path / "again.onnx"
    assert "val_9" in result.plan.mixed and ("val_9", 1) in result.plan.refit
    onnxprune.verify(VIT, out, plan, data=DATA)
    onnxprune.prune(VIT, apply=plan, data=DATA, output=again, benchmark=False)
    assert out.read_bytes() == again.read_bytes()
    assert "24 blocks of units mixed into principal directions" in markdown(result.report)


def test_mixed_tensors_are_no_features_to_imitate(halved: tuple[onnxprune.PruneResult, Path, Path]) -> None:
    pytest.importorskip("torch")
    from onnxprune.api.finetune import finetune

    result, out, plan = halved
    tuned = finetune(out, VIT, data=DATA, plan=plan, features=8, steps=1)
    assert tuned.features and not set(tuned.features) & set(result.plan.mixed)


@pytest.mark.parametrize("options", [{"recover": "bias"}, {"recover": "none"}, {"depth": "only"}])
def test_not_mixed_where_weights_are_not_fitted_or_no_channel_is_cut(options: dict[str, Any]) -> None:
    result = onnxprune.prune(VIT, Budget("macs", 0.5), data=DATA, benchmark=False, check=False, **options)
    assert result.plan.mixed == ()
    with pytest.raises(BadInputError, match="--mix needs --recover lsq"):
        onnxprune.prune(VIT, Budget("macs", 0.5), data=DATA, mix=True, **options)


@pytest.mark.parametrize("recover", ["bias", "none"])
def test_directions_are_no_channels(recover: str, tmp_path: Path) -> None:
    """A replay that does not mix would cut whatever has the same numbers."""
    onnxprune.prune(VIT, Budget("macs", 0.5), data=DATA, plan=tmp_path / "p.json", benchmark=False)
    with pytest.raises(BadInputError, match="principal directions"):
        onnxprune.prune(VIT, apply=tmp_path / "p.json", data=DATA, recover=recover, benchmark=False)


def test_a_plan_brings_its_seed(tmp_path: Path) -> None:
    first = onnxprune.prune(VIT, Budget("macs", 0.5), data=DATA, seed=3, plan=tmp_path / "p.json", benchmark=False)
    again = onnxprune.prune(VIT, apply=tmp_path / "p.json", data=DATA, benchmark=False)
    assert first.model.SerializeToString() == again.model.SerializeToString()


def test_command_line(tmp_path: Path) -> None:
    command = ["prune", str(VIT), "-o", str(tmp_path / "s.onnx"), "--macs", "0.5", "--data", str(DATA), "-q", "--plan"]
    for option, some in (("--mix", True), ("--no-mix", False)):
        with pytest.raises(SystemExit) as end:
            main([*command, str(tmp_path / "p.json"), option])
        assert end.value.code == 0
        assert bool(onnxprune.Plan.from_json((tmp_path / "p.json").read_text()).mixed) == some


@pytest.mark.slow
def test_layers_go_beside(tmp_path: Path) -> None:
    result = onnxprune.prune(
        VIT,
        Budget("macs", 0.3),
        data=DATA,
        depth="auto",
        output=tmp_path / "s.onnx",
        plan=tmp_path / "p.json",
        benchmark=False,
    )
    onnxprune.verify(VIT, tmp_path / "s.onnx", tmp_path / "p.json", data=DATA)
    assert result.plan.mixed


def test_a_mixture_that_changes_the_outputs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Had a rule said too much, the model would not be what it was: the runtime says so, and the other blocks stay."""
    honest = basis._principal
    calls = []

    def wrong(c0: Array, c1: Array) -> tuple[Array, Array] | None:
        calls.append(1)
        made = honest(c0, c1)
        return made if made is None or len(calls) != 2 else (made[0] * np.nan, made[1])

    settings = completed(Options(data=DATA), Target("macs", 0.5))
    monkeypatch.setattr(basis, "_principal", wrong)
    subject = whole(analysis_of(load(VIT), settings.scope), settings, SILENT)
    assert subject.blocks == 23
