"""`--free`: interfaces that may shrink. The oracle is numpy: the original with zeros, its outputs with the removed positions cut out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, helper

import onnxprune
from onnxprune import BadInputError, Budget, VerificationError
from onnxprune.cli import main
from tests.oracle import TOLERANCE, deviation, feeds, masked, net, prune, reach, session

STEP = """g (float[B,L,16] x, float[B,4,P,8] past_key_values_0_key, float[B,4,P,8] past_key_values_0_value)
    => (float[B,L,16] y, float[B,4,T,8] present_0_key, float[B,4,T,8] present_0_value)
    <float[16,32] wq, float[16,32] wk, float[16,32] wv, float[32,16] wo, int64[4] apart, int64[3] whole, float scale> {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    q4 = Reshape(q, apart)
    k4 = Reshape(k, apart)
    v4 = Reshape(v, apart)
    qh = Transpose<perm=[0,2,1,3]>(q4)
    kh = Transpose<perm=[0,2,1,3]>(k4)
    vh = Transpose<perm=[0,2,1,3]>(v4)
    present_0_key = Concat<axis=2>(past_key_values_0_key, kh)
    present_0_value = Concat<axis=2>(past_key_values_0_value, vh)
    kt = Transpose<perm=[0,1,3,2]>(present_0_key)
    raw = MatMul(qh, kt)
    scores = Mul(raw, scale)
    p = Softmax<axis=-1>(scores)
    c = MatMul(p, present_0_value)
    ct = Transpose<perm=[0,2,1,3]>(c)
    joined = Reshape(ct, whole)
    y = MatMul(joined, wo)
}"""
SHAPES = {"apart": np.array([0, 0, 4, 8]), "whole": np.array([0, 0, 32]), "scale": np.array(0.35, np.float32)}
CACHE = ("past_key_values_*", "present_*")
FEATURES = """g (float[N,3,8,8] x) => (float[N,12] embedding, float[N,5] y)
    <float[16,3,3,3] w, float[16,12] e, float[12] b, float[12,5] h> {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    m = GlobalAveragePool(r)
    f = Flatten(m)
    z = MatMul(f, e)
    embedding = Add(z, b)
    s = Sigmoid(embedding)
    y = MatMul(s, h)
}"""
LSTM = """g (float[T,B,6] x, float[1,B,10] h0, float[1,B,10] c0) => (float[T,B,4] y, float[1,B,10] hn, float[1,B,10] cn)
    <float[1,40,6] w, float[1,40,10] r, float[1,80] b, float[10,4] v> {
    s, hn, cn = LSTM<hidden_size=10>(x, w, r, b, "", h0, c0)
    flat = Squeeze(s, one)
    y = MatMul(flat, v)
}"""


def step() -> ModelProto:
    return net(STEP, constants=SHAPES)


def features() -> ModelProto:
    return net(FEATURES)


def lstm() -> ModelProto:
    model = net(LSTM, constants={"one": np.array([1]), "nil": np.zeros(1)})
    model.graph.node[0].input[4] = ""  # no lengths
    del model.graph.initializer[-1]
    return model


def lost(plan: onnxprune.Plan, direction: str) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
    found: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    for port in plan.interface:
        if port.direction == direction:
            found.setdefault(port.tensor, []).append((port.axis, port.removed))
    return found


def cut(arrays: dict[str, Any], gone: dict[str, list[tuple[int, tuple[int, ...]]]]) -> dict[str, Any]:
    result = dict(arrays)
    for name, axes in gone.items():
        for axis, positions in axes:
            result[name] = np.delete(result[name], positions, axis=axis)
    return result


def zeroed(arrays: dict[str, Any], gone: dict[str, list[tuple[int, tuple[int, ...]]]]) -> dict[str, Any]:
    result = {name: array.copy() for name, array in arrays.items()}
    for name, axes in gone.items():
        for axis, positions in axes:
            np.moveaxis(result[name], axis, 0)[list(positions)] = 0
    return result


def run(model: ModelProto, given: dict[str, Any]) -> dict[str, Any]:
    opened = session(model)
    return dict(zip([o.name for o in opened.get_outputs()], opened.run(None, given), strict=True))


def check_equal(model: ModelProto, result: onnxprune.PruneResult) -> None:
    """The pruned model on cut inputs gives what the masked original gives, cut."""
    onnx.checker.check_model(result.model, full_check=True)
    ins, outs = lost(result.plan, "input"), lost(result.plan, "output")
    for seed, sizes in enumerate(((2, 3, 5, 7), (1, 4, 2, 6))):
        given = feeds(model, seed, sizes)
        wanted = cut(run(masked(model, result.plan, given), zeroed(given, ins)), outs)
        found = run(result.model, cut(given, ins))
        assert deviation(list(wanted.values()), list(found.values())) <= TOLERANCE


def dims(model: ModelProto, name: str) -> list[int | str]:
    values = {v.name: v for v in (*model.graph.input, *model.graph.output)}
    return [d.dim_value or d.dim_param for d in values[name].type.tensor_type.shape.dim]


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_the_cache_of_a_decoder_step(ratio: float) -> None:
    model = step()
    result = prune(model, ratio, free=CACHE)
    check_equal(model, result)
    for kind in ("key", "value"):
        before, after = f"past_key_values_0_{kind}", f"present_0_{kind}"
        assert lost(result.plan, "input")[before] == lost(result.plan, "output")[after]
        assert dims(result.model, before)[0::2] == ["B", "P"] and dims(result.model, after)[0::2] == ["B", "T"]
        assert dims(result.model, before)[1::2] == dims(result.model, after)[1::2] != [4, 8]


def test_what_one_step_gives_is_fed_to_the_next() -> None:
    model = step()
    result = prune(model, 0.5, free=CACHE)
    ins = lost(result.plan, "input")
    first, second = feeds(model, 0, (2, 3, 5, 7)), feeds(model, 1, (2, 3, 5, 7))
    reference = masked(model, result.plan, first)
    for kind in ("key", "value"):
        first[f"past_key_values_0_{kind}"] = np.zeros((2, 4, 0, 8), np.float32)
    once, small = run(reference, zeroed(first, ins)), run(result.model, cut(first, ins))
    for kind in ("key", "value"):
        second[f"past_key_values_0_{kind}"] = once[f"present_0_{kind}"]
    again = {**cut(second, ins), **{n: small[n.replace("past_key_values", "present")] for n in ins}}
    assert again["past_key_values_0_key"].shape[2] == 3
    assert deviation([run(reference, zeroed(second, ins))["y"]], [run(result.model, again)["y"]]) <= TOLERANCE


def test_nothing_of_the_interface_changes_unasked() -> None:
    for model, units in ((step(), ([], [])), (features(), ([16], [])), (lstm(), ([], []))):
        assert reach(model) == units
    result = prune(features(), 0.5)
    assert result.plan.interface == () and "interface" not in result.plan.to_dict()
    assert [list(dims(result.model, n)) for n in ("x", "embedding", "y")] == [["N", 3, 8, 8], ["N", 12], ["N", 5]]


def test_an_embedding() -> None:
    model = features()
    result = prune(model, 0.5, free="embedding")
    check_equal(model, result)
    assert dims(result.model, "embedding") == ["N", 6] and dims(result.model, "y") == ["N", 5]


@pytest.mark.parametrize("free", [("h0", "c0", "hn", "cn"), ("h0=hn", "c0=cn")])
def test_the_state_of_an_lstm(free: tuple[str, ...]) -> None:
    model = lstm()
    result = prune(model, 0.5, free=free)
    check_equal(model, result)
    ins, outs = lost(result.plan, "input"), lost(result.plan, "output")
    assert len(ins["h0"][0][1]) == 5 and ins["h0"] == outs["hn"] == ins["c0"] == outs["cn"]


# ---------------------------------------------------------------- plans


def test_a_plan_replays_and_is_verified(tmp_path: Path) -> None:
    model, other = step(), tmp_path / "again.onnx"
    result = prune(model, 0.5, free=CACHE)
    result.save(tmp_path / "small.onnx")
    text = result.plan.to_json()
    plan = onnxprune.Plan.from_json(text)
    assert plan == result.plan and plan.to_json() == text
    again = onnxprune.prune(model, apply=plan, output=other, recover="none", benchmark=False)
    assert other.read_bytes() == (tmp_path / "small.onnx").read_bytes() and again.plan == plan
    assert onnxprune.verify(model, tmp_path / "small.onnx", plan).error <= TOLERANCE
    members = {(m.tensor, m.axis): m.removed for g in plan.groups for m in g.members if m.node is None}
    for port in plan.interface:
        assert members[port.tensor, port.axis] == port.removed and port.after == port.before - len(port.removed)


def test_another_interface_than_the_plans_is_refused() -> None:
    model = features()
    result = prune(model, 0.5, free="embedding")
    wrong = ModelProto()
    wrong.CopyFrom(result.model)
    wrong.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 12
    with pytest.raises(VerificationError, match="outputs are not those of the original, shrunk as the plan says"):
        onnxprune.verify(model, wrong, result.plan)
    wrong.CopyFrom(result.model)
    wrong.metadata_props.add(key="onnxprune.interface", value="[]")
    with pytest.raises(VerificationError, match="is not what the plan makes"):
        onnxprune.verify(model, wrong, result.plan)
    document = result.plan.to_dict()
    document["interface"][0]["removed"][0] ^= 1
    with pytest.raises(BadInputError, match="inputs and outputs what does not follow"):
        onnxprune.verify(model, result.model, onnxprune.Plan.from_json(json.dumps(document)))
    document = result.plan.to_dict()
    document["settings"]["free"] = []
    with pytest.raises(BadInputError, match="units"):
        onnxprune.verify(model, result.model, onnxprune.Plan.from_json(json.dumps(document)))


def test_two_swapped_positions_of_an_output_are_seen() -> None:
    model = features()
    result = prune(model, 0.5, free="embedding")
    wrong = ModelProto()
    wrong.CopyFrom(result.model)
    node = next(n for n in wrong.graph.node if n.output[0] == "embedding")
    node.output[0] = "inner"
    for other in wrong.graph.node:
        other.input[:] = ["inner" if x == "embedding" else x for x in other.input]
    order = helper.make_tensor("order", onnx.TensorProto.INT64, [6], [1, 0, 2, 3, 4, 5])
    wrong.graph.initializer.append(order)
    wrong.graph.node.append(helper.make_node("Gather", ["inner", "order"], ["embedding"], axis=1))
    with pytest.raises(VerificationError, match="differs from the masked original"):
        onnxprune.verify(model, wrong, result.plan)


# ---------------------------------------------------------------- with calibration


def samples(path: Path, model: ModelProto, count: int = 64) -> Path:
    np.savez(path, **feeds(model, 3, (count, 3, 5, 7)))
    return path


@pytest.mark.parametrize("options", [{}, {"depth": "auto"}, {"mix": False, "recover": "bias"}])
def test_calibrated_and_repaired(tmp_path: Path, options: dict[str, Any]) -> None:
    model = step()
    data = samples(tmp_path / "x.npz", model)
    result = onnxprune.prune(
        model, Budget("macs", 0.6), free=CACHE, data=data, round_to=1, plan=tmp_path / "p.json", **options
    )
    assert result.report.interface == result.plan.interface != ()
    assert result.report.repair is not None and result.report.latency_ms is not None
    assert not result.model.metadata_props
    assert onnxprune.verify(model, result.model, tmp_path / "p.json", data=data).error <= TOLERANCE
    assert onnxprune.verify(model, result.model, tmp_path / "p.json").error <= TOLERANCE
    ins, outs = lost(result.plan, "input"), lost(result.plan, "output")
    given = feeds(model, 5, (2, 3, 5, 7))
    found, wanted = run(result.model, cut(given, ins)), cut(run(model, given), outs)
    assert [found[n].shape for n in wanted] == [wanted[n].shape for n in wanted]


def test_a_freed_output_is_not_free_of_charge(tmp_path: Path) -> None:
    """What leaves an embedding counts as damage: as if the positions were zero there."""
    text = FEATURES.replace(", float[N,5] y)", ")").replace(", float[12,5] h>", ">")
    model = net(text.split("s =")[0] + "}")
    data = samples(tmp_path / "x.npz", model)
    result = onnxprune.prune(model, Budget("ratio", 0.5), free="embedding", data=data, round_to=1)
    repair = result.report.repair
    assert repair is not None and result.plan.interface
    assert repair.damage.after > 0.01
