"""Rows that values pick (routed experts, selected tokens): in the pruned model they are others, and are paired where they are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Budget
from onnxprune.calibrate.pairing import pickers
from tests.oracle import check, net

EXPERT = """
    {e}eq = Equal(ti, {e}id)
    {e}m = Squeeze(ti{e}, ax1)
    {find}
    {e}a = MatMul({e}t, {e}w1)
    {e}g = Sigmoid({e}a)
    {e}c = Mul({e}a, {e}g)
    {e}o = MatMul({e}c, {e}w2)
    {e}u = Unsqueeze({e}i, ax1)
    {e}r = ScatterND<reduction="add">({before}, {e}u, {e}o)
"""
FIND = {
    "Gather": "{e}n = NonZero({e}m) {e}i = Squeeze({e}n, ax0) {e}t = Gather<axis=0>(h, {e}i)",
    "GatherND": "{e}n = NonZero({e}m) {e}i = Squeeze({e}n, ax0) {e}j = Transpose<perm=[1,0]>({e}n) {e}t = GatherND(h, {e}j)",
    "Compress": "{e}n = NonZero({e}m) {e}i = Squeeze({e}n, ax0) {e}t = Compress<axis=0>(h, {e}m)",
}


def experts(find: str) -> onnx.ModelProto:
    """Every row goes to one of three experts."""
    parts, before = [], "none"
    for e in ("p", "q", "s"):
        text = EXPERT.replace("{find}", FIND[find]).replace("ti{e}", "{e}eq")
        parts.append(text.format(e=e, before=before))
        before = f"{e}r"
    weights = "".join(f", float[16,24] {e}w1, float[24,16] {e}w2, int64[1,1] {e}id" for e in ("p", "q", "s"))
    text = f"""g (float[N,6] x) => (float[N,4] y)
    <float[6,16] emb, float[16,3] router, float[16,4] head, int64[1] k, int64[1] ax0, int64[1] ax1{weights}> {{
        h = MatMul(x, emb)
        l = MatMul(h, router)
        b = Softmax<axis=-1>(l)
        tv, ti = TopK<axis=-1>(b, k)
        zs = Shape(h)
        none = ConstantOfShape(zs)
        {"".join(parts)}
        r = Add(h, {before})
        y = MatMul(r, head)
    }}"""
    constants = {"k": np.array([1]), "ax0": np.array([0]), "ax1": np.array([1])}
    constants |= {f"{e}id": np.array([[i]]) for i, e in enumerate(("p", "q", "s"))}
    rng = np.random.default_rng(5)
    constants["router"] = 2 * rng.standard_normal((16, 3)).astype(np.float32)
    return net(text, constants=constants)


def tokens() -> onnx.ModelProto:
    """The four rows with the largest scores pass a layer: always four, but not always the same."""
    return net(
        """g (float[9,6] x) => (float[4,5] y)
        <float[6,16] emb, float[16,1] score, float[16,20] w, float[20] b, float[20,5] v, int64[1] k, int64[1] flat> {
            h = MatMul(x, emb)
            s = MatMul(h, score)
            f = Reshape(s, flat)
            tv, ti = TopK<axis=0>(f, k)
            t = Gather<axis=0>(h, ti)
            a = MatMul(t, w)
            c = Add(a, b)
            r = Relu(c)
            y = MatMul(r, v)
        }""",
        constants={"k": np.array([4]), "flat": np.array([-1])},
    )


@pytest.fixture
def data(tmp_path: Path) -> str:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for k in range(24):
        np.savez(folder / f"{k:02}.npz", x=rng.standard_normal((9, 6)).astype(np.float32))
    return str(folder)


def fitted(model: onnx.ModelProto, data: str, share: float = 0.4, **options: object) -> onnxprune.PruneResult:
    return onnxprune.prune(
        model, Budget("macs", share), data=data, round_to=1, benchmark=False, mix=False, importance="random", **options
    )


def test_all_units_are_found_and_removed_exactly() -> None:
    for find in FIND:
        check(experts(find), [24, 24, 24, 16])
    check(tokens(), [20, 16])


@pytest.mark.parametrize("find", FIND)
@pytest.mark.parametrize("recover", ["lsq", "bias"])
def test_experts_are_repaired_on_the_rows_that_both_send_to_them(find: str, recover: str, data: str) -> None:
    made = fitted(experts(find), data, recover=recover)
    repair = made.report.repair
    assert repair is not None
    assert {f.layer for f in repair.fits} | set(repair.unpaired) >= {"h", "pa", "po", "qa", "qo", "sa", "so", "y"}
    if recover == "lsq":
        assert repair.damage.after is not None and repair.damage.before is not None
        assert repair.damage.after < repair.damage.before and not repair.unpaired


def test_rows_of_one_number_are_not_one_row(data: str) -> None:
    """Without the pairing, w would be fitted to outputs of other rows, and its error would be that of noise."""
    made = fitted(tokens(), data, 0.3)
    repair = made.report.repair
    assert repair is not None
    errors = {f.layer: f.error for f in repair.fits}
    assert errors["a"].before < 1 and errors["a"].after < 0.2


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_experts_become_sparse(options: dict[str, object], data: str) -> None:
    for model in (experts("Gather"), tokens()):
        made = onnxprune.sparsify(model, data=data, benchmark=False, **options)
        assert all(x.zeros.after >= 0.3 * x.weights for x in made.report.layers)
        assert {x.criterion for x in made.report.layers} == {"obs"}


def test_features_of_picked_rows_are_not_compared(data: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    plan = tmp_path / "plan.json"
    made = fitted(experts("Gather"), data, plan=plan, recover="none")
    tuned = onnxprune.finetune(
        made.model, experts("Gather"), data=data, steps=3, threads=1, features=20, plan=plan, augment=False
    )
    assert tuned.features and not {"pt", "pa", "pc", "po"} & set(tuned.features)


def test_a_layer_whose_rows_cannot_be_matched_is_left_out_and_named(data: str) -> None:
    """Rows that two lists picked, one after the other, are matched only where both lists are equal."""
    text = """g (float[9,6] x) => (float[2,5] y)
        <float[6,16] emb, float[16,1] score, float[16,1] second, float[16,20] w, float[20] b, float[20,5] v,
         int64[1] k, int64[1] m, int64[1] flat> {
            h = MatMul(x, emb)
            s = MatMul(h, score)
            f = Reshape(s, flat)
            tv, ti = TopK<axis=0>(f, k)
            g = Gather<axis=0>(h, ti)
            s2 = MatMul(g, second)
            f2 = Reshape(s2, flat)
            uv, ui = TopK<axis=0>(f2, m)
            t = Gather<axis=0>(g, ui)
            a = MatMul(t, w)
            c = Add(a, b)
            r = Relu(c)
            y = MatMul(r, v)
        }"""
    model = net(text, constants={"k": np.array([6]), "m": np.array([2]), "flat": np.array([-1])})
    check(model, [20, 16])
    made = fitted(model, data, 0.15, recover="bias")
    repair = made.report.repair
    assert repair is not None and "a" in repair.unpaired
    assert any("values decide which rows they see" in w for w in made.report.warnings)


def test_what_picks_rows() -> None:
    nodes = experts("Gather").graph.node
    constants = {t.name for t in experts("Gather").graph.initializer}
    found = pickers(nodes, constants.__contains__)
    assert found["pa"] == found["po"] == {"pi": True}
    assert "h" not in found and "pr" not in found and "y" not in found, "what is scattered back has its own place again"


HALVES = """g (float[N,4,T] x, {more}) => (float[N,3,T] y)
    <float[24,4,3] u, float[12,12,1] v, float[3,12,1] w, int64 at, int64 two, int64[1] zero, int64[1] axis> {{
    h = Conv<pads=[1,1]>(x, u)
    shape = Shape(h)
    wide = Gather(shape, at)
    half0 = Div(wide, two)
    half = Reshape(half0, axis)
    whole0 = Mul(half0, two)
    whole = Reshape(whole0, axis)
    a = Slice(h, zero, half, axis)
    b = Slice(h, half, whole, axis)
    s = Sigmoid(b)
    g = Mul(a, s)
    r = Conv(g, v)
    f = Relu(r)
    {end}
}}"""
BOUNDS = {"at": np.array(1), "two": np.array(2), "zero": np.array([0]), "axis": np.array([1])}


def test_bounds_that_follow_from_sizes_pick_no_rows(tmp_path: Path) -> None:
    """Half of the channels, as PyTorch exports `chunk`: fewer once channels left, and of the same positions."""
    model = net(HALVES.format(more="float[N] unused", end="y = Conv(f, w)"), constants=BOUNDS)
    del model.graph.input[1:]
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((32, 4, 9)).astype(np.float32))
    made = fitted(model, data, 0.5)
    repair = made.report.repair
    assert repair is not None and not repair.unpaired
    assert {fit.layer for fit in repair.fits} >= {"r", "y"}


def test_convolutions_behind_rows_that_do_not_match(tmp_path: Path) -> None:
    """Positions in time that a score picks, other ones in the pruned model: no row of the convolution is known to be the same."""
    end = """q = ReduceMean<axes=[0,1],keepdims=0>(f)
    best, index = TopK<axis=0>(q, two1)
    t = Gather<axis=2>(f, index)
    c = Conv(t, w)
    y = Relu(c)"""
    text = HALVES.format(more="float[N] unused", end=end).replace("float[N,3,T] y", "float[N,3,2] y")
    model = net(text.replace("int64 two,", "int64 two, int64[1] two1,"), constants=BOUNDS | {"two1": np.array([2])})
    del model.graph.input[1:]
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((32, 4, 9)).astype(np.float32))
    made = fitted(model, data, 0.3)
    assert made.report.repair is not None and "c" in made.report.repair.unpaired
