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
from onnxprune.analyse.freed import freed
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


# ---------------------------------------------------------------- everything else that runs both models


MERGED = """g (float[B,S,16] x, float[B,2,P,6] past_key, bool[1] use_cache) => (float[B,S,5] y, float[B,2,T,6] present_key)
    <float[16,12] wk, float[16,12] wv, float[12,5] wo, int64[4] apart, int64[3] whole> {
    y, present_key = If(use_cache)<
        then_branch = t () => (y1, k2) {
            k = MatMul(x, wk)
            k4 = Reshape(k, apart)
            kh = Transpose<perm=[0,2,1,3]>(k4)
            k2 = Concat<axis=2>(past_key, kh)
            SAME
            y1 = MatMul(j, wo)
        },
        else_branch = e () => (y2, k3) {
            k = MatMul(x, wk)
            k4 = Reshape(k, apart)
            kh = Transpose<perm=[0,2,1,3]>(k4)
            k3 = Identity(kh)
            SAME
            y2 = MatMul(j, wo)
        }>
}"""
ATTEND = """v = MatMul(x, wv)
            v4 = Reshape(v, apart)
            vh = Transpose<perm=[0,2,1,3]>(v4)
            total = ReduceMean<axes=[2], keepdims=1>(KEYS)
            g = Mul(vh, total)
            gt = Transpose<perm=[0,2,1,3]>(g)
            j = Reshape(gt, whole)"""


def test_a_decoder_with_and_without_a_past(tmp_path: Path) -> None:
    """One branch gives a longer cache than the other; along the axes that shrink they agree."""
    parts = MERGED.split("SAME")
    text = parts[0] + ATTEND.replace("KEYS", "k2") + parts[1] + ATTEND.replace("KEYS", "k3") + parts[2]
    model = net(text, constants={"apart": np.array([0, 0, 2, 6]), "whole": np.array([0, 0, 12])})
    result = prune(model, 0.5, free=("past_key", "present_key"))
    ins, outs = lost(result.plan, "input"), lost(result.plan, "output")
    assert ins["past_key"] == outs["present_key"]
    for taken in (True, False):
        given = feeds(model, 0, (2, 3, 5, 7)) | {"use_cache": np.array([taken])}
        np.savez(tmp_path / "x.npz", **given)
        assert onnxprune.verify(model, result.model, result.plan, data=tmp_path / "x.npz").error <= TOLERANCE
        assert run(result.model, cut(given, ins))["present_key"].shape[1::2] == (1, 3)


def test_timing_feeds_the_smaller_model(tmp_path: Path) -> None:
    model = step()
    rows = onnxprune.bench([model, prune(model, 0.5, free=CACHE).model], runs=3)
    assert len(rows) == 2 and all(row["median_ms"] > 0 for row in rows)


def test_quantized_beside(tmp_path: Path) -> None:
    model = features()
    data = samples(tmp_path / "x.npz", model)
    result = onnxprune.prune(
        model, Budget("ratio", 0.5), free="embedding", data=data, round_to=1, then_quantize="int8", benchmark=False
    )
    assert len(result.report.variants) == 4 and all("interface" not in p.key for p in result.model.metadata_props)
    assert run(result.model, feeds(model, 0))["embedding"].shape == (2, 6)


def test_a_limit_on_the_loss(tmp_path: Path) -> None:
    model = step()
    data = samples(tmp_path / "x.npz", model)
    result = onnxprune.prune(model, Budget("max_drop", 0.5), free=CACHE, data=data, round_to=1, benchmark=False)
    assert result.report.drop is not None and result.report.drop.measured <= 0.5


def test_fine_tuning_with_a_teacher_of_another_interface_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = step()
    data = samples(tmp_path / "x.npz", model, 8)
    small = prune(model, 0.5, free=CACHE).model
    with pytest.raises(
        BadInputError, match=r"Axis 1 of input 'past_key_values_0_key' is 2 in the pruned model and 4 in"
    ):
        onnxprune.finetune(small, model, data=data, steps=1)
    with pytest.raises(BadInputError, match="leave out --free"):
        onnxprune.prune_during_training(model, Budget("macs", 0.5), data=data, free=CACHE)


# ---------------------------------------------------------------- what is said


def test_a_pattern_that_names_nothing() -> None:
    with pytest.raises(
        BadInputError, match=r"--free 'presents_\*' matches no input and no output .* nearest is 'present_0"
    ):
        onnxprune.inspect(step(), free="presents_*")
    with pytest.raises(BadInputError, match="'h0=nothing' matches no input"):
        onnxprune.inspect(lstm(), free="h0=nothing")


def test_pins_name_the_way_out() -> None:
    pins = {(p["reason"], p["remedy"]) for g in onnxprune.inspect(step())["groups"] for p in g["pins"]}
    assert ("graph output 'y' keeps its shape", "let it shrink with --free 'y'") in pins
    reason = "Concat 'present_0_key' combines it with input 1 ('kh'), which has no removable index there"
    assert (reason, "let it shrink with --free 'past_key_values_0_key'") in pins


def test_a_cache_whose_output_is_not_freed_stays() -> None:
    found = onnxprune.inspect(step(), free="past_*")["groups"]
    assert not any(g["removable"] for g in found)


def test_the_command_line(tmp_path: Path) -> None:
    onnx.save(step(), tmp_path / "m.onnx")
    arguments = ["prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--free", "past_*", "--free", "present_*"]
    names = [str(tmp_path / a) if a.endswith(".onnx") else a for a in arguments]
    found = CliRunner().invoke(main, [*names, "--round-to", "1", "--plan", str(tmp_path / "p.json")])
    assert found.exit_code == 0, found.output
    assert "interface input 'past_key_values_0_key': axis 1 is 2 instead of 4" in found.output
    checked = CliRunner().invoke(main, ["verify", *names[1:4:2], "--plan", str(tmp_path / "p.json")])
    assert checked.exit_code == 0, checked.output
    listed = CliRunner().invoke(main, ["inspect", names[1], "--free", "present_*"])
    assert listed.exit_code == 0 and "--free 'past_key_values_0_key'" in listed.output


# ---------------------------------------------------------------- attention in one node

PROJECTED = """g (float[B,L,16] x, float[B,4,P,8] past_key, float[B,4,P,8] past_value)
    => (float[B,L,16] y, float[B,4,T,8] present_key, float[B,4,T,8] present_value)
    <float[16,32] wq, float[16,32] wk, float[16,32] wv, float[32,16] wo, float[1] nil> {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    a, present_key, present_value = NODE
    y = MatMul(a, wo)
}"""
GROUPED = """g (float[B,L,32] x, float[B,2,P,8] past_key, float[B,2,P,8] past_value, int32[B,1] lengths, int32 total)
    => (float[B,L,32] y, float[B,2,T,8] present_key, float[B,2,T,8] present_value)
    <float[32,32] wq, float[32,16] wk, float[32,16] wv, float[32,32] wo> {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    a, present_key, present_value = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(
        q, k, v, past_key, past_value, lengths, total)
    y = MatMul(a, wo)
}"""
PACKED = """g (float[B,L,16] x, float[2,B,4,P,8] past) => (float[B,L,16] y, float[2,B,4,T,8] present)
    <float[16,96] w, float[96] b, float[32,16] wo, float[1] nil> {
    a, present = com.microsoft.Attention<num_heads=4, unidirectional=1>(x, w, b, nil, past)
    y = MatMul(a, wo)
}"""
MICROSOFT = ', "com.microsoft" : 1'


def without_nil(model: ModelProto) -> ModelProto:
    """Inputs that are called nil are left out; parser text cannot say so."""
    for node in model.graph.node:
        node.input[:] = ["" if name == "nil" else name for name in node.input]
    kept = [t for t in model.graph.initializer if t.name != "nil"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        ("com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, nil, nil, nil, past_key, past_value)", 17),
        ("Attention<q_num_heads=4, kv_num_heads=4>(q, k, v, nil, past_key, past_value)", 23),
    ],
)
def test_the_cache_of_one_node(node: str, opset: int) -> None:
    model = without_nil(net(PROJECTED.replace("NODE", node), opset=opset, domains=MICROSOFT))
    assert reach(model) == ([], [])
    result = prune(model, 0.5, free=("past_*", "present_*"))
    check_equal(model, result)
    found = [(p.tensor, p.axis, p.after) for p in result.plan.interface]
    names = ("past_key", "past_value", "present_key", "present_value")
    assert found == [(name, axis, size) for name in names for axis, size in ((1, 2), (3, 4))]


def test_the_cache_of_grouped_queries() -> None:
    result = prune(net(GROUPED, domains=MICROSOFT), 0.5, free=("past_*", "present_*"))
    assert {(p.axis, p.after) for p in result.plan.interface} == {(1, 1)} and len(result.plan.interface) == 4


def test_keys_and_values_in_one_tensor() -> None:
    model = without_nil(net(PACKED, domains=MICROSOFT))
    assert reach(model) == ([], [])
    result = prune(model, 0.5, free=("past", "present"))
    assert [(p.tensor, p.axis, p.after) for p in result.plan.interface] == [
        ("past", 2, 2),
        ("past", 4, 4),
        ("present", 2, 2),
        ("present", 4, 4),
    ]
    ins, outs = lost(result.plan, "input"), lost(result.plan, "output")
    assert ins["past"] == outs["present"]
    kept = np.ones((4, 8), bool)
    for axis, positions in ins["past"]:
        np.moveaxis(kept, axis // 2 - 1, 0)[list(positions)] = False
    silent = ModelProto()
    silent.CopyFrom(model)
    for tensor in silent.graph.initializer:
        if tensor.name in ("w", "b"):  # queries, keys and values live inside the node
            array = onnx.numpy_helper.to_array(tensor) * np.tile(kept.ravel(), 3)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    given = feeds(model, 0, (2, 3, 5, 7))
    wanted = cut(run(silent, zeroed(given, ins)), outs)
    assert deviation(list(wanted.values()), list(run(result.model, cut(given, ins)).values())) <= TOLERANCE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.3.decoder.value", "present.3.decoder.value"),
        ("past_0", "present_0"),
        ("past_key_self_0", "present_key_self_0"),
        ("cache_in", "cache_out"),
        ("h0", "hn"),
        ("c_0", "c_n"),
    ],
)
def test_names_of_one_state(before: str, after: str) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [], "g", [value(n, 1, [1]) for n in ("x", before)], [value(n, 1, [1]) for n in ("y", after, f"{after}_2")]
    )
    assert freed(helper.make_model(graph), ["*"]).pairs == ((before, after),)


def test_a_state_that_the_graph_does_not_tie() -> None:
    """The two are scaled apart; only the pair makes them lose the same."""
    text = """g (float[N,8] x, float[N,12] state) => (float[N,12] next, float[N,3] y)
        <float[8,12] w, float[12,10] u, float[8,10] o, float[10,3] v> {
        next = MatMul(x, w)
        a = MatMul(state, u)
        b = MatMul(x, o)
        c = Add(a, b)
        y = MatMul(c, v)
    }"""
    loose, tied = (prune(net(text), 0.5, free=free) for free in (("state", "next"), ("state=next",)))
    assert lost(loose.plan, "input")["state"] != lost(loose.plan, "output")["next"]
    assert lost(tied.plan, "input")["state"] == lost(tied.plan, "output")["next"]
    check_equal(net(text), loose)
    check_equal(net(text), tied)


def test_a_batch_of_fixed_size_stays() -> None:
    text = "g (float[4,8] x) => (float[4,6] y) <float[8,6] w> {\n y = MatMul(x, w)\n}"
    result = prune(net(text), 0.5, free="*")
    assert [(p.tensor, p.axis, p.after) for p in result.plan.interface] == [("x", 1, 4), ("y", 1, 3)]
    check_equal(net(text), result)


def test_an_axis_with_a_name_gets_a_number() -> None:
    """A name that several declarations share would say that they are still of one size."""
    model = features()
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = f"size_{output.name}"
    result = prune(model, 0.5, free="embedding")
    assert dims(result.model, "embedding") == ["N", 6] and dims(result.model, "y") == ["N", "size_y"]


def test_states_that_may_shrink_are_judged_by_the_other_outputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    past = {f"past_key_values_0_{x}": rng.normal(size=(64, 4, 3, 8)).astype(np.float32) for x in ("key", "value")}
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(64, 2, 16)).astype(np.float32), **past)
    made = onnxprune.prune(step(), Budget("macs", 0.5), data=tmp_path / "data.npz", free=CACHE, round_to=1)
    assert made.report.calibration is not None
    assert made.report.calibration.judged_by == ("y",)
    assert {x.output for x in made.report.calibration.not_judged} == {"present_0_key", "present_0_value"}
    assert lost(made.plan, "input") and lost(made.plan, "output")


def test_a_file_may_not_say_what_shrank() -> None:
    model = step()
    model.metadata_props.add(key="onnxprune.interface", value="[]")
    with pytest.raises(BadInputError, match=r"'onnxprune\.interface', which is reserved"):
        onnxprune.prune(model, Budget("ratio", 0.5))
