"""Mixtures of experts in one node: every expert loses as many inner positions, each its own; the hidden axis goes with x and y."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import Budget
from onnxprune.ops.base import CostContext
from onnxprune.ops.experts import INPUTS, _unknown_form, coded_experts_macs, experts_macs
from tests.oracle import Array, check, deviation, dims, feeds, masked, net, pins, prune, removed, session

MS = ', "com.microsoft" : 1'
EXPERTS, HIDDEN = 4, 32


def text(node: str, declared: str = "", batch: str = "B,S") -> str:
    """Tokens of width 32 through a router, four experts and a residual."""
    return f"""g (float[{batch},6] x) => (float[{batch},5] y)
        <float[6,{HIDDEN}] e, float[{HIDDEN},{EXPERTS}] route, float[{HIDDEN},5] o, int64[2] flat {declared}> {{
        h = MatMul(x, e)
        p = MatMul(h, route)
        f = Reshape(p, flat)
        z = com.microsoft.{node}
        s = Add(z, h)
        y = MatMul(s, o)
    }}"""


def floats(activation: str = "relu", inner: int = 12, bias: bool = True, batch: str = "B,S") -> onnx.ModelProto:
    wide = inner * (2 if activation == "swiglu" else 1)
    declared = f", float[{EXPERTS},{wide},{HIDDEN}] w1, float[{EXPERTS},{HIDDEN},{inner}] w2"
    inputs = "h, f, w1, , w2"
    if bias:
        declared += f", float[{EXPERTS},{wide}] b1, float[{EXPERTS},{HIDDEN}] b2"
        inputs = "h, f, w1, b1, w2, b2"
    attributes = f'k=2, activation_type="{activation}", swiglu_fusion=1, normalize_routing_weights=1'
    node = f"MoE<{attributes}>({inputs})"
    return net(text(node, declared, batch), domains=MS, constants={"flat": np.array([-1, EXPERTS])})


def bits_of(stored: Array, bits: int) -> Array:
    """Codes of bytes, one after the other, the lowest bits first."""
    parts = [stored.astype(np.int64) >> k & (1 << bits) - 1 for k in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*stored.shape[:-1], -1)


def coded(
    activation: str = "swiglu", inner: int = 64, bits: int = 4, block: int = 0, zero: bool = False, more: str = ""
) -> onnx.ModelProto:
    rng = np.random.default_rng(bits + block)
    constants: dict[str, Array] = {"flat": np.array([-1, EXPERTS])}
    gated = activation == "swiglu"
    for n, rows, columns in ((1, inner * (1 + gated), HIDDEN), (2, HIDDEN, inner)):
        constants[f"w{n}"] = rng.integers(0, 256, (EXPERTS, rows, columns * bits // 8)).astype(np.uint8)
        scales = (EXPERTS, rows, *((columns // block,) if block else ()))
        constants[f"s{n}"] = (rng.uniform(0.5, 1, scales) / 2**bits).astype(np.float32)
        constants[f"b{n}"] = rng.standard_normal((EXPERTS, rows)).astype(np.float32)
        if zero:
            constants[f"z{n}"] = rng.integers(0, 256, (*scales[:-1], -(-scales[-1] * bits // 8))).astype(np.uint8)
    attributes = f'k=2, activation_type="{activation}", swiglu_fusion={int(gated)}, normalize_routing_weights=1'
    attributes += f", expert_weight_bits={bits}" + (f", block_size={block}" if block else "") + more
    points = ", , , , z1, z2" if zero else ""
    return net(text(f"QMoE<{attributes}>(h, f, w1, s1, b1, w2, s2, b2{points})"), domains=MS, constants=constants)


def weights(values: dict[str, Array], n: int, bits: int, block: int) -> Array:
    """Of layer `n`, decoded: [E, outputs, inputs]."""
    codes, scale = bits_of(values[f"w{n}"], bits), values[f"s{n}"].astype(np.float64)
    zero = np.full(scale.shape, 1 << (bits - 1))
    if f"z{n}" in values:
        zero = bits_of(values[f"z{n}"], bits)[..., : scale.shape[-1]]
    spread = (lambda t: np.repeat(t, block, axis=2)) if block else (lambda t: t[:, :, None])
    return np.asarray((codes - spread(zero)) * spread(scale))


def by_hand(original: onnx.ModelProto, plan: onnxprune.Plan, x: Array, activation: str, bits: int, block: int) -> Array:
    """The model in numpy, with what the plan removes set to zero: hidden positions of h and z, inner positions of each expert."""
    values = {t.name: numpy_helper.to_array(t) for t in original.graph.initializer}
    if bits:
        w1, w2 = (weights(values, n, bits, block) for n in (1, 2))
    else:
        w1, w2 = (values[f"w{n}"].astype(np.float64) for n in (1, 2))
    stays = np.ones(values["w2"].shape, bool)
    hidden = np.ones(HIDDEN)
    for member in (m for g in plan.groups for m in g.members):
        if member.tensor == "w2" and member.axis == 2:
            stays[removed(member, stays.shape)] = False
        if member.tensor == "h":
            hidden[list(member.removed)] = 0
    inner = np.repeat(stays, 8 // bits if bits else 1, axis=2)[:, 0]
    h = (x.reshape(-1, 6) @ values["e"]) * hidden
    logits = h @ values["route"]
    result = h.copy()
    for t, token in enumerate(h):
        best = np.argsort(-logits[t])[:2]
        share = np.exp(logits[t][best] - logits[t][best].max())
        for e, part in zip(best, share / share.sum(), strict=True):
            a = w1[e] @ token + values["b1"][e]
            if activation == "swiglu":  # alpha 1, beta 0
                gate, value = a[::2], a[1::2]
                a = gate / (1 + np.exp(-gate)) * value
            else:
                a = np.maximum(a, 0)
            result[t] += part * hidden * (w2[e] @ (a * inner[e]) + values["b2"][e])
    return np.asarray((result @ values["o"]).reshape(*x.shape[:-1], 5))


def equals_by_hand(original: onnx.ModelProto, activation: str, bits: int = 0, block: int = 0) -> onnxprune.PruneResult:
    for seed, ratio in enumerate((0.3, 0.5, 0.8)):
        made = prune(original, ratio, seed)
        assert any(g.removed for g in made.plan.groups)
        for k, sizes in enumerate([(2, 3), (1, 4)]):
            given = feeds(original, k, sizes)
            wanted = by_hand(original, made.plan, given["x"], activation, bits, block).astype(np.float32)
            assert deviation([wanted], session(made.model).run(None, given)) <= 1e-4
    return made


# ---------------------------------------------------------------- floats


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity", "swiglu"])
@pytest.mark.parametrize("bias", [False, True])
def test_inner_and_hidden_positions_of_experts_go(activation: str, bias: bool) -> None:
    original = floats(activation, bias=bias)
    check(original, [HIDDEN, 12])
    made = prune(original, 0.5)
    assert dims(made.model, "w1") == [4, 12 if activation == "swiglu" else 6, 16]
    assert dims(made.model, "w2") == [4, 16, 6]


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_experts_of_floats_by_hand(activation: str) -> None:
    equals_by_hand(floats(activation), activation)


def test_experts_lose_as_many_positions_but_not_the_same() -> None:
    plan = prune(floats(), 0.5).plan
    lost = [m.removed for g in plan.groups for m in g.members if (m.tensor, m.axis) == ("w2", 2)]
    assert [len(x) for x in lost] == [6] * 4 and len(set(lost)) > 1


def test_packed_tokens() -> None:
    check(floats(batch="T"), [HIDDEN, 12])


def test_experts_stay() -> None:
    assert "MoE 'z' routes tokens to its experts by their position, and keeps all experts" in pins(floats())
    assert "MoE 'z' keeps all of its experts, and something of each" in pins(floats())


def test_half_of_the_inner_width_of_a_model_whose_tokens_stay() -> None:
    """What the hidden axis is pinned by does not hold the inner one: half of every expert goes, exactly."""
    original = net(
        """g (float[T,8] x, float[T,4] p) => (float[T,8] y) <float[4,16,8] w1, float[4,8,16] w2> {
            y = com.microsoft.MoE<k=1>(x, p, w1, , w2)
        }""",
        domains=MS,
    )
    check(original, [16])
    made = prune(original, 0.5)
    assert (dims(made.model, "w1"), dims(made.model, "w2")) == ([4, 8, 8], [4, 8, 8])


def test_weights_that_are_cast() -> None:
    original = net(
        text(
            "MoE<k=2>(h, f, wc, , w2)\n wc = Cast<to=1>(w1)".replace("z = ", ""),
            f", float16[{EXPERTS},12,{HIDDEN}] w1, float[{EXPERTS},{HIDDEN},12] w2",
        ),
        domains=MS,
        constants={"flat": np.array([-1, EXPERTS])},
    )
    nodes = list(original.graph.node)
    nodes.sort(key=lambda n: n.op_type != "Cast")
    del original.graph.node[:]
    original.graph.node.extend(nodes)
    check(original, [HIDDEN, 12])


def test_experts_are_pruned_to_a_cost_with_data(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(24, 3, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    made = onnxprune.prune(floats(), Budget("macs", 0.5), data=str(tmp_path / "x.npz"), round_to=1, benchmark=False)
    macs = made.plan.macs
    assert macs is not None and macs.after <= macs.before / 2
    assert macs.before % (6 * 32 + 32 * 4 + 2 * 12 * (32 + 32) + 32 * 5) == 0  # per token


# ---------------------------------------------------------------- codes


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(2, 0), (4, 0), (8, 0), (2, 16), (4, 16), (4, 32)])
def test_experts_of_codes_by_hand(activation: str, zero: bool, bits: int, block: int) -> None:
    """Bytes and blocks go whole; where zero points of blocks share a byte, the blocks do too."""
    inner = 256 if block else 64
    original = coded(activation, inner, bits, block, zero)
    made = equals_by_hand(original, activation, bits, block)
    if block and not zero:
        assert dims(made.model, "s2")[2] * block == dims(made.model, "w2")[2] * 8 // bits


@pytest.mark.parametrize("zero", [False, True])
def test_experts_of_bytes_in_blocks(zero: bool) -> None:
    """ONNX Runtime rounds activations to 8 bits here, block by block: the original with scales of zero does likewise."""
    original = coded("swiglu", 64, 8, 16, zero)
    for seed, ratio in enumerate((0.5, 0.8)):
        made = prune(original, ratio, seed)
        silent = onnx.ModelProto()
        silent.CopyFrom(original)
        tensor = next(t for t in silent.graph.initializer if t.name == "s2")
        scales = numpy_helper.to_array(tensor).copy()
        for member in (m for g in made.plan.groups for m in g.members if (m.tensor, m.axis) == ("s2", 2)):
            scales[removed(member, scales.shape)] = 0
        tensor.CopyFrom(numpy_helper.from_array(scales, "s2"))
        given = feeds(original, 0)
        reference = session(masked(silent, made.plan, given))
        assert deviation(reference.run(None, given), session(made.model).run(None, given)) <= 1e-5


def test_pieces_that_are_not_whole_are_named() -> None:
    """Three blocks of two zero points per byte."""
    assert "stores its weights in pieces of 32 inputs (of 48), of which the last is not whole" in pins(
        coded("relu", 48, 4, 16, zero=True)
    )


def test_codes_whose_rounding_depends_on_the_width_are_named() -> None:
    original = coded(bits=2, block=32)
    assert "has codes of 2 bits in blocks of 32 or more" in pins(original)
    check(original)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"activation_type": b"relu", "swiglu_fusion": 1}, "has swiglu_fusion beside the activation 'relu'"),
        ({"weights_prepacked": 1}, "has weights that are packed for one execution provider"),
        ({"quant_type": b"fp8"}, "has codes of kind 'fp8'"),
        ({"fc2_expert_weight_bits": 8}, "has codes of kind 'int' with 4 and 8 bits"),
        ({"activation_type": b"geglu"}, "has the activation 'geglu'"),
    ],
)
def test_forms_that_are_not_followed_are_named(attributes: dict[str, Any], reason: str) -> None:
    """ONNX Runtime 1.32 does not run them here, or reads gates that are not there."""
    context: Any = SimpleNamespace(attr=lambda name, default: attributes.get(name, default), has=lambda i: False)
    assert reason in _unknown_form(context, INPUTS["QMoE"])


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ("MoE<k=2>(h, f, w1, , w2, , w3)", "FC3 is not implemented for CPU MoE"),
        ('MoE<k=2, activation_type="swiglu", swiglu_fusion=2>(h, f, w1, , w2)', "only supports interleaved SwiGLU"),
    ],
)
def test_what_onnx_runtime_does_not_run_is_said(node: str, sentence: str) -> None:
    declared = f", float[{EXPERTS},24,{HIDDEN}] w1, float[{EXPERTS},{HIDDEN},12] w2"
    declared += f", float[{EXPERTS},24,{HIDDEN}] w3" if "w3" in node else ""
    original = net(text(node, declared), domains=MS, constants={"flat": np.array([-1, EXPERTS])})
    with pytest.raises(onnxprune.BadInputError, match=sentence):
        prune(original, 0.5)


def test_macs() -> None:
    """Six tokens of width 32 visit two experts of inner width 12; with SwiGLU the first layer has 24 outputs."""
    x: Any = (2, 3, 32)
    assert experts_macs(CostContext({"k": 2}, (x, (6, 4), (4, 12, 32), None, (4, 32, 12)), (x,))) == 6 * 2 * 768
    inputs: Any = (x, (6, 4), (4, 24, 16), (4, 24), None, (4, 32, 6))
    assert coded_experts_macs(CostContext({"k": 2}, inputs, (x,))) == 6 * 2 * (24 * 32 + 32 * 12)
    assert experts_macs(CostContext({"k": 9}, (x, (6, 4), (4, 12, 32), None, (4, 32, 12)), (x,))) == 6 * 4 * 768
