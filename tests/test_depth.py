"""Layers and nodes: what may be bypassed, what is left, and that it computes what the original computes with the other tensor chosen.

Seen red: a sweep that drops what a branch reads, an oracle built by the code that it judges, a plan whose tensors are taken on trust,
a Reshape that is judged by its rank alone, a layer that does not take over what was bypassed behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import onnxprune
from onnxprune import BadInputError, Budget, TargetNotReachableError, VerificationError
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.choose.allocate import allocate
from onnxprune.choose.candidates import candidates, possible
from onnxprune.choose.channels import calibrated
from onnxprune.choose.costs import CostModel
from onnxprune.choose.layers import reduced
from onnxprune.choose.options import Options, completed
from onnxprune.choose.subject import whole
from onnxprune.cli import main
from onnxprune.clock import Clock
from onnxprune.cut.bypass import Bypass, Links, bypassed, checked, node_keys
from onnxprune.cut.rewrite import rewrite
from onnxprune.cut.tidy import tidy
from onnxprune.groups.analysis import Analysis
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.proof.prove import proved
from tests.helpers import score
from tests.oracle import Array, deviation, net, session
from tests.zoo import SHARED, files, load_graph

ROOT = Path(__file__).resolve().parent.parent
DIGITS, DATA = ROOT / "models" / "digits.onnx", ROOT / "models" / "digits_calib.npz"

RESIDUAL = """g (float[N,3,6,6] x) => (float[N,4] y)
    <float[8,3,3,3] stem, float[8] bias, float[8,8,3,3] a1, float[8,8,3,3] b1, float[8,8,3,3] a2, float[8,8,3,3] b2, float[8,8,3,3] a3,
     float[8,8,3,3] b3, float[8,4] head> {
    s0 = Conv<pads=[1,1,1,1]>(x, stem, bias)
    c1 = Conv<pads=[1,1,1,1]>(s0, a1)
    r1 = Relu(c1)
    d1 = Conv<pads=[1,1,1,1]>(r1, b1)
    s1 = Add(s0, d1)
    c2 = Conv<pads=[1,1,1,1]>(s1, a2)
    r2 = Relu(c2)
    d2 = Conv<pads=[1,1,1,1]>(r2, b2)
    s2 = Add(s1, d2)
    c3 = Conv<pads=[1,1,1,1]>(s2, a3)
    r3 = Relu(c3)
    d3 = Conv<pads=[1,1,1,1]>(r3, b3)
    s3 = Add(s2, d3)
    p = GlobalAveragePool(s3)
    f = Flatten(p)
    y = MatMul(f, head)
}"""

BRANCH = """g (float[N,4] x) => (float[N,3] y) <float[4,8] w0, float[8,8] w1, float[8,8] w2, float[8,3] w3> {
    h = MatMul(x, w0)
    o = If (c) <
        then_branch = one () => (float[N,8] p) {
            a = Relu(h)
            b = MatMul(a, w1)
            p = Add(a, b)
        },
        else_branch = other () => (float[N,8] q) {
            q = MatMul(h, w2)
        }
    >
    y = MatMul(o, w3)
}"""


def residual(weak: float = 1.0) -> ModelProto:
    """Three residual blocks; the branch of the second is `weak`."""
    rng = np.random.default_rng(5)
    second = (weak * rng.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32)
    return net(RESIDUAL, constants={"b2": second})


def branching(taken: bool = True) -> ModelProto:
    return net(BRANCH, constants={"c": np.array(taken)})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.standard_normal((96, 3, 6, 6)), axis=2), axis=3)
    np.savez(path, x=(smooth / smooth.std()).astype(np.float32))
    return path


def analysed(model: ModelProto) -> Analysis:
    return analysis_of(load(model), Scope())


def values(model: ModelProto, feeds: dict[str, Array], names: Sequence[str]) -> list[Array]:
    probe = ModelProto()
    probe.CopyFrom(model)
    known = {o.name for o in probe.graph.output}
    probe.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    return list(session(probe).run(list(names), feeds))


def ops(model: ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


# ---------------------------------------------------------------- candidates


def test_what_may_stand_in_for_what() -> None:
    """By hand: a residual sum may be its skip or its branch, a same-shape node its input, and so on in a row."""
    found = {(b.tensor, b.by) for b, hops in possible(Links(analysed(residual()))) if hops == 1}
    assert {("s1", "s0"), ("s1", "d1"), ("c1", "s0"), ("r1", "c1"), ("d1", "r1"), ("s3", "s2")} <= found
    assert not any("x" in pair or "p" in pair or "y" in pair for pair in found), "other shapes"
    everything = {(b.tensor, b.by): hops for b, hops in possible(Links(analysed(residual())))}
    assert everything["s3", "s0"] == 3 and everything["s2", "s0"] == 2
    assert ("s0", "s3") not in everything


def test_what_dies_with_a_bypass() -> None:
    links = Links(analysed(residual()))
    assert links.gone_with(Bypass("s2", "s1")) == {"c2", "r2", "d2", "s2"}
    assert links.gone_with(Bypass("r2", "c2")) == {"r2"}
    assert links.gone_with(Bypass("s2", "d2")) == {"s2"}, "the skip is read by the branch"
    both = [Bypass("s2", "s1"), Bypass("s3", "s2")]
    assert links.gone(both) == {"c2", "r2", "d2", "s2", "c3", "r3", "d3", "s3"} == links.gone_with(Bypass("s3", "s1"))
    for bypass, _ in possible(links):
        assert links.gone_with(bypass) == links.gone([bypass])


def test_the_change_is_the_mean_square_over_the_variance(images: Path) -> None:
    model = residual(0.01)
    settings = completed(Options(data=images), Budget("macs", 0.5))
    analysis = analysis_of(load(model), settings.scope)
    costs = CostModel(analysis)
    calibration = calibrated(analysis, settings, costs, Clock(lambda stage: None))
    assert calibration is not None
    found = {(c.bypass.tensor, c.bypass.by): c for c in candidates(analysis, costs, calibration, "macs")}
    weak = found["s2", "s1"]
    assert weak is next(iter(found.values())), "what changes least for its saving comes first"
    assert weak.macs == weak.saved == 2 * 2 * 36 * 8 * 8 * 9, "two convolutions, two images"
    fitted = [f for f, held in zip(calibration.samples.feeds, calibration.samples.held, strict=True) if not held]
    t, r = (np.concatenate([v[k] for v in (values(model, f, ["s2", "s1"]) for f in fitted)]) for k in (0, 1))
    assert weak.change == pytest.approx(np.square(t - r).mean() / t.var(), rel=0.2)


# ---------------------------------------------------------------- application and oracle


def test_a_bypassed_model_and_its_names() -> None:
    model = residual()
    left = bypassed(model, [Bypass("s2", "s1")])
    assert [n.output[0] for n in left.graph.node] == [
        "s0",
        "c1",
        "r1",
        "d1",
        "s1",
        "s2",
        "c3",
        "r3",
        "d3",
        "s3",
        "p",
        "f",
        "y",
    ]
    assert left.graph.node[5].op_type == "Identity" and not {"a2", "b2"} & {t.name for t in left.graph.initializer}
    tidied = tidy(Model(left))
    assert "Identity" not in ops(tidied) and len(tidied.graph.node) == 12
    onnx.checker.check_model(tidied, full_check=True)
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    zeroed = ModelProto()
    zeroed.CopyFrom(model)
    next(t for t in zeroed.graph.initializer if t.name == "b2").CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((8, 8, 3, 3), np.float32), "b2")
    )
    assert deviation(session(zeroed).run(None, x), session(tidied).run(None, x)) < 1e-6, (
        "a branch of zeros is no branch"
    )


def test_outputs_keep_their_names() -> None:
    """A bypassed tensor that is an output stays one, also where an input or another output stands in for it."""
    model = net("g (float[N,4] x) => (float[N,4] y, float[N,4] z) <float[4,4] w> { y = MatMul(x, w)\n z = Relu(y) }")
    for bypasses in ([Bypass("z", "y")], [Bypass("y", "x")], [Bypass("y", "x"), Bypass("z", "y")], [Bypass("z", "x")]):
        tidied = tidy(Model(bypassed(model, bypasses)))
        onnx.checker.check_model(tidied, full_check=True)
        assert [o.name for o in tidied.graph.output] == ["y", "z"]
        session(tidied).run(None, {"x": np.ones((2, 4), np.float32)})


@pytest.mark.parametrize(
    "bypass", [Bypass("o.then_branch//p", "o.then_branch//a"), Bypass("o.then_branch//a", "h"), Bypass("o", "h")]
)
@pytest.mark.parametrize("taken", [True, False])
def test_inside_a_branch(bypass: Bypass, taken: bool) -> None:
    if bypass.tensor == "o":
        assert Links(analysed(branching(taken))).refusal(bypass) is None, "an If is a node like any other"
    prove(branching(taken), [bypass])


def test_a_branch_not_taken_is_no_candidate(tmp_path: Path) -> None:
    model = branching(False)
    settings = completed(Options(), Budget("macs", 0.5))
    analysis = analysis_of(load(model), settings.scope)
    costs = CostModel(analysis)
    calibration = calibrated(analysis, settings, costs, Clock(lambda stage: None))
    assert calibration is not None
    found = candidates(analysis, costs, calibration, "macs")
    assert found and not any("then_branch" in c.bypass.tensor for c in found)


def prove(model: ModelProto, bypasses: Sequence[Bypass], ratio: float = 0.4) -> ModelProto:
    """Bypass, prune channels of what is left, tidy, and compare with the original by two references: the program's and this one."""
    original = load(model)
    analysis = analysis_of(original, Scope())
    checked(analysis, bypasses)
    proto = bypassed(original.proto, bypasses)
    left = analysis_of(replace(original, proto=proto), Scope(), analysis.observation.feeds)
    nothing = np.zeros(left.solution.count, bool)
    for removed in (nothing, chosen_channels(left, ratio)):
        cut = tidy(Model(rewrite(left, removed)))
        verdict = proved(left, removed, Model(cut), 0, original=original, bypasses=bypasses)
        onnx.checker.check_model(cut, full_check=True)
        assert verdict.error <= verdict.tolerance
    plain = tidy(Model(proto))
    for feeds in analysis.feeds:
        wanted = overridden(model, bypasses, feeds)
        if wanted is not None:
            assert deviation(wanted, session(plain).run(None, feeds)) <= 1e-4
    return plain


def chosen_channels(analysis: Analysis, ratio: float) -> Any:
    try:
        return allocate(analysis, score(analysis, "random", 0), Budget("ratio", ratio), 1).removed
    except onnxprune.NothingPrunableError:
        return np.zeros(analysis.solution.count, bool)


def overridden(model: ModelProto, bypasses: Sequence[Bypass], feeds: dict[str, Array]) -> list[Array] | None:
    """The original's outputs, run in two parts: up to `by`, then with `by`'s value fed where `tensor` was. None for branches, several."""
    if len(bypasses) != 1 or "//" in bypasses[0].tensor + bypasses[0].by or bypasses[0].by in feeds:
        return None
    tensor, by = bypasses[0].tensor, bypasses[0].by
    if tensor in {o.name for o in model.graph.output}:
        return None
    (value,) = values(model, feeds, [by])
    rest = ModelProto()
    rest.CopyFrom(model)
    for node in rest.graph.node:
        node.output[:] = [f"{o}__unused" if o == tensor else o for o in node.output]
    del rest.graph.value_info[:]
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    rest.graph.input.append(helper.make_tensor_value_info(tensor, kind, [None] * value.ndim))
    return list(session(rest).run(None, feeds | {tensor: value}))


def some_sets(model: ModelProto, seed: int, sizes: Sequence[int]) -> list[list[Bypass]]:
    """Random bypasses, one per tensor."""
    found = [b for b, _ in possible(Links(analysed(model)))]
    rng = np.random.default_rng(seed)
    return [list({found[k].tensor: found[k] for k in rng.permutation(len(found))[:n]}.values()) for n in sizes if found]


@pytest.mark.parametrize("seed", range(4))
def test_random_bypasses_of_a_residual_net(seed: int) -> None:
    for bypasses in some_sets(residual(), seed, (1, 2, 4)):
        prove(residual(), bypasses)


def prove_or_nothing(model: ModelProto, bypasses: Sequence[Bypass]) -> None:
    """A bypass at random may let a mask of -inf through to the outputs: then there is nothing to compare, and that is said."""
    try:
        prove(model, bypasses)
    except VerificationError as problem:
        assert "not finite" in str(problem) or "shape inference refuses" in str(problem)


SMALL = ["hf__gpt2__dynamo", "hf__mamba__dynamo"]


@pytest.mark.parametrize("name", SMALL)
def test_random_bypasses_of_the_own_zoo(name: str) -> None:
    model = load_graph(files()[name])
    for bypasses in some_sets(model, 1, (1, 3)):
        prove_or_nothing(model, bypasses)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", files(SHARED) or [pytest.param("", marks=pytest.mark.skip(reason="no shared/zoo beside this checkout"))]
)
def test_random_bypasses_of_the_larger_zoo(name: str) -> None:
    model = load_graph(files(SHARED)[name])
    for bypasses in some_sets(model, 2, (1, 4)):
        prove_or_nothing(model, bypasses)


def test_the_oracle_sees_a_wrong_bypass() -> None:
    original = load(residual())
    analysis = analysis_of(original, Scope())
    told, done = [Bypass("s2", "s1")], [Bypass("s3", "s2")]
    left = analysis_of(replace(original, proto=bypassed(original.proto, told)), Scope(), analysis.observation.feeds)
    nothing = np.zeros(left.solution.count, bool)
    with pytest.raises(VerificationError, match="differs"):
        proved(left, nothing, Model(tidy(Model(bypassed(original.proto, done)))), 0, original=original, bypasses=told)


def test_old_opsets_have_no_where() -> None:
    prove(net(RESIDUAL, opset=7), [Bypass("s2", "s1")])


# ---------------------------------------------------------------- what has no purpose

X = "float[N,4,6] x"
IDLE = {
    "Identity": "t = Identity(a)",
    "Reshape": "t = Reshape(a, same)",
    "Flatten": "t0 = Flatten<axis=2>(a)\n m = MatMul(t0, w)\n t1 = Flatten<axis=1>(m)\n t = Reshape(t1, back)",
    "Transpose": "t = Transpose<perm=[0,1,2]>(a)",
    "Concat": "t = Concat<axis=1>(a)",
    "Sum": "t = Sum(a)",
    "Slice": "t = Slice(a, zero, large, one)",
    "Pad": "t = Pad(a, none)",
    "Cast": "t = Cast<to=1>(a)",
    "Dropout": "t = Dropout(a)",
    "MaxPool": "t = MaxPool<kernel_shape=[1]>(a)",
    "Expand": "t = Expand(a, ones)",
    "Tile": "t = Tile(a, ones)",
}
BUSY = {
    "Reshape": "t0 = Reshape(a, swapped)\n t = Relu(t0)",
    "Transpose": "t0 = Transpose<perm=[0,2,1]>(a)\n t = Relu(t0)",
    "Slice": "t = Slice(a, end, start, one, minus)",
    "Pad": "t = Pad(a, some)",
    "Cast": "t0 = Cast<to=6>(a)\n t = Cast<to=1>(t0)",
    "MaxPool": "t = MaxPool<kernel_shape=[3], pads=[1,1]>(a)",
    "Concat": "t0 = Concat<axis=1>(a, a)\n t = Relu(t0)",
    "Tile": "t = Tile(a, twos)",
}
CONSTANTS = {
    "same": np.array([0, 4, -1]),
    "back": np.array([-1, 4, 6]),
    "swapped": np.array([0, 6, 4]),
    "zero": np.array([0]),
    "large": np.array([np.iinfo(np.int64).max]),
    "one": np.array([1]),
    "minus": np.array([-1]),
    "start": np.array([-100]),
    "end": np.array([100]),
    "none": np.zeros(6, np.int64),
    "some": np.array([0, 0, 1, 0, 0, -1]),
    "ones": np.ones(3, np.int64),
    "twos": np.array([1, 2, 1]),
    "w": np.eye(6, dtype=np.float32),
}


def pipe(text: str) -> ModelProto:
    used = {
        k: v for k, v in CONSTANTS.items() if k in text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    }
    return net(f"g ({X}) => (float[N,a,b] y) {{ a = Relu(x)\n {text}\n y = Neg(t) }}", constants=used)


@pytest.mark.parametrize("op", IDLE)
def test_idle_nodes_go(op: str) -> None:
    model = pipe(IDLE[op])
    tidied = tidy(Model(model))
    onnx.checker.check_model(tidied, full_check=True)
    assert ops(tidied) == (["Relu", "Neg"] if op != "Flatten" else ["Relu", "Flatten", "MatMul", "Reshape", "Neg"])
    same(model, tidied)


@pytest.mark.parametrize("op", BUSY)
def test_busy_nodes_stay(op: str) -> None:
    model = pipe(BUSY[op])
    assert ops(tidy(Model(model))) == ops(model)


def same(model: ModelProto, other: ModelProto) -> None:
    x = {"x": np.random.default_rng(1).standard_normal((3, 4, 6)).astype(np.float32)}
    assert np.array_equal(session(model).run(None, x)[0], session(other).run(None, x)[0])


def test_a_reshape_that_was_only_observed_to_do_nothing_stays() -> None:
    """[N, M] to [M, N] with N = M in every run is no proof."""
    text = """g (float[N,M] x) => (float[A,B] y) { a = Relu(x)\n s = Shape(a)\n i = Gather(s, turned)\n t = Reshape(a, i)\n y = Neg(t) }"""
    model = net(text, constants={"turned": np.array([1, 0])})
    assert ops(tidy(Model(model))) == ops(model)
    straight = net(text, constants={"turned": np.array([0, 1])})
    same_shape = tidy(Model(straight))
    x = {"x": np.ones((2, 5), np.float32)}
    assert np.array_equal(session(same_shape).run(None, x)[0], session(straight).run(None, x)[0])


def test_tidying_inside_branches() -> None:
    model = net(
        """g (float[N,4] x) => (float[N,4] y) {
        h = Relu(x)
        k = Identity(h)
        o = If (c) <
            then_branch = one () => (float[N,4] p) { a = Identity(k)\n b = Neg(a)\n p = Identity(b) },
            else_branch = other () => (float[N,4] q) { q = Identity(k) }
        >
        y = Neg(o)
        }""",
        constants={"c": np.array(True)},
    )
    tidied = tidy(Model(model))
    onnx.checker.check_model(tidied, full_check=True)
    assert ops(tidied) == ["Relu", "If", "Neg"]
    branch = {a.name: [n.op_type for n in a.g.node] for a in tidied.graph.node[1].attribute}
    assert branch == {"then_branch": ["Neg", "Identity"], "else_branch": ["Identity"]}, "outputs keep their names"
    x = {"x": np.ones((2, 4), np.float32)}
    assert np.array_equal(session(model).run(None, x)[0], session(tidied).run(None, x)[0])


# ---------------------------------------------------------------- repair


def test_the_layer_before_takes_over_what_was_linear(images: Path) -> None:
    """1 x 1 convolutions: s1 = s0 + b a s0 is linear in s0, so the layer that makes s0 can do it all."""
    model = net(
        """g (float[N,3,6,6] x) => (float[N,8,6,6] y) <float[8,3,1,1] stem, float[8] bias, float[8,8,1,1] a, float[8,8,1,1] b,
           float[8,8,1,1] last> {
        s0 = Conv(x, stem, bias)
        c = Conv(s0, a)
        d = Conv(c, b)
        s1 = Add(s0, d)
        r = Relu(s1)
        y = Conv(r, last)
        }"""
    )
    settings = completed(Options(data=images), Budget("macs", 0.5))
    analysis = analysis_of(load(model), settings.scope)
    clock = Clock(lambda stage: None)
    original = whole(analysis, settings, clock)
    subject = reduced(original, [Bypass("s1", "s0")], settings, clock)
    x = {"x": np.load(images)["x"][:8]}
    wanted = session(model).run(None, x)
    assert deviation(wanted, session(bypassed(model, [Bypass("s1", "s0")])).run(None, x)) > 0.1
    assert deviation(wanted, session(subject.analysis.model.proto).run(None, x)) < 1e-3
    assert ("s0", 1) in subject.changed


# ---------------------------------------------------------------- deciding


def test_auto_drops_the_branch_that_does_little(images: Path) -> None:
    result = onnxprune.prune(residual(0.01), Budget("macs", 0.45), data=images, depth="auto", round_to=1)
    plan, depth = result.plan, result.report.depth
    assert Bypass("s2", "s1") in plan.bypassed
    assert {"d2", "s2"} <= set(plan.nodes_removed)
    assert plan.macs.after <= 0.45 * plan.macs.before, "of the original's cost"
    assert result.report.repair.damage.after <= 1.02 * depth.channels_alone
    assert [g for g in plan.groups if g.removed], "channels went as well"
    assert "Identity" not in ops(result.model)
    verdict = onnxprune.verify(residual(0.01), result.model, result.plan, data=images)
    assert verdict.error <= verdict.tolerance


def test_only_layers(images: Path) -> None:
    result = onnxprune.prune(residual(0.01), Budget("macs", 0.7), data=images, depth="only")
    assert result.plan.groups == ()
    assert result.plan.bypassed == (Bypass("s2", "s1"),)
    before, after = result.plan.macs
    assert after == before - 2 * 2 * 36 * 8 * 8 * 9
    onnxprune.verify(residual(0.01), result.model, result.plan)


def test_a_target_that_layers_alone_cannot_meet(images: Path) -> None:
    with pytest.raises(TargetNotReachableError, match=r"at most down to 0\.\d+ of the original by layers"):
        onnxprune.prune(residual(), Budget("macs", 0.001), data=images, depth="only")


def test_excluded_nodes_stay(images: Path) -> None:
    options: dict[str, Any] = {"data": images, "depth": "only", "exclude": ("d2",)}
    result = onnxprune.prune(residual(0.01), Budget("macs", 0.7), **options)
    assert "d2" in set(node_keys(result.model.graph))


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    [
        (Budget("ratio", 0.5), {"depth": "auto"}, "--depth needs a target of cost"),
        (Budget("macs", 0.5), {"depth": "only", "recover": "none"}, "--depth needs calibration"),
        (Budget("macs", 0.5), {"depth": "deep"}, "Unknown --depth 'deep'"),
    ],
)
def test_refusals(budget: Budget, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        onnxprune.prune(residual(), budget, **options)


# ---------------------------------------------------------------- plans


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A folder with a model, what is left of it, and the plan."""
    folder = tmp_path_factory.mktemp("run")
    onnx.save(residual(0.01), folder / "model.onnx")
    onnxprune.prune(
        folder / "model.onnx",
        Budget("macs", 0.5),
        output=folder / "small.onnx",
        plan=folder / "plan.json",
        report=folder / "report.md",
        data=images,
        depth="auto",
        round_to=1,
        mix=False,  # in principal directions, channels alone are as good here
    )
    return folder


def test_a_replay_has_the_same_bytes(run: Path, images: Path) -> None:
    again = onnxprune.prune(
        run / "model.onnx", apply=run / "plan.json", output=run / "again.onnx", plan=run / "again.json", data=images
    )
    assert (run / "again.onnx").read_bytes() == (run / "small.onnx").read_bytes()
    assert (run / "again.json").read_text() == (run / "plan.json").read_text()
    assert again.report.depth.bypassed[0].tensor == "s2"


def test_the_report_tells(run: Path) -> None:
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "## Layers and nodes" in text and "| s2 | s1 | 4 |" in text and "Channels alone, at the same cost" in text
    assert "Looked at, and not bypassed" in text


def test_verify_reads_the_bypass(run: Path, images: Path) -> None:
    found = onnxprune.verify(run / "model.onnx", run / "small.onnx", run / "plan.json", data=images)
    assert found.error <= found.tolerance
    plan = json.loads((run / "plan.json").read_text())
    other = plan | {"bypassed": [{"tensor": "s3", "by": "s2"}]}
    with pytest.raises((BadInputError, VerificationError)):
        onnxprune.verify(run / "model.onnx", run / "small.onnx", onnxprune.Plan.from_json(json.dumps(other)))


@pytest.mark.parametrize(
    ("bypassed_", "words"),
    [
        ([{"tensor": "nobody", "by": "s1"}], "no node makes it"),
        ([{"tensor": "x", "by": "s1"}], "no node makes it"),
        ([{"tensor": "s2", "by": "nobody"}], "no activation"),
        ([{"tensor": "s2", "by": "a1"}], "no activation"),
        ([{"tensor": "s1", "by": "s2"}], "is not computed from"),
        ([{"tensor": "s2", "by": "s2"}], "is not computed from"),
        ([{"tensor": "p", "by": "s2"}], "has shape"),
        ([{"tensor": "s2", "by": "s1"}, {"tensor": "s2", "by": "s0"}], "twice"),
        ([{"tensor": "s2"}], r"'bypassed\[0\]' lacks 'by'"),
        ({"s2": "s1"}, "'bypassed' is not a list"),
        ([["s2", "s1"]], r"'bypassed\[0\]' is not an object"),
    ],
)
def test_no_plan_is_trusted(run: Path, bypassed_: Any, words: str) -> None:
    document = json.loads((run / "plan.json").read_text()) | {"bypassed": bypassed_}
    (run / "bad.json").write_text(json.dumps(document))
    with pytest.raises(BadInputError, match=words):
        onnxprune.prune(run / "model.onnx", apply=run / "bad.json")
    with pytest.raises(BadInputError, match=words):
        onnxprune.verify(run / "model.onnx", run / "small.onnx", run / "bad.json")


def test_a_tensor_of_another_branch_is_refused() -> None:
    analysis = analysed(branching())
    with pytest.raises(BadInputError, match="another branch"):
        checked(analysis, [Bypass("o", "o.then_branch//a")])


def test_types_must_agree() -> None:
    model = net("g (float[N,4] x) => (double[N,4] y) { a = Relu(x)\n b = Cast<to=11>(a)\n y = Neg(b) }")
    assert Links(analysed(model)).refusal(Bypass("b", "a")) == "it and 'a' are not floats of one type"
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE


def test_plans_from_before_load(run: Path, tmp_path: Path) -> None:
    """A plan without the new fields, as an older version wrote it."""
    result = onnxprune.prune(run / "model.onnx", Budget("ratio", 0.5), plan=tmp_path / "old.json", round_to=1)
    document = json.loads((tmp_path / "old.json").read_text())
    del document["bypassed"], document["settings"]["depth"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    again = onnxprune.prune(run / "model.onnx", apply=tmp_path / "old.json")
    assert again.model.SerializeToString() == result.model.SerializeToString()


# ---------------------------------------------------------------- the small model of the repository


def test_digits_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.choose.layers.LOOKED", 2)
    monkeypatch.setattr("onnxprune.choose.channels.AUGMENTED", 32)
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    call = ["prune", str(DIGITS), "-o", str(out), "--data", str(DATA), "--plan", str(plan), "--samples", "32"]
    assert main([*call, "--macs", "0.7", "--depth", "only"], standalone_mode=False) is None
    told = capsys.readouterr().out
    assert "layers    " in told and "is now" in told
    assert main(["verify", str(DIGITS), str(out), "--plan", str(plan)], standalone_mode=False) is None
    with pytest.raises(SystemExit) as stopped:
        main([*call, "--macs", "0.01", "--depth", "only"], standalone_mode=False)
    assert stopped.value.code == 3


def test_digits_auto_is_no_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.choose.layers.TRIALS", 1)
    monkeypatch.setattr("onnxprune.choose.layers.LOOKED", 2)
    result = onnxprune.prune(DIGITS, Budget("macs", 0.4), data=DATA, depth="auto", benchmark=False)
    depth = result.report.depth
    assert result.report.repair.damage.after <= 1.02 * depth.channels_alone * 1.001
    assert depth.declined or depth.bypassed
    before, after = result.plan.macs
    assert after <= 0.4 * before


def test_a_model_without_weights_is_refused_for_what_it_is() -> None:
    model = net("g (float[N,8] x) => (float[N,8] y) { h = Relu(x)  y = Relu(h) }")
    with pytest.raises((TargetNotReachableError, onnxprune.NothingPrunableError)):
        onnxprune.prune(model, Budget("params", 0.7), depth="auto", benchmark=False)
