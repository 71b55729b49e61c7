"""Weights that both branches of an If read (merged decoders): they are cut alike, and stay one constant."""

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
from onnxprune.calibrate.judging import judged_by
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.model.patch import constants_at, with_constants
from tests.oracle import attribute, check, dims, graphs, net, node, prune

BRANCH = """{{
    {p}h = MatMul(x, w)
    {p}b = Add({p}h, b)
    {p}r = Relu({p}b)
    {p}m = MatMul({p}r, v)
    {more}
}}"""


def model(then: str, other: str) -> onnx.ModelProto:
    branches = []
    for p, more in (("t", then), ("e", other)):
        text = BRANCH.format(p=p, more=more.replace("?", p))
        branches.append(f"g{p} () => (float[N,5] {p}y) {text}")
    return net(f"""g (float[N,6] x, bool c) => (float[N,5] y)
        <float[6,16] w, float[16] b, float[16,12] v, float[12,5] o, float[12,12] u> {{
            y = If(c) <then_branch = {branches[0]}, else_branch = {branches[1]}>
        }}""")


def stored(of: onnx.ModelProto) -> set[str]:
    return {t.name for g in graphs(of.graph) for t in g.initializer}


SAME = "?y = MatMul(?m, o)"
ANOTHER_LAYER = "?s = Relu(?m) ?k = MatMul(?s, u) ?y = MatMul(?k, o)"
ANOTHER_USE = "?q = Neg(?m) ?y = MatMul(?q, o)"


@pytest.mark.parametrize(
    ("then", "other", "units"), [(SAME, SAME, [16, 12]), (SAME, ANOTHER_USE, [16, 12]), (SAME, ANOTHER_LAYER, [16, 12])]
)
def test_they_are_cut_alike_and_stay_one(then: str, other: str, units: list[int]) -> None:
    original = model(then, other)
    made = check(original, units)
    assert stored(made.model) == stored(original)
    for seed in range(3):
        cut = prune(original, 0.5, seed)
        assert not any("pruned" in name for name in stored(cut.model))
        assert dims(cut.model, "w")[1] == dims(cut.model, "b")[0] == dims(cut.model, "v")[0] == 8
        assert dims(cut.model, "v")[1] == dims(cut.model, "o")[0]


def test_what_one_branch_needs_whole_stays_in_both() -> None:
    """The other branch compares all positions of what w makes, so that no column of w can leave."""
    original = net("""g (float[N,6] x, bool c) => (float[N,5] y) <float[6,16] w, float[16,5] v> {
        y = If(c) <
            then_branch = gt () => (float[N,5] ty) { th = MatMul(x, w) tr = Relu(th) ty = MatMul(tr, v) },
            else_branch = ge () => (float[N,5] ey) { eh = MatMul(x, w) er = Softmax(eh) ey = MatMul(er, v) }
        >
    }""")
    check(original, [])


def test_two_layers_of_a_branch_that_share_a_weight_are_cut_apart() -> None:
    body = "?a = MatMul(x, w) ?b = Relu(?a) ?c = MatMul(?b, v) ?d = MatMul(x, w) ?e = Tanh(?d) ?f = MatMul(?e, u) ?y = Add(?c, ?f)"
    then, other = (f"g{p} () => (float[N,5] {p}y) {{ {body.replace('?', p)} }}" for p in "te")
    original = net(f"""g (float[N,6] x, bool c) => (float[N,5] y) <float[6,16] w, float[16,5] v, float[16,5] u> {{
        y = If(c) <then_branch = {then}, else_branch = {other}>
    }}""")
    made = check(original, [16, 16])
    assert len([n for n in stored(made.model) if n.startswith("w")]) == 2, "one for each layer, not one for each branch"
    assert attribute(node(made.model, "If"), "then_branch").node


def test_a_fit_goes_for_both_branches(tmp_path: Path) -> None:
    """The weights that one branch is fitted to are the other's too; the plan says so, and the proof follows it."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(24):
        np.savez(folder / f"{k:02}.npz", x=rng.standard_normal((4, 6)).astype(np.float32), c=np.array(k % 2 == 0))
    original, plan = model(SAME, ANOTHER_USE), tmp_path / "plan.json"
    made = onnxprune.prune(
        original, Budget("macs", 0.5), data=str(folder), plan=plan, round_to=1, benchmark=False, mix=False
    )
    repair = made.report.repair
    assert repair is not None and repair.fitted >= 2
    assert repair.damage.before is not None and repair.damage.after is not None
    assert repair.damage.after < repair.damage.before
    assert stored(made.model) == stored(original), "no constant became two"
    then, other = ({place for place in made.plan.refit if f".{x}_branch//" in place[0]} for x in ("then", "else"))
    assert len(then) == len(other) > 0
    onnxprune.verify(original, made.model, plan, data=str(folder))


def test_the_same_value_for_all_readers_is_written_where_it_is_stored() -> None:
    original = model(SAME, ANOTHER_USE)
    places = [("y.then_branch//th", 1), ("y.else_branch//eh", 1)]
    new = np.ones((6, 16), np.float32)
    changed = with_constants(original, dict.fromkeys(places, new))
    assert stored(changed) == stored(original)
    found = constants_at(Model(changed), places)
    assert all(np.array_equal(found[place], new) for place in places)
    apart = with_constants(original, {places[0]: new, places[1]: 2 * new})
    assert len(stored(apart)) == len(stored(original)) + 1, "one for each, and the old one gone"
    one = with_constants(original, {places[0]: new})
    assert np.array_equal(constants_at(Model(one), places)[places[1]], constants_at(Model(original), places)[places[1]])


BOTH = [True, False]


def folder_of(folder: Path, conditions: list[bool], count: int = 32) -> str:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        x = rng.standard_normal((4, 6)).astype(np.float32)
        np.savez(folder / f"{k:02}.npz", x=x, c=np.array(conditions[k % len(conditions)]))
    return str(folder)


def fits_of(model: onnx.ModelProto, data: str) -> onnxprune.PruneResult:
    return onnxprune.prune(model, Budget("macs", 0.5), data=data, round_to=1, benchmark=False, mix=False)


OWN = """g (float[N,6] x, bool c) => (float[N,5] y) {
    y = If(c) <
        then_branch = gt () => (float[N,5] ty) <float[6,16] tw, float[16,5] tv> { th = MatMul(x, tw) tr = Relu(th) ty = MatMul(tr, tv) },
        else_branch = ge () => (float[N,5] ey) <float[6,16] ew, float[16,5] ev> { eh = MatMul(x, ew) er = Tanh(eh) ey = MatMul(er, ev) }
    >
}"""


@pytest.mark.parametrize(
    ("conditions", "fitted", "untaken"),
    [
        (BOTH, ["y.then_branch//ty", "y.else_branch//ey"], None),
        ([True], ["y.then_branch//ty"], "else"),
        ([False], ["y.else_branch//ey"], "then"),
    ],
)
def test_every_branch_that_the_data_take_is_repaired(
    tmp_path: Path, conditions: list[bool], fitted: list[str], untaken: str | None
) -> None:
    report = fits_of(net(OWN), folder_of(tmp_path / "data", conditions)).report
    assert report.repair is not None
    assert [f.layer for f in report.repair.fits if f.ridge is not None] == fitted
    said = [w for w in report.warnings if "was taken by none" in w]
    sentence = f"branch '{untaken}' of If 'y' was taken by none of the calibration inputs; its own weights are cut but not repaired"
    assert said == ([sentence] if untaken else [])


def test_a_shared_weight_is_fitted_to_what_all_branches_read(tmp_path: Path) -> None:
    """One branch doubles what the other reads: with samples of both, the fit is that of all rows together, each branch with its own scale."""
    original = model(SAME, ANOTHER_USE)
    made = fits_of(original, folder_of(tmp_path / "data", BOTH))
    assert made.report.repair is not None
    assert made.report.repair.layers == 3, "w, v and o, once each"
    assert stored(made.model) == stored(original)
    assert not [w for w in made.report.warnings if "branch" in w]


def test_moments_are_those_of_the_samples_that_come_by(tmp_path: Path) -> None:
    loaded = load(model(SAME, ANOTHER_LAYER))
    analysis = analysis_of(loaded, Scope())
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((3, 6)).astype(np.float32), "c": np.array(k < 4)} for k in range(6)]
    samples = Samples(tuple(feeds), (False,) * 6, (3,) * 6, 6)
    found = calibrate(analysis, samples, judged_by(loaded, lambda name: True))
    rows = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    for key in ("y.then_branch//th", "y.else_branch//eh"):
        assert found.moments[key].count == 18, "both branches read w: all rows"
        assert np.allclose(found.moments[key].xx[0], rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert found.moments["y.else_branch//ek"].count == 6, "two samples of three rows go there"
    session = ort.InferenceSession(loaded.proto.SerializeToString())
    for f, outputs in zip(feeds, found.outputs, strict=True):
        assert np.allclose(outputs[0], session.run(None, f)[0], atol=1e-5)


def test_ifs_within_branches(tmp_path: Path) -> None:
    """Four ways through the graph, one of them never taken; every layer on a way that is taken is fitted."""

    def layer(p: str) -> str:
        return f"g{p} () => (float[N,5] {p}y) <float[6,16] {p}w, float[16,5] {p}v> {{ {p}h = MatMul(x, {p}w) {p}r = Relu({p}h) {p}y = MatMul({p}r, {p}v) }}"

    def two(p: str) -> str:
        return f"g{p} () => (float[N,5] {p}z) {{ {p}z = If(d) <then_branch = {layer(p + 't')}, else_branch = {layer(p + 'e')}> }}"

    original = net(
        f"g (float[N,6] x, bool c, bool d) => (float[N,5] y) {{ y = If(c) <then_branch = {two('t')}, else_branch = {two('e')}> }}"
    )
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(48):
        c, d = [(True, True), (True, False), (False, False)][k % 3]
        np.savez(folder / f"{k:02}.npz", x=rng.standard_normal((4, 6)).astype(np.float32), c=np.array(c), d=np.array(d))
    report = fits_of(original, str(folder)).report
    assert report.repair is not None
    assert [f.layer for f in report.repair.fits if f.ridge is not None] == [
        "y.then_branch//tz.then_branch//tty",
        "y.then_branch//tz.else_branch//tey",
        "y.else_branch//ez.else_branch//eey",
    ]
    said = [w for w in report.warnings if "was taken by none" in w]
    assert said == [
        "branch 'then' of If 'y.else_branch//ez' was taken by none of the calibration inputs; its own weights are cut but not repaired"
    ]


def test_quantized_weights_that_branches_share_stay_one(tmp_path: Path) -> None:
    """Decoded outside of the branches, once; what is fitted is written into the codes."""
    branch = "g{p} () => (float[N,5] {p}y) {{ {p}h = MatMul(x, w) {p}r = {act}({p}h) {p}y = MatMul({p}r, v) }}"
    rng = np.random.default_rng(0)
    constants = {
        "q": rng.integers(-127, 127, (6, 16)).astype(np.int8),
        "s": np.full(16, 0.01, np.float32),
        "u": rng.integers(-127, 127, (16, 5)).astype(np.int8),
        "t": np.full(5, 0.01, np.float32),
    }
    original = net(
        f"""g (float[N,6] x, bool c) => (float[N,5] y) {{
            w = DequantizeLinear<axis=1>(q, s) v = DequantizeLinear<axis=1>(u, t)
            y = If(c) <then_branch = {branch.format(p="t", act="Relu")}, else_branch = {branch.format(p="e", act="Tanh")}>
        }}""",
        constants=constants,
    )
    made = fits_of(original, folder_of(tmp_path / "data", BOTH))
    assert made.report.repair is not None
    assert [(f.layer, f.ridge is not None) for f in made.report.repair.fits][1:] == [("y.then_branch//ty", True)]
    assert stored(made.model) == stored(original)
    assert dims(made.model, "u") == [8, 5]


def test_sparse_weights_outside_are_listed_once_by_their_own_name(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", BOTH)
    for more in ({}, {"data": data}):
        made = onnxprune.sparsify(model(SAME, ANOTHER_LAYER), sparsity=0.5, benchmark=False, **more)
        assert sorted((x.tensor, x.uses) for x in made.report.layers) == [("o", 2), ("u", 1), ("v", 2), ("w", 2)]


def test_a_constant_is_cut_alike_where_one_branch_pins_another_axis_of_it() -> None:
    """In one branch the rows of v could leave too; none does, so both cut its columns and it stays one."""
    branch = "g{p} () => (float[N,5] {p}y) {{ {p}h = MatMul(x, w) {p}r = {act}({p}h) {p}m = MatMul({p}r, v) {p}s = Relu({p}m) {p}y = MatMul({p}s, o) }}"
    then, other = branch.format(p="t", act="Relu"), branch.format(p="e", act="Softmax")
    original = net(f"""g (float[N,6] x, bool c) => (float[N,5] y) <float[6,8] w, float[8,12] v, float[12,5] o> {{
        y = If(c) <then_branch = {then}, else_branch = {other}>
    }}""")
    made = prune(original, 0.5, 0)
    assert stored(made.model) == stored(original)
    assert (dims(made.model, "w"), dims(made.model, "v"), dims(made.model, "o")) == ([6, 8], [8, 6], [6, 5])


@pytest.mark.parametrize("given", ["{ b1 = Identity(c) }", "<float[24] b1> {}"], ids=["read elsewhere", "its own"])
def test_a_constant_that_a_branch_gives(given: str) -> None:
    """It is cut as what the other branch computes; another layer that reads it has units of its own."""
    text = f"""g (float[N,8] x, bool a) => (float[N,5] y, float[N,4] z)
        <float[8,24] u, float[24,5] w, float[24] c, float[24] d, float[8,24] t, float[24,4] v> {{
        h = MatMul(x, u)
        b = If(a) <then_branch = constant () => (float[24] b1) {given},
            else_branch = computed () => (float[24] b2) {{ b2 = Neg(d) }}>
        s = Add(h, b)
        r = Relu(s)
        y = MatMul(r, w)
        i = MatMul(x, t)
        j = Add(i, c)
        k = Relu(j)
        z = MatMul(k, v)
    }}"""
    check(net(text), units=[24, 24])
