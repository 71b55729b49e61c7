"""What a model was observed with (sizes, values) gets into no plan and no file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.cut.plan import Member
from onnxprune.model.load import load
from tests import oracle
from tests.oracle import Array, net, prune
from tests.zoo import files, load_graph

ATTENTION = """g (float[B,S,16] x) => (float[B,S,5] y)
    <float[16,24] q, float[16,24] k, float[16,24] v, float[24,16] o, float[16,20] u, float[20,5] h> {
    s = Shape(x)
    xq = MatMul(x, q)
    xk = MatMul(x, k)
    xv = MatMul(x, v)
    sb = Slice(s, zero, two)
    parts = Concat<axis=0>(sb, heads)
    rq = Reshape(xq, parts)
    rk = Reshape(xk, parts)
    rv = Reshape(xv, parts)
    tq = Transpose<perm=[0,2,1,3]>(rq)
    tk = Transpose<perm=[0,2,3,1]>(rk)
    tv = Transpose<perm=[0,2,1,3]>(rv)
    qs = Shape(tq)
    size = Gather(qs, last)
    f = Cast<to=1>(size)
    root = Sqrt(f)
    dots = MatMul(tq, tk)
    scaled = Div(dots, root)
    p = Softmax<axis=-1>(scaled)
    a = MatMul(p, tv)
    ta = Transpose<perm=[0,2,1,3]>(a)
    whole = Concat<axis=0>(sb, minus)
    ra = Reshape(ta, whole)
    out = MatMul(ra, o)
    r = Add(x, out)
    w = MatMul(r, u)
    n = Relu(w)
    y = MatMul(n, h)
}"""
LSTM = """g (float[T,B,10] x) => (float[T,B,5] y)
    <float[2,48,10] W, float[2,48,12] R, float[2,96] b, float[24,16] p, float[16,5] h> {
    s, last, cell = LSTM<hidden_size=12, direction="bidirectional">(x, W, R, b)
    t = Transpose<perm=[0,2,1,3]>(s)
    f = Reshape(t, back)
    m = MatMul(f, p)
    r = Relu(m)
    y = MatMul(r, h)
}"""
BAG = """g (int64[B,S] ids, float[B,S] weight) => (float[B,4] y)
    <float[30,16] table, float[16,12] u, float[12,4] h> {
    e = Gather(table, ids)
    c = Unsqueeze(weight, two)
    scaled = Mul(e, c)
    z = ReduceSum<keepdims=0>(scaled, one)
    n = Size(e)
    s = Shape(ids)
    rows = Gather(s, none)
    per = Div(n, rows)
    f = Cast<to=1>(per)
    mean = Div(z, f)
    a = MatMul(mean, u)
    r = Relu(a)
    y = MatMul(r, h)
}"""
BUCKETS = """g (float[B,S,12] x) => (float[B,S,3] y)
    <float[12,24] q, float[12,24] k, float[12,24] v, float[24,9] o, float[9,3] h, float[32,4] table> {
    s = Shape(x)
    length = Gather(s, one)
    places = Range(start, length, step)
    rows = Unsqueeze(places, axis1)
    columns = Unsqueeze(places, axis0)
    apart = Sub(columns, rows)
    far = Abs(apart)
    bucket = Min(far, most)
    bias = Gather(table, bucket)
    heads = Transpose<perm=[2,0,1]>(bias)
    xq = MatMul(x, q)
    xk = MatMul(x, k)
    xv = MatMul(x, v)
    rq = Reshape(xq, split)
    rk = Reshape(xk, split)
    rv = Reshape(xv, split)
    tq = Transpose<perm=[0,2,1,3]>(rq)
    tk = Transpose<perm=[0,2,3,1]>(rk)
    tv = Transpose<perm=[0,2,1,3]>(rv)
    dots = MatMul(tq, tk)
    moved = Add(dots, heads)
    p = Softmax<axis=-1>(moved)
    a = MatMul(p, tv)
    ta = Transpose<perm=[0,2,1,3]>(a)
    ra = Reshape(ta, join)
    w = MatMul(ra, o)
    n = Relu(w)
    y = MatMul(n, h)
}"""
EXPERTS = """g (float[B,S,10] x) => (float[B,S,4] y)
    <float[10,16] e, float[16,2] router, float[16,12] u0, float[12,16] d0, float[16,4] h> {
    h0 = MatMul(x, e)
    hs = Shape(h0)
    r = Reshape(h0, flat)
    shape = Shape(r)
    acc = ConstantOfShape(shape)
    score = MatMul(r, router)
    best = ArgMax<axis=-1,keepdims=0>(score)
    chosen = Equal(best, zero)
    where = NonZero(chosen)
    index = Squeeze(where, axis0)
    mine = Gather(r, index)
    a = MatMul(mine, u0)
    b = Relu(a)
    c = MatMul(b, d0)
    places = Unsqueeze(index, axis1)
    all = ScatterND(acc, places, c)
    sum = Add(r, all)
    back = Reshape(sum, hs)
    y = MatMul(back, h)
}"""
PICTURE = """g (float[N,3,H,W] x) => (float[N,2,H,W] y)
    <float[12,3,3,3] a, float[12,12,3,3] b, float[2,12,1,1] c, float[4] big> {
    p = Conv<pads=[1,1,1,1]>(x, a)
    s = Shape(p)
    q = Resize<mode="nearest">(p, , big)
    z = Conv<pads=[1,1,1,1],strides=[2,2]>(q, b)
    i = Resize<mode="nearest">(z, , , s)
    t = Shape(i)
    e = Expand(bump, t)
    j = Add(i, e)
    y = Conv(j, c)
}"""
TABLE = """g (float[B,S,10] x) => (float[B,L,4] y) <float[10,24] w, float[1,6,24] table, float[24,16] u, float[16,4] h> {
    p = MatMul(x, w)
    s = Shape(x)
    length = Slice(s, one, two)
    target = Concat<axis=0>(minus, length, heads)
    r = Reshape(p, target)
    a = Relu(r)
    back = Reshape(a, join)
    z = Add(back, table)
    q = MatMul(z, u)
    t = Relu(q)
    y = MatMul(t, h)
}"""
ints = lambda *n: np.array(n, np.int64)  # noqa: E731
CONSTANTS: dict[str, dict[str, Array]] = {
    "attention": {
        "zero": ints(0),
        "two": ints(2),
        "heads": ints(3, 8),
        "minus": ints(-1),
        "last": np.array(3),
    },
    "lstm": {"back": ints(0, 0, -1)},
    "bag": {"one": ints(1), "two": ints(2), "none": ints(0)},
    "buckets": {
        "one": np.array(1),
        "start": np.array(0),
        "step": np.array(1),
        "most": np.array(31),
        "axis0": ints(0),
        "axis1": ints(1),
        "split": ints(0, 0, 4, 6),
        "join": ints(0, 0, -1),
    },
    "experts": {"flat": ints(-1, 16), "zero": np.array(0), "axis0": ints(0), "axis1": ints(1)},
    "table": {"one": ints(1), "two": ints(2), "minus": ints(-1), "heads": ints(4, 6), "join": ints(0, 0, -1)},
    "picture": {"big": np.array([1, 1, 2, 2], np.float32), "bump": np.ones((1, 1, 1, 1), np.float32)},
}
TEXTS = {
    "attention": ATTENTION,
    "lstm": LSTM,
    "bag": BAG,
    "buckets": BUCKETS,
    "experts": EXPERTS,
    "picture": PICTURE,
    "table": TABLE,
}
SIZES = [(1, 6), (5, 9), (2, 16), (3, 3), (4, 12), (16, 4), (1, 1)]
FEW = {"table": [(2, 6), (3, 1), (1, 6)]}  # it takes no other lengths, so that a length passes for static


def case(name: str) -> onnx.ModelProto:
    return net(TEXTS[name], constants=CONSTANTS[name])


def data(model: onnx.ModelProto, sizes: tuple[int, ...], path: Path) -> Path:
    np.savez(path, **oracle.feeds(model, 1, (*sizes, sizes[-1])))
    return path


def plain(plan: onnxprune.Plan) -> dict[str, Any]:
    """MACs are those of the observed sizes."""
    return replace(plan, macs=None).to_dict()


def cut(array: Array, members: list[Member]) -> Array:
    """A constant without what a plan's members say that it loses, axis by axis; whole slabs first."""
    gone = {axis: np.zeros(array.shape, bool) for axis in sorted({m.axis for m in members})}
    for m in members:
        gone[m.axis][oracle.removed(m, array.shape)] = True
    for axis in sorted(gone, key=lambda axis: any(m.at for m in members if m.axis == axis)):
        kept = np.moveaxis(~gone[axis], axis, -1)

        def without(values: Array, axis: int = axis, kept: Array = kept) -> Array:
            lines = np.moveaxis(values, axis, -1)
            return np.moveaxis(lines[kept].reshape(*lines.shape[:-1], -1), -1, axis)

        array, gone = without(array), {a: without(g) for a, g in gone.items()}
    return array


def listed(model: onnx.ModelProto, result: onnxprune.PruneResult) -> None:
    """The plan's members make every initializer of the result from the original's; one that several nodes read, for one of them."""
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in result.model.graph.initializer:
        if tensor.name in before and before[tensor.name].dtype.kind == "f":
            members = [m for g in result.plan.groups for m in g.members if m.tensor == tensor.name]
            nodes = {m.node for m in members}
            made = [cut(before[tensor.name], [m for m in members if m.node == node]) for node in nodes]
            readers = [n for g in oracle.graphs(model.graph) for n in g.node if tensor.name in n.input]
            if len(readers) > len(nodes):
                made.append(before[tensor.name])  # some take it as it was
            now = numpy_helper.to_array(tensor)
            assert any(np.array_equal(x, now) for x in made), f"{tensor.name} by {members}"


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("importance", ["random", "l2"])
def test_same_plan_and_bytes_whatever_was_observed(name: str, importance: str, tmp_path: Path) -> None:
    model = case(name)
    options: dict[str, Any] = {"importance": importance, "seed": 3}
    first = prune(model, 0.5, **options)
    assert first.plan.groups
    oracle.compare(model, first, sizes=FEW.get(name, SIZES)[:2])
    listed(model, first)
    for sizes in FEW.get(name, SIZES):
        feed = data(model, sizes, tmp_path / "x.npz")
        other = prune(model, 0.5, **options, data=feed)
        assert plain(other.plan) == plain(first.plan), f"another plan at {sizes}"
        assert other.model.SerializeToString() == first.model.SerializeToString(), f"other bytes at {sizes}"
        again = onnxprune.prune(model, apply=other.plan, benchmark=False, data=feed, recover="none")
        assert again.model == first.model
        assert onnxprune.verify(model, first.model, other.plan, data=feed).error <= oracle.TOLERANCE


def test_a_repaired_model_is_verified_without_its_data(tmp_path: Path) -> None:
    model = case("attention")
    feed = data(model, (40, 7), tmp_path / "x.npz")
    result = onnxprune.prune(model, Budget("macs", 0.5), data=feed, round_to=1, benchmark=False)
    assert result.plan.refit
    assert onnxprune.verify(model, result.model, result.plan).error <= oracle.TOLERANCE


def test_a_count_of_positions_follows_the_inputs(tmp_path: Path) -> None:
    """Size of a tensor that loses columns and has rows of any number."""
    model = case("bag")
    result = prune(model, 0.5, data=data(model, (2, 3), tmp_path / "x.npz"))
    assert oracle.dims(result.model, "table")[1] < 16
    oracle.compare(model, result)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_every_weight_of_a_recurrence_is_listed(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    model = net(
        f"""g (float[T,B,10] x) => (float[T,B,5] y)
        <float[10,9] e, float[2,{gates * 12},9] W, float[2,{gates * 12},12] R, float[2,{gates * 24}] b, float[24,5] h> {{
        i = MatMul(x, e)
        s, last = {op}<hidden_size=12, direction="bidirectional">(i, W, R, b)
        t = Transpose<perm=[0,2,1,3]>(s)
        f = Reshape(t, back)
        y = MatMul(f, h)
    }}""",
        constants=CONSTANTS["lstm"],
    )
    result = prune(model, 0.5)
    members = {(m.tensor, m.axis, m.at) for g in result.plan.groups for m in g.members}
    for direction in (0, 1):
        at = ((0, (direction,)),)
        assert {("W", 1, at), ("R", 1, at), ("R", 2, at), ("b", 1, at)} <= members
    assert ("W", 2, ()) in members, "the inputs go from both directions alike"
    listed(model, result)
    oracle.compare(model, result)


def test_groups_of_a_convolution_that_lose_different_channels_are_listed() -> None:
    model = net("""g (float[N,3,5,5] x) => (float[N,2,5,5] y)
        <float[16,3,3,3] a, float[16,4,3,3] b, float[2,16,1,1] c> {
        p = Conv<pads=[1,1,1,1]>(x, a)
        q = Conv<pads=[1,1,1,1],group=4>(p, b)
        y = Conv(q, c)
    }""")
    result = prune(model, 0.5)
    assert any(m.tensor == "b" and m.axis == 1 for g in result.plan.groups for m in g.members)
    listed(model, result)


def old(plan: onnxprune.Plan, model: onnx.ModelProto, **scope: Any) -> dict[str, Any]:
    """As onnxprune 0.1.0 wrote it: classes among all classes, only members that are slices of an axis."""
    numbered = analysis_of(load(model), Scope(**scope)).solution.removable
    document = plan.to_dict() | {"version": 1}
    for group in document["groups"]:
        group["classes"] = numbered[group["classes"]].tolist()
        group["members"] = [m for m in group["members"] if "at" not in m]
    return document


@pytest.mark.parametrize("name", ["lstm", "table"])
def test_plans_of_the_first_format_hold_at_their_sizes(name: str, tmp_path: Path) -> None:
    model = case(name)
    feed = data(model, (2, 6), tmp_path / "x.npz")
    result = prune(model, 0.5, data=feed)
    plan = onnxprune.Plan.from_json(json.dumps(old(result.plan, model, data=feed)))
    again = onnxprune.prune(model, apply=plan, benchmark=False, data=feed, recover="none")
    assert again.model == result.model and again.plan.version == 1
    if name == "table":
        with pytest.raises(BadInputError, match=r"older version with inputs of other sizes: give the --data"):
            onnxprune.prune(model, apply=plan, benchmark=False, recover="none")


@pytest.mark.parametrize(
    "name", ["hf__llama_gqa__dynamo", "timm__deit_tiny_patch16_224__legacy", "tv__mobilenet_v3_small__legacy"]
)
def test_graphs_of_exporters_get_the_same_plan_and_bytes(name: str, tmp_path: Path) -> None:
    model = load_graph(files()[name])
    first = prune(model, 0.4)
    listed(model, first)
    other = prune(model, 0.4, data=data(model, (1,), tmp_path / "x.npz"))
    assert plain(other.plan) == plain(first.plan)
    assert other.model.SerializeToString() == first.model.SerializeToString()
