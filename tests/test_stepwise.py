"""A model a part at a time, its Ifs decided, its constants exchanged: always against the whole model in ONNX Runtime.

Seen red: a Loop body whose captures are not renamed, keys without the holder's name, `replace` that leaves the node's old
input, values dropped after the first reader, a patch that changes what others read or what is an output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnxprune import BadInputError
from onnxprune.calibrate.routes import flat_model
from onnxprune.calibrate.stepwise import Stepwise
from onnxprune.model.branches import captured, subgraphs
from onnxprune.model.graph import view
from onnxprune.model.importer import import_graph
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.model.patch import constants_at, with_constants
from onnxprune.model.routing import Routing, flatten, ifs
from tests.oracle import Array, dims, feeds, graphs, net, session

# ---------------------------------------------------------------- Ifs decided

NESTED = """g (float[2,4] x, bool c, bool d) => (float[2,3] y, float[2,4] z)
    <float[4,8] w, float[8,3] v, float[8,3] only, float[2,4] half, int64 n, bool yes> {
    h = MatMul(x, w)
    y = If (c) <
        then_branch = a () => (float[2,3] p) <float[8,8] inner> {
            p0 = MatMul(h, inner)
            p1 = If (d) <
                then_branch = aa () => (float[2,8] q) <float[8] b> { q0 = Add(p0, b) q = Relu(q0) },
                else_branch = ae () => (float[2,8] r) <float[8,8] inner2> { r0 = MatMul(p0, inner2) r = Add(r0, h) }
            >
            p2 = Loop (n, yes, p1) <
                body = l (int64 i, bool go, float[2,8] s) => (bool keep, float[2,8] s2) <float[8] t> {
                    keep = Identity(go)
                    s0 = Add(s, p0)
                    s1 = MatMul(s0, inner)
                    s2 = If (d) <
                        then_branch = ba () => (float[2,8] u) { u = Add(s1, h) },
                        else_branch = be () => (float[2,8] o) { o0 = Mul(s1, t) o = Sub(o0, p1) }
                    >
                }
            >
            p = MatMul(p2, v)
        },
        else_branch = e () => (float[2,3] k) { k0 = Sigmoid(h) k = MatMul(k0, only) }
    >
    z = Add(x, half)
}"""
CONSTANTS = {"n": np.array(2), "yes": np.array(True)}
KNOWN = [(True, True), (True, False), (False, True)]


def decided(c: bool, d: bool) -> dict[str, Array]:
    return {
        "x": np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32),
        "c": np.array(c),
        "d": np.array(d),
    }


@pytest.mark.parametrize("c, d", KNOWN)
def test_flat_model_gives_the_same_outputs(c: bool, d: bool) -> None:
    model = net(NESTED, constants=CONSTANTS)
    before = model.SerializeToString()
    given = decided(c, d)
    flat, _ = flat_model(Model(model), [given])
    assert model.SerializeToString() == before
    assert "If" not in {n.op_type for n in flat.graph.node}
    onnx.checker.check_model(flat)
    wanted, found = session(model).run(None, given), session(flat).run(None, given)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize("c, d", KNOWN)
def test_names_of_a_flat_model_are_the_keys_of_the_analysis(c: bool, d: bool) -> None:
    model = net(NESTED, constants=CONSTANTS)
    index = view(import_graph(load(model)), {"": 17})
    nodes = {n.key: n for n in index.graph.walk()}
    flat, _ = flat_model(Model(model), [decided(c, d)])
    for node in flat.graph.node:
        known = nodes[node.output[0]]
        if known.op == "If":
            assert node.op_type == "Identity", "what stands in its place"
            continue
        assert (known.op, known.outputs) == (node.op_type, tuple(node.output))
        assert known.inputs == tuple(node.input)
    keys = {o for n in flat.graph.node for o in n.output}
    assert ("y.then_branch//p0" in keys) == c
    assert ("y.then_branch//p1.then_branch//q0" in keys) == (c and d)
    assert ("y.else_branch//k0" in keys) == (not c)


def test_ifs_stay_where_nothing_is_known_of_their_condition() -> None:
    model = net(NESTED, constants=CONSTANTS)
    assert flatten(model, [{}])[0].graph == model.graph
    flat, _ = flatten(model, [{"y": True}])
    assert [n.input[0] for n in ifs(flat)] == ["d"], "the inner If is at the top now"
    (loop,) = [n for n in flat.graph.node if n.op_type == "Loop"]
    ((_, body),) = subgraphs(loop)
    assert [n.op_type for n in body.node] == ["Identity", "Add", "MatMul", "If"]
    outside = captured(body)
    assert outside == {f"y.then_branch//{x}" for x in ("p0", "p1", "inner")} | {"h", "d"}


def test_outputs_of_an_if_may_be_left_out() -> None:
    model = net("""g (float[2,4] x, bool c) => (float[2,4] y) {
        h = Relu(x)
        a, b = If (c) <
            then_branch = t () => (float[2,4] k, float[2,4] p) { k = Identity(h) p = Neg(h) },
            else_branch = e () => (float[2,4] q, float[2,4] r) { q = Exp(h) r = Abs(h) }
        >
        y = Add(a, b)
    }""")
    for c in (True, False):
        given = {"x": decided(c, c)["x"], "c": np.array(c)}
        flat, _ = flat_model(Model(model), [given])
        assert np.array_equal(session(model).run(None, given)[0], session(flat).run(None, given)[0])
    holder = next(n for n in model.graph.node if n.op_type == "If")
    holder.output[0] = ""
    last = model.graph.node[-1]
    last.input[0] = "h"
    given = {"x": decided(True, True)["x"], "c": np.array(True)}
    flat, _ = flatten(model, [{"b": True}])  # ONNX Runtime itself takes no If without all of its outputs
    assert {o for n in flat.graph.node for o in n.output} == {"h", "b.then_branch//k", "b.then_branch//p", "b", "y"}
    assert np.array_equal(session(flat).run(None, given)[0], np.zeros((2, 4)))


def test_every_sample_runs_along_its_own_branches() -> None:
    model = net(NESTED, constants=CONSTANTS)
    given = [decided(c, d) for c, d in KNOWN]
    flat, routing = flat_model(Model(model), given)
    onnx.checker.check_model(flat)
    steps, whole = Stepwise(Model(flat), given, routing), session(model)
    wanted = [whole.run(None, f) for f in given]
    inner = list(steps.values("y.then_branch//p0"))
    assert [v is not None for v in inner] == [c for c, _ in KNOWN]
    deep = list(steps.values("y.then_branch//p1.then_branch//q0"))
    assert [v is not None for v in deep] == [c and d for c, d in KNOWN]
    for k, name in enumerate(o.name for o in model.graph.output):
        found = list(steps.values(name))
        assert all(np.array_equal(f, w[k]) for f, w in zip(found, wanted, strict=True)), name
    for feed, route, outputs in zip(given, routing.routes, wanted, strict=True):
        alone = session(routing.along(flat, route)).run(None, feed)
        assert all(np.array_equal(a, b) for a, b in zip(alone, outputs, strict=True))


def test_a_route_says_which_branches_nobody_takes() -> None:
    routing = Routing({}, frozenset(), ({"a": True, "b": True}, {"a": False}, {"a": True, "b": True, "c": False}))
    assert dict(routing.untaken()) == {"b": "else_branch", "c": "then_branch"}


# ---------------------------------------------------------------- a part at a time

BRANCHED = """g (float[N,3,6,6] x, float[N,4] side) => (float[N,2] y, float[N,4,6,6] r)
    <float[4,3,3,3] a, float[4] ab, float[4,4,3,3] b, float[4,4,3,3] bt, float[4,4] m, float[4,2] v, int64[2] sizes, int64 n, bool yes> {
    c = Conv<pads=[1,1,1,1]>(x, a, ab)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1]>(r, b)
    e = Add(d, r)
    f = Conv<pads=[1,1,1,1]>(e, b)
    g0, g1 = Split<axis=1>(f, sizes)
    g2 = Concat<axis=1>(g1, g0)
    p = GlobalAveragePool(g2)
    q = Flatten(p)
    mt = Transpose<perm=[1,0]>(m)
    mi = Identity(mt)
    s = MatMul(q, mi)
    t = Loop (n, yes, s) <
        body = l (int64 i, bool go, float[N,4] k) => (bool keep, float[N,4] k1) {
            keep = Identity(go)
            k0 = MatMul(k, mt)
            k1 = Add(k0, side)
        }
    >
    u = Add(t, q)
    y = MatMul(u, v)
}"""


def branched() -> ModelProto:
    return net(BRANCHED, constants={"sizes": np.array([1, 3]), "n": np.array(2), "yes": np.array(True)})


def samples(model: ModelProto) -> list[dict[str, Array]]:
    return [feeds(model, seed, (n, 5, 7)) for seed, n in enumerate((2, 1, 3))]


def full(model: ModelProto, names: list[str], given: list[dict[str, Array]]) -> dict[str, list[Array]]:
    """Every named tensor for every sample, from one run of the whole model."""
    copy = ModelProto()
    copy.CopyFrom(model)
    have = {o.name for o in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in have)
    whole = session(copy)
    runs = [whole.run(names, g) for g in given]
    return {n: [r[k] for r in runs] for k, n in enumerate(names)}


def same(found: Iterable[Array], wanted: Iterable[Array]) -> bool:
    """Optimized kernels sum in another order."""
    found, wanted = list(found), list(wanted)
    return len(found) == len(wanted) and all(
        a.shape == b.shape and a.dtype == b.dtype and np.allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(found, wanted, strict=True)
    )


def made(model: ModelProto) -> list[str]:
    return [o for n in model.graph.node for o in n.output if o]


@pytest.mark.parametrize("memory", [1 << 30, 0, 4000])
def test_every_value_is_that_of_the_whole_model(memory: int) -> None:
    model = branched()
    given = samples(model)
    wanted = full(model, made(model), given)
    steps = Stepwise(Model(model), given, memory=memory)
    for name, values in wanted.items():
        assert same(steps.values(name), values), name
        steps.release(name)
    for name, values in wanted.items():
        assert same(Stepwise(Model(model), given, memory=memory).values(name), values), name
    steps = Stepwise(Model(model), given, memory=memory)
    steps.advance([*wanted, "x"])
    for name in reversed(wanted):
        assert same(steps.values(name), wanted[name]), name
    assert same(steps.values("x"), [g["x"] for g in given])


def test_inputs_are_left_alone_and_each_node_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = branched()
    before = model.SerializeToString()
    steps = Stepwise(Model(model), samples(model))
    ran: list[str] = []
    run = Stepwise._run

    def counting(self: Stepwise, which: set[int], *rest: Any) -> list[list[Array]]:
        ran.extend(self.nodes[k].output[0] for k in which)
        return run(self, which, *rest)

    monkeypatch.setattr(Stepwise, "_run", counting)
    for name in ("c", "d", "e", "f", "s", "y"):
        steps.values(name)
    computed = [n for n in ran if not steps.is_constant(n)]
    assert sorted(computed) == sorted({m for m in made(model) if not steps.is_constant(m)} - {"g1"})
    assert model.SerializeToString() == before


def test_values_go_to_disk_and_leave_it_again() -> None:
    model = branched()
    steps = Stepwise(Model(model), samples(model), memory=0)
    steps.advance(["d"])
    assert steps._temporary is not None
    folder = Path(steps._temporary.name)
    assert len(list(folder.iterdir())) == 3 * 2, "d, and r for the Add"
    assert all(isinstance(v, Path) for v in steps._kept["r"])
    steps.release("d")
    steps.advance(["y"])
    kept = {n for n in steps._kept if n not in ("x", "side")}
    assert kept == {"y"} and len(list(folder.iterdir())) == 3
    steps.release("y")
    assert not list(folder.iterdir())
    del steps
    assert not folder.exists()


def test_memory_is_counted_for_what_is_kept() -> None:
    model = branched()
    given = samples(model)
    steps = Stepwise(Model(model), given)
    for name in made(model):
        steps.values(name)
        steps.release(name)
        kept = sum(
            v.nbytes for n, vs in steps._kept.items() for v in vs if n not in given[0] and not isinstance(v, Path)
        )
        assert steps._in_memory == kept, name
    for name in given[0]:
        steps.release(name)
    assert steps._in_memory == 0 and not steps._kept


def test_what_was_dropped_is_not_there_any_more() -> None:
    model = branched()
    steps = Stepwise(Model(model), samples(model))
    steps.values("f")
    steps.release("f")
    with pytest.raises(BadInputError, match="'d' was needed after it had been dropped"):
        steps.values("d")
    assert steps.values("f"), "it is still to be read"
    steps.release("f")
    steps.values("y")
    with pytest.raises(BadInputError, match="'f' was needed"):
        steps.values("f")


# ---------------------------------------------------------------- other constants


def test_a_replaced_constant_is_what_later_nodes_see() -> None:
    model = branched()
    given = samples(model)
    rng = np.random.default_rng(5)
    kernel, bias = rng.standard_normal((4, 4, 3, 3)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    steps = Stepwise(Model(model), given)
    old = steps.values("d")
    steps.replace(4, {1: kernel, 2: bias})
    wanted = ModelProto()
    wanted.CopyFrom(model)
    assert wanted.graph.node[4].output[0] == "f"
    wanted.graph.node[4].input[1] = "other"
    wanted.graph.node[4].input.append("bias")
    wanted.graph.initializer.extend([numpy_helper.from_array(kernel, "other"), numpy_helper.from_array(bias, "bias")])
    values = full(wanted, ["d", "f", "y"], given)
    assert same(old, values["d"]), "the other convolution with this kernel is as it was"
    assert same(steps.values("f"), values["f"]) and same(steps.values("y"), values["y"])
    assert not same(values["y"], full(model, ["y"], given)["y"])
    name = steps.nodes[4].input[1]
    assert steps.is_plain(name) and np.array_equal(steps.constant(name), kernel)


def test_the_last_replacement_counts() -> None:
    model = branched()
    given = samples(model)
    steps = Stepwise(Model(model), given)
    for factor in (5, 2):
        steps.replace(0, {1: factor * steps.constant("a")})
        assert np.array_equal(steps.constant(steps.nodes[0].input[1]), factor * steps.constant("a"))
    twice = ModelProto()
    twice.CopyFrom(model)
    tensor = next(t for t in twice.graph.initializer if t.name == "a")
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), "a"))
    assert same(steps.values("y"), full(twice, ["y"], given)["y"])


def test_a_node_that_ran_keeps_its_constants() -> None:
    model = branched()
    steps = Stepwise(Model(model), samples(model))
    steps.values("c")
    with pytest.raises(BadInputError, match="Conv '' ran already"):
        steps.replace(0, {1: steps.constant("a")})


def test_constants_and_what_they_are_made_of() -> None:
    model = net(
        """g (float[2,4] x) => (float[2,6] y) <float[6,4] w, int8[4,6] q, float scale, int8 zero, float[2,6] noisy> {
        wt = Transpose<perm=[1,0]>(w)
        wi = Identity(wt)
        k = Constant<value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]>()
        t = Constant<value = float[6] {6.0, 5.0, 4.0, 3.0, 2.0, 1.0}>()
        dq = DequantizeLinear(q, scale, zero)
        di = Identity(dq)
        r = RandomNormalLike(noisy)
        s = Shape(x)
        a = MatMul(x, wi)
        b = MatMul(x, di)
        e = Add(a, b)
        f = Add(e, k)
        h = Mul(f, t)
        y = Add(h, r)
    }""",
        constants={"scale": np.array(0.5, np.float32), "zero": np.array(3, np.int8)},
    )
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    steps = Stepwise(Model(model), [])
    fixed = {"w", "q", "scale", "zero", "noisy", "wt", "wi", "k", "t", "dq", "di"}
    names = fixed | set(made(model)) | {"x"}
    assert {n for n in names if steps.is_constant(n)} == fixed
    assert {n for n in names if steps.is_plain(n)} == fixed, "codes can be written, through an Identity too"
    assert np.array_equal(steps.constant("wi"), stored["w"].T) and np.array_equal(steps.constant("wt"), stored["w"].T)
    assert np.array_equal(steps.constant("k"), [1, 2, 3, 4, 5, 6]) and steps.constant("k").dtype == np.float32
    assert np.array_equal(steps.constant("t"), [6, 5, 4, 3, 2, 1])
    assert np.allclose(steps.constant("di"), 0.5 * (stored["q"].astype(np.float32) - 3))
    assert np.array_equal(steps.constant("w"), stored["w"])


def test_sparse_constants() -> None:
    model = net("g (float[2,4] x) => (float[2,6] y) <float[4,6] w> { v = Identity(w)  y = MatMul(x, v) }")
    dense = np.zeros((4, 6), np.float32)
    dense[[0, 2, 3], [1, 1, 5]] = [1, 2, 3]
    values = numpy_helper.from_array(dense[dense != 0], "w")
    where = numpy_helper.from_array(np.flatnonzero(dense).astype(np.int64), "where")
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [4, 6]))
    given = [feeds(model, 0)]
    steps = Stepwise(Model(model), given)
    assert steps.is_constant("w") and np.array_equal(steps.constant("v"), dense)
    assert same(steps.values("y"), [given[0]["x"] @ dense])


def test_sequences_between_the_parts() -> None:
    """Of three pieces one is read by a layer, the other behind it."""
    model = net(
        """g (float[2,8] x) => (float[2,4] y) <int64 zero, int64 one, float[4,4] w> {
        h = Relu(x)
        pieces = SplitToSequence<axis=1>(h, four)
        a = SequenceAt(pieces, zero)
        m = MatMul(a, w)
        b = SequenceAt(pieces, one)
        y = Add(m, b)
    }""",
        constants={"four": np.array(4), "zero": np.array(0), "one": np.array(1)},
    )
    given = [feeds(model, seed) for seed in range(2)]
    for memory in (1 << 30, 0):
        steps = Stepwise(Model(model), given, memory=memory)
        assert same(steps.values("m"), full(model, ["m"], given)["m"])
        assert same(steps.values("y"), full(model, ["y"], given)["y"])


# ---------------------------------------------------------------- written back

PATCHED = """g (float[2,4] x, bool c) => (float[2,4] y, float[2,4] k) <float[4,4] own, float[4,4] shared, float[4,4] outer> {
    a = MatMul(x, own)
    b = MatMul(a, shared)
    d = MatMul(b, shared)
    k = Constant<value = float[2,4] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}>()
    l = Constant<value = float[4] {1.0, 2.0, 3.0, 4.0}>()
    m = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>()
    e = Add(d, k)
    f = Add(e, l)
    g = Mul(f, m)
    h = Gemm(g, own2)
    y = If (c) <
        then_branch = t () => (float[2,4] p) <float[4,4] local, float[4,4] twice> {
            p0 = MatMul(h, local)
            p1 = MatMul(p0, twice)
            p2 = MatMul(p1, twice)
            p = MatMul(p2, outer)
        },
        else_branch = e () => (float[2,4] q) { q = MatMul(h, outer) }
    >
}"""
OWN2 = np.random.default_rng(8).standard_normal((4, 4)).astype(np.float32)


def patched() -> ModelProto:
    return net(PATCHED, constants={"own2": OWN2})


def values_of(model: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for g in graphs(model.graph) for t in g.initializer}


PLACES = [
    ("a", 1),
    ("d", 1),
    ("e", 1),
    ("f", 1),
    ("g", 1),
    ("h", 1),
    ("h", 2),
    ("y.then_branch//p0", 1),
    ("y.then_branch//p2", 1),
    ("y.then_branch//p", 1),
]


def new_value(place: tuple[str, int]) -> Array:
    rng = np.random.default_rng(PLACES.index(place))
    size = {"e": (2, 4), "f": (4,), "g": (4,)}.get(place[0], (4,) if place[1] == 2 else (4, 4))
    return rng.standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("c", [True, False])
def test_only_the_node_meant_gets_the_constant(place: tuple[str, int], c: bool) -> None:
    """Against the model with every constant apart, in which one initializer is exchanged."""
    model = patched()
    before = model.SerializeToString()
    value = new_value(place)
    given = {"x": decided(c, c)["x"], "c": np.array(c)}
    changed = with_constants(model, {place: value})
    assert model.SerializeToString() == before
    onnx.checker.check_model(changed, full_check=True)
    apart = separated(model)
    own = place[0].rpartition("//")[2]
    name = f"{own}:{place[1]}"
    (node,) = [n for g in graphs(apart.graph) for n in g.node if n.output[0] == own]
    while len(node.input) <= place[1]:
        node.input.append("")
    node.input[place[1]] = name
    for tensor in [t for t in apart.graph.initializer if t.name == name]:
        apart.graph.initializer.remove(tensor)
    apart.graph.initializer.append(numpy_helper.from_array(value, name))
    for wanted, found in zip(session(apart).run(None, given), session(changed).run(None, given), strict=True):
        assert np.array_equal(wanted, found)


def separated(model: ModelProto) -> ModelProto:
    """A copy in which every use of a constant has one of its own at the top, named after the use."""
    copy = ModelProto()
    copy.CopyFrom(model)
    values = values_of(model)
    for graph in graphs(copy.graph):
        for n in graph.node:
            if n.op_type == "Constant":
                continue
            for i, name in enumerate(n.input):
                if name in values:
                    n.input[i] = f"{n.output[0]}:{i}"
                    copy.graph.initializer.append(numpy_helper.from_array(values[name], n.input[i]))
    for graph in graphs(copy.graph):
        for tensor in [t for t in graph.initializer if t.name in values]:
            graph.initializer.remove(tensor)
    return copy


def test_where_patched_constants_are_kept() -> None:
    model = patched()
    changes = {p: new_value(p) for p in PLACES}
    changed = with_constants(model, changes)
    before, after = values_of(model), values_of(changed)
    assert np.array_equal(after["own"], changes["a", 1]), "its own keeps its name"
    assert np.array_equal(after["own2"], changes["h", 1])
    assert np.array_equal(after["local"], changes["y.then_branch//p0", 1])
    for name in ("shared", "twice", "outer"):
        assert np.array_equal(after[name], before[name]), "others read it"
    assert sorted(set(after) - set(before)) == [
        "h_refit",
        "k_refit",
        "m_refit",
        "outer_refit",
        "shared_refit",
        "twice_refit",
    ]
    constants = {n.output[0]: n.attribute[0] for n in changed.graph.node if n.op_type == "Constant"}
    assert np.array_equal(numpy_helper.to_array(constants["l"].t), changes["f", 1]), "changed in its node"
    assert np.array_equal(numpy_helper.to_array(constants["k"].t).ravel(), np.arange(1, 9)), "k is an output"
    branch = next(g for n in changed.graph.node for a, g in subgraphs(n) if a == "then_branch")
    assert {t.name for t in branch.initializer} == {"local", "twice", "twice_refit", "outer_refit"}
    assert list(next(n for n in changed.graph.node if n.output[0] == "h").input) == ["g", "own2", "h_refit"]


def test_what_was_written_is_read_back() -> None:
    changes = {p: new_value(p) for p in PLACES}
    changed = with_constants(patched(), changes)
    found = constants_at(Model(changed), [*PLACES, ("a", 0), ("nobody", 1), ("h", 7)])
    assert list(found) == PLACES
    assert all(np.array_equal(found[p], changes[p]) for p in PLACES)
    again = with_constants(patched(), found)
    assert again.SerializeToString() == changed.SerializeToString()


def test_two_nodes_that_leave_a_shared_constant_take_it_along() -> None:
    model = net("g (float[2,4] x) => (float[2,4] y) <float[4,4] w> { a = MatMul(x, w)  y = MatMul(a, w) }")
    changes = {("a", 1): np.eye(4, dtype=np.float32), ("y", 1): 2 * np.eye(4, dtype=np.float32)}
    changed = with_constants(model, changes)
    given = feeds(model, 0)
    assert np.array_equal(session(changed).run(None, given)[0], 2 * given["x"])
    assert sum(math.prod(dims(changed, t.name)) for t in changed.graph.initializer) == 32, "w is not left behind"


def test_what_nobody_reads_any_more_goes() -> None:
    """A weight behind a Transpose, one from outside a branch, a Constant node; what others read stays."""
    model = net("""g (float[2,4] x, bool c) => (float[2,4] y, float[4] told) <float[4,4] w, float[4,4] v, float[4,4] outer, float[4] b> {
        k = Constant<value_ints = [1, 0]>()
        wt = Transpose<perm=[1,0]>(w)
        wi = Identity(wt)
        vt = Transpose<perm=[1,0]>(v)
        told = Identity(b)
        a = MatMul(x, wi)
        d = MatMul(a, vt)
        e = MatMul(d, vt)
        f = Add(e, b)
        y = If (c) <
            then_branch = t () => (float[2,4] p) { p = MatMul(f, outer) },
            else_branch = u () => (float[2,4] q) { q = Identity(f) }
        >
    }""")
    model.graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)
    assert "wt" in {v.name for v in model.graph.value_info}
    places = [("a", 1), ("d", 1), ("f", 1), ("y.then_branch//p", 1)]
    changes = {p: np.full(4 if p[0] == "f" else (4, 4), k + 1, np.float32) for k, p in enumerate(places)}
    changed = with_constants(model, changes)
    onnx.checker.check_model(changed, full_check=True)
    assert made(changed) == ["k", "vt", "told", "a", "d", "e", "f", "y"], "k was dead before: that is not our business"
    assert set(values_of(changed)) == {"v", "b", "wi_refit", "vt_refit", "b_refit", "outer_refit"}
    assert not {"wt", "wi"} & {v.name for v in changed.graph.value_info}
    given = decided(True, True)
    del given["d"]
    ones = np.ones((4, 4), np.float32)
    wanted = ((given["x"] @ ones @ (2 * ones) @ values_of(model)["v"].T) + 3) @ (4 * ones)
    assert np.allclose(session(changed).run(["y"], given)[0], wanted, rtol=1e-4)


def test_new_names_are_new() -> None:
    model = net("""g (float[2,4] x) => (float[2,4] w_refit1) <float[4,4] w, float[4,4] w_refit> {
        a = MatMul(x, w)
        b = MatMul(a, w)
        w_refit1 = MatMul(b, w_refit)
    }""")
    changed = with_constants(model, {("a", 1): np.zeros((4, 4), np.float32)})
    assert changed.graph.node[0].input[1] == "w_refit2"
    onnx.checker.check_model(changed, full_check=True)


def test_an_initializer_that_is_an_input_too_keeps_its_name() -> None:
    """It is a default then, as it was, and not stored twice."""
    model = net("g (float[2,4] x, float[4,4] w) => (float[2,4] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(OWN2, "w"))
    changed = with_constants(model, {("y", 1): 2 * OWN2})
    assert np.array_equal(values_of(changed)["w"], 2 * OWN2) and list(changed.graph.node[0].input) == ["x", "w"]
