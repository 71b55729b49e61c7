"""Decoders within BeamSearch and its like: what the operator hands them and takes from them stays, widths within them may shrink."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import Budget
from tests.oracle import net, pins, reach

WEIGHTS = {
    "wte": (20, 8),
    "wpe": (16, 8),
    "qkv": (8, 24),
    "qb": (24,),
    "wo": (8, 8),
    "f1": (8, 32),
    "fb": (32,),
    "f2": (32, 8),
    "out": (8, 20),
}
STORED = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in WEIGHTS.items())
BODY = """(int32[batch,seq] input_ids, int32[batch,seq] position_ids, int32[batch,total] attention_mask, float[2,batch,2,past,4] past_0)
    => (float[batch,seq,20] logits, float[2,batch,2,total,4] present_0) {
    e = Gather(wte, input_ids)
    p = Gather(wpe, position_ids)
    x = Add(e, p)
    a, present_0 = com.microsoft.Attention<num_heads=2, unidirectional=1>(x, qkv, qb, attention_mask, past_0)
    o = MatMul(a, wo)
    r = Add(x, o)
    h = MatMul(r, f1)
    hb = Add(h, fb)
    g = Relu(hb)
    d = MatMul(g, f2)
    z = Add(r, d)
    logits = MatMul(z, out)
}"""
INSIDE = BODY.replace("{", f"<{STORED}> {{", 1)
ENDS = "eos_token_id=19, pad_token_id=19, model_type=0"
KINDS = {
    "greedy": ("y = com.microsoft.GreedySearch(ids, longest)", "", f"decoder = d {INSIDE}"),
    "constants outside": ("y = com.microsoft.GreedySearch(ids, longest)", f", {STORED}", f"decoder = d {BODY}"),
    "beams": (
        "y, s = com.microsoft.BeamSearch(ids, longest, least, beams, give, penalty)",
        "",
        f"decoder = d {INSIDE}",
    ),
    "a decoder of the first step": (
        "y, s = com.microsoft.BeamSearch(ids, longest, least, beams, give, penalty)",
        f", {STORED}",
        f"decoder = d {BODY}, init_decoder = i {BODY}",
    ),
}
NUMBERS = {"longest": 10, "least": 1, "beams": 3, "give": 2}


def model(kind: str) -> onnx.ModelProto:
    call, outside, bodies = KINDS[kind]
    outputs = "int32[B,R,L] y, float[B,R] s" if "y, s" in call else "int32[B,L] y"
    given = {n: np.array([v], np.int32) for n, v in NUMBERS.items() if n in call} | {"penalty": np.ones(1, np.float32)}
    return net(
        f"g (int32[B,S] ids) => ({outputs}) <int64 unused{outside}> {{ {call} <{ENDS}, {bodies}> }}",
        constants={n: v for n, v in given.items() if n in call} | {"unused": np.array(0)},
        domains=', "com.microsoft" : 1',
    )


def decoder(model: onnx.ModelProto, name: str = "decoder") -> onnx.GraphProto:
    graph: onnx.GraphProto = next(a.g for n in model.graph.node for a in n.attribute if a.name == name)
    return graph


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {t.name: numpy_helper.to_array(t) for t in (*model.graph.initializer, *decoder(model).initializer)}


def alone(model: onnx.ModelProto, changes: dict[str, np.ndarray]) -> ort.InferenceSession:  # type: ignore[type-arg]
    """The decoder as a model of its own, with some of its constants changed."""
    graph = onnx.GraphProto()
    graph.CopyFrom(decoder(model))
    stored = constants(model) | changes
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in stored.items())
    proto = helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)
    return ort.InferenceSession(proto.SerializeToString())


@pytest.mark.parametrize("kind", KINDS)
def test_widths_within_the_decoder(kind: str) -> None:
    """31 of 32 inner and 7 of 8 hidden positions, in all bodies that read the weights; heads stay, as caches do."""
    proto = model(kind)
    assert reach(proto) == ([32, 8], []), pins(proto)
    assert "from its decoder" in pins(proto)
    made = onnxprune.prune(
        proto, Budget("ratio", 0.4), recover="none", benchmark=False, round_to=1, importance="random"
    )
    onnx.checker.check_model(made.model)
    assert made.report.check.error == 0 and onnxprune.verify(proto, made.model, made.plan).error == 0
    removed = {(m.tensor, m.axis): m.removed for g in made.plan.groups for m in g.members}
    hidden, inner = list(removed["wte", 1]), list(removed["f1", 1])
    assert len(hidden) == 3 and len(inner) == 12

    zeroed = {n: v.copy() for n, v in constants(proto).items()}
    for name, places in {"wte": hidden, "wpe": hidden, "wo": hidden, "f2": hidden, "f1": inner, "fb": inner}.items():
        zeroed[name][..., places] = 0
    rng = np.random.default_rng(0)
    for batch, new, past in itertools.product((1, 3), (1, 4), (0, 5)):
        feeds = {
            "input_ids": rng.integers(0, 20, (batch, new)).astype(np.int32),
            "position_ids": np.tile(np.arange(past, past + new, dtype=np.int32), (batch, 1)),
            "attention_mask": np.ones((batch, past + new), np.int32),
            "past_0": rng.standard_normal((2, batch, 2, past, 4)).astype(np.float32),
        }
        for wanted, got in zip(
            alone(proto, zeroed).run(None, feeds), alone(made.model, {}).run(None, feeds), strict=True
        ):
            assert np.abs(wanted - got).max() < 1e-5
    assert sum(len(g.node) for g in [decoder(made.model)]) == len(decoder(proto).node)
    assert len({t.name for t in made.model.graph.initializer if t.name in WEIGHTS}) in (0, len(WEIGHTS))


def test_what_is_not_calibrated_is_named() -> None:
    made = onnxprune.prune(model("beams"), Budget("macs", 0.6), benchmark=False, round_to=1)
    said = [w for w in made.report.warnings if "not calibrated" in w]
    assert len(said) == 1 and "layers inside BeamSearch 'y' were not calibrated (" in said[0]


def test_a_decoder_whose_sizes_have_no_names_stays() -> None:
    """Eight sizes that may depend on each other are not tried."""
    proto = model("greedy")
    for value in decoder(proto).input:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    with pytest.raises(onnxprune.NothingPrunableError, match="Nothing can be removed"):
        onnxprune.prune(proto, Budget("ratio", 0.4), recover="none", benchmark=False)
