"""Safeguards that a result hides as long as all goes well: what each is for fails here without it (`python -m tests.mutants`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxprune
from onnxprune import BadInputError, Budget, Plan, VerificationError, runtime
from onnxprune.analyse.feeds import samples_of
from onnxprune.analyse.observe import analysis_of
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.judging import judged_by
from onnxprune.choose import channels
from onnxprune.choose.channels import keeps_size, repaired
from onnxprune.choose.costs import CostModel
from onnxprune.choose.options import Options, completed
from onnxprune.choose.sensitivity import judge
from onnxprune.choose.spend import spend
from onnxprune.clock import Clock
from onnxprune.cut.plan import removed_by
from onnxprune.cut.rewrite import rewrite
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.model.files import staged
from onnxprune.model.load import load
from onnxprune.model.loaded import Model
from onnxprune.proof.prove import check_well_formed
from onnxprune.repair.fits import Repair
from onnxprune.repair.least_squares import Repaired, compensate
from tests import mutants
from tests.oracle import net, prune

MLP = """g (float[N,8] x) => (float[N,4] y) <float[8,24] a, float[24,24] b, float[24,4] c> {
    p = MatMul(x, a)
    q = Relu(p)
    r = MatMul(q, b)
    s = Relu(r)
    y = MatMul(s, c)
}"""


def test_every_mutant_is_anchored() -> None:
    """The text that a mutant replaces is in its file, once; and so is the test that is to kill it."""
    assert len({m.name for m in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 20
    assert [problem for m in mutants.MUTANTS if (problem := mutants.misplaced(m))] == []


# ---------------------------------------------------------------- what a target means


def test_size_counts_what_only_bytes_have() -> None:
    """A table of integers cannot shrink and has no parameters: the weights must shrink the more."""
    text = MLP.replace("float[N,8] x)", "float[N,8] x, int64[N,256] t)").replace(
        "float[N,4] y)", "float[N,4] y, int64[N,256] u)"
    )
    model = net(text.replace("c> {", "c, int64[1,256] table> {\n    u = Add(t, table)"))
    result = onnxprune.prune(model, Budget("size", 0.6), recover="none", round_to=1, benchmark=False)
    before, after = (sum(len(t.raw_data) for t in m.graph.initializer) for m in (model, result.model))
    assert 0.5 < after / before <= 0.6
    sizes = [sum(int(np.prod(t.dims)) for t in m.graph.initializer if t.data_type == 1) for m in (model, result.model)]
    assert sizes[1] / sizes[0] < 0.45, "the weights alone pay for all"


@pytest.mark.parametrize("target", [0.3, 0.45, 0.62, 0.8])
def test_no_group_could_keep_more(target: float) -> None:
    """Of any group, one unit more would break the target: nothing is cut that it does not need."""
    model = net(MLP.replace("24", "40"), seed=3)
    result = onnxprune.prune(model, Budget("macs", target), round_to=1, benchmark=False, seed=1)
    widths = [t.dims[0] for t in result.model.graph.initializer][1:]
    macs = lambda p, q: 8 * p + p * q + 4 * q  # noqa: E731
    most = target * macs(40, 40)
    assert macs(*widths) <= most
    assert macs(widths[0] + 1, widths[1]) > most and macs(widths[0], widths[1] + 1) > most


@pytest.mark.parametrize("groups", [3, 8, 20])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_cut_that_a_peak_does_not_need(groups: int, seed: int) -> None:
    """Most of what goes saves nothing where the largest pair of neighbours is what counts: it has to be given back."""
    rng = np.random.default_rng(seed)
    units = rng.integers(8, 40, groups)
    curves = [s * np.linspace(0, 1, n) ** 2 for s, n in zip(rng.uniform(0.2, 3, groups), units, strict=True)]

    def cost(counts: Sequence[int]) -> float:
        left = [int(n) - k for n, k in zip(units, counts, strict=True)]
        return float(max(p * q for p, q in pairwise(left)) + sum(left))

    target = rng.uniform(0.3, 0.9) * cost([0] * groups)
    found = spend([range(n) for n in units], curves, cost, target)
    assert found.is_met and cost(found.counts) <= target < cost([0] * groups)
    wider = [[*found.counts[:k], n - 1, *found.counts[k + 1 :]] for k, n in enumerate(found.counts) if n]
    assert wider and all(cost(counts) > target for counts in wider)


def test_made_up_inputs_do_not_let_one_group_pay_for_all(tmp_path: Path) -> None:
    """Units that only inputs far off reach seem to be worth nothing; samples of the user's may say so, made-up ones may not."""
    model = net(
        """g (float[N,8] x) => (float[N,4] y) <float[8,40] a, float[40] far, float[40,4] b, float[8,40] c, float[40,4] d> {
            p = MatMul(x, a)
            p1 = Add(p, far)
            q = Relu(p1)
            r = MatMul(q, b)
            s = MatMul(x, c)
            t = Relu(s)
            u = MatMul(t, d)
            y = Add(r, u)
        }""",
        constants={"far": np.full(40, -1e3, np.float32)},
    )
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((256, 8)).astype(np.float32))

    def kept(**options: Any) -> tuple[int, int]:
        result = onnxprune.prune(model, Budget("macs", 0.6), round_to=1, benchmark=False, **options)
        sizes = {t.name: t.dims for t in result.model.graph.initializer}
        return sizes["a"][1], sizes["c"][1]

    asleep, awake = kept(data=tmp_path / "x.npz")
    assert asleep <= 8 and awake == 40
    asleep, awake = kept()
    assert asleep > 8 and awake < 40


# ---------------------------------------------------------------- the repair


def a_repair() -> tuple[Analysis, Calibration, Bools, Options]:
    """A small model, calibrated, with what to remove of it."""
    model, rng = net(MLP, seed=2), np.random.default_rng(0)
    settings = completed(Options(round_to=1), Budget("macs", 0.5))
    analysis = analysis_of(load(model), settings)
    samples = samples_of(
        [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(64)], runtime.graph_inputs(model)
    )
    calibration = calibrate(analysis, samples, judged_by(analysis.model, keeps_size(analysis)))
    return analysis, calibration, removed_by(prune(model, 0.25, importance="l2").plan, analysis), settings


def test_a_repair_that_does_not_help_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's fit may be better, and the model's outputs worse: the model is what counts."""
    analysis, calibration, removed, settings = a_repair()
    cut = rewrite(analysis, removed)

    def kept() -> tuple[ModelProto, Repair]:
        return repaired(analysis, removed, cut, calibration, settings, Clock(lambda stage: None))

    fitted, repair = kept()
    assert repair.changed and repair.after is not None
    assert repair.after == judge(calibration, Model(fitted)) < judge(calibration, Model(cut))

    def overdone(*given: Any, **options: Any) -> Repaired:
        found = compensate(*given, **options)
        return replace(found, model=scaled(found.model, "c", 3.0))

    monkeypatch.setattr(channels, "compensate", overdone)
    left, repair = kept()
    assert left.SerializeToString() == cut.SerializeToString() and repair.changed == ()

    def only_biases_help(*given: Any, **options: Any) -> Repaired:
        if given[4] == "lsq":
            return overdone(*given, **options)
        found = compensate(*given[:4], "lsq", **options)
        return replace(found, repair=replace(found.repair, recover=given[4]))

    monkeypatch.setattr(channels, "compensate", only_biases_help)
    left, repair = kept()
    assert repair.recover == "bias" and repair.changed and repair.before is not None
    assert repair.after == judge(calibration, Model(left)) < repair.before


def test_a_repair_that_is_sure_of_itself_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few sure mistakes weigh more in a divergence than a model that knows nothing; classes tell them apart."""
    analysis, calibration, removed, settings = a_repair()
    cut = scaled(rewrite(analysis, removed), "c", -0.01)  # all classes the other way round, and not sure of any

    def sure(*given: Any, **options: Any) -> Repaired:
        found = compensate(*given, **options)
        return replace(found, model=scaled(found.model, "c", 30.0))

    monkeypatch.setattr(channels, "compensate", sure)
    _, repair = repaired(analysis, removed, cut, calibration, settings, Clock(lambda stage: None))
    assert repair.changed and repair.before is not None and repair.after is not None and repair.after > repair.before


def test_samples_to_judge_with_are_not_fitted_on() -> None:
    feeds = [{"x": np.full((1, 8), k, np.float32)} for k in range(32)]
    samples = samples_of(feeds, runtime.graph_inputs(net(MLP)))
    assert 0 < sum(samples.held) < len(samples.held) / 2


# ---------------------------------------------------------------- the proof


def copied(model: ModelProto, change: Callable[[ModelProto], Any]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    change(copy)
    return copy


def scaled(model: ModelProto, name: str, factor: float) -> ModelProto:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    changed = numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), name)
    return copied(model, lambda m: next(t for t in m.graph.initializer if t.name == name).CopyFrom(changed))


def wrong_for_batch(model: ModelProto, size: int) -> ModelProto:
    """The model with an output that is twice as large where the batch has this size."""

    def change(m: ModelProto) -> None:
        m.graph.node[-1].output[0] = "right"
        constants = {"first": np.array([0]), "size": np.array([size]), "two": np.float32([2]), "one": np.float32([1])}
        m.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
        steps = [
            "Shape x -> shape",
            "Gather shape first -> n",
            "Equal n size -> same",
            "Where same two one -> factor",
            "Mul right factor -> y",
        ]
        for step in steps:
            (op, *inputs), output = (side.split() for side in step.split(" -> "))
            m.graph.node.append(helper.make_node(op, inputs, output))

    return copied(model, change)


def test_the_proof_is_at_two_sizes_of_dynamic_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(MLP)
    result = prune(model, 0.5)
    sizes = [f["x"].shape[0] for f in runtime.find_feeds(load(model))]
    assert len(set(sizes)) == 2
    with pytest.raises(VerificationError, match="not what the plan makes of the original"):
        onnxprune.verify(model, wrong_for_batch(result.model, 999), result.plan)
    monkeypatch.setattr("onnxprune.api.verify.check_refit", lambda *arguments: None)  # what running it shows, alone
    onnxprune.verify(model, wrong_for_batch(result.model, 999), result.plan)
    for size in sizes:
        with pytest.raises(VerificationError, match="differs from the masked original"):
            onnxprune.verify(model, wrong_for_batch(result.model, size), result.plan)


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "M"), "inputs are not those"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[0], "dim_param", "M"), "outputs are not those"),
        (lambda m: m.metadata_props.add(key="author", value="somebody"), "metadata is not that"),
        (lambda m: setattr(m.opset_import[0], "version", 18), "opsets are not those"),
    ],
    ids=["input", "output", "metadata", "opset"],
)
def test_the_proof_is_of_the_same_interface(change: Callable[[ModelProto], Any], what: str) -> None:
    model = net(MLP)
    result = prune(model, 0.5)
    with pytest.raises(VerificationError, match=what):
        onnxprune.verify(model, copied(result.model, change), result.plan)


def test_a_weight_that_is_one_percent_off_is_found() -> None:
    model = net(MLP)
    result = prune(model, 0.5)
    onnxprune.verify(model, result.model, result.plan)
    with pytest.raises(VerificationError, match="differs from the masked original"):
        onnxprune.verify(model, scaled(result.model, "c", 1.01), result.plan)


def test_what_the_checker_refuses_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(MLP)
    ours = model.SerializeToString()

    def checker(proto: ModelProto, *rest: Any, **more: Any) -> None:
        if proto.SerializeToString() != ours:
            raise onnx.checker.ValidationError("made up")

    monkeypatch.setattr(onnx.checker, "check_model", checker)
    with pytest.raises(VerificationError, match=r"ONNX's checker refuses the result: made up"):
        prune(model, 0.5, output=tmp_path / "small.onnx", plan=tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


def test_the_checker_judges_a_result_by_its_original() -> None:
    good = net(MLP)
    bad = copied(good, lambda m: setattr(m.graph, "name", ""))
    check_well_formed(Model(good), Model(good))
    check_well_formed(Model(bad), Model(bad))
    with pytest.raises(VerificationError, match="ONNX's checker refuses the result"):
        check_well_formed(Model(good), Model(bad))


def test_nan_where_there_was_a_number_is_found() -> None:
    model = net(MLP)
    result = prune(model, 0.5)
    with pytest.raises(VerificationError, match="differs from the masked original"):
        onnxprune.verify(
            model, copied(result.model, lambda m: m.graph.node[3].__setattr__("op_type", "Sqrt")), result.plan
        )


# ---------------------------------------------------------------- plans and files


def edited(plan: Plan, change: Callable[[dict[str, Any]], None]) -> Plan:
    document = json.loads(plan.to_json())
    change(document)
    return Plan.from_json(json.dumps(document), "the plan")


def test_a_plan_is_of_one_file_and_says_what_it_removes() -> None:
    model = net(MLP)
    result = prune(model, 0.5)
    other = edited(result.plan, lambda d: d.update(model_sha256="0" * 64))
    with pytest.raises(BadInputError, match="was made for another file"):
        onnxprune.verify(model, result.model, other)
    moved = edited(result.plan, lambda d: d["groups"][0]["members"][0]["removed"].reverse())
    with pytest.raises(BadInputError, match="lists members that do not belong"):
        onnxprune.verify(model, result.model, moved)


def test_texts_move_to_their_places_at_the_end(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("old")
    with pytest.raises(RuntimeError, match="on the way"), staged({old: "changed", new: "new"}):
        assert old.read_text() == "old" and not new.exists()
        raise RuntimeError("on the way")
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]
    with staged({old: "changed", new: "new"}):
        pass
    assert old.read_text() == "changed" and new.read_text() == "new"


# ---------------------------------------------------------------- inputs that a model accepts

SEQUENCE = "g (float[N,T,8] x) => (float[N,T,8] y) <float[%d,8] table> { y = Add(x, table) }"
IMAGE = """g (float[N,1,H,W] x) => (float[N,4] y) <float[%d,4] w> {
    f = Flatten(x)
    y = MatMul(f, w)
}"""
TWO = """g (float[N,T,8] x, float[N,S,8] z) => (float[N,3,8] y, float[N,3,8] u) <float[3,16] a, float[3,64] b> {
    y = MatMul(a, x)
    u = MatMul(b, z)
}"""


@pytest.mark.parametrize(
    "text, sizes",
    [
        (SEQUENCE % 16, {"x": (16, 8)}),
        (SEQUENCE % 48, {"x": (48, 8)}),
        (SEQUENCE % 576, {"x": (576, 8)}),
        (IMAGE % 64**2, {"x": (1, 64, 64)}),
        (IMAGE % 224**2, {"x": (1, 224, 224)}),
        (TWO, {"x": (16, 8), "z": (64, 8)}),
    ],
    ids=["16", "48", "576", "64 x 64", "224 x 224", "two lengths"],
)
def test_the_one_size_that_works_is_found(text: str, sizes: dict[str, tuple[int, ...]]) -> None:
    for feeds in runtime.find_feeds(load(net(text))):
        assert {name: array.shape[1:] for name, array in feeds.items()} == sizes


# ---------------------------------------------------------------- costs are those of the file


@pytest.mark.parametrize("metric", ["params", "size"])
def test_costs_are_those_of_the_rewritten_file(metric: str) -> None:
    model = net(
        MLP.replace("float[24,4] c", "double[24,4] c")
        .replace("y = MatMul", "s2 = Cast<to=11>(s)\n    y = MatMul")
        .replace("(s, c)", "(s2, c)")
        .replace("float[N,4] y", "double[N,4] y")
    )
    analysis = analysis_of(load(model), Options())
    measure = CostModel(analysis).of(metric).total
    removed = removed_by(prune(model, 0.5).plan, analysis)
    each = {"params": lambda t: int(np.prod(t.dims)), "size": lambda t: len(t.raw_data)}[metric]
    total = partial(sum)
    assert measure(None) == total(each(t) for t in model.graph.initializer)
    assert measure(removed) == total(each(t) for t in rewrite(analysis, removed).graph.initializer)
