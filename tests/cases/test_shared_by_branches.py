"""Weights that both branches of an If read (merged decoders): they are cut alike, and stay one constant."""

from __future__ import annotations

import onnx
import pytest

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
