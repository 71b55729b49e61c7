"""Weights that both branches of an If read (merged decoders): they are cut alike, and stay one constant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Budget
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
