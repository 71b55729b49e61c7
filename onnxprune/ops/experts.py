"""Mixtures of experts in one node (com.microsoft): tokens go to the k experts that a router picks, each a small network of its own.

    MoE    y[t] = sum over the k experts e of token t:  p[t, e] (W2[e] act(W1[e] x[t] + b1[e]) + b2[e])
           x, y [.., H]   p [T, E]   W1 [E, F, H]   b1 [E, F]   W2 [E, H, I]   b2 [E, H]

F is the inner width I; with SwiGLU 2 I: rows 2j and 2j + 1 of W1 are the gate and the value of inner position j.

Unit `(e, j)` is inner position `j` of expert `e`: experts are rows, which lose equally many positions, each its own. The hidden
axis of x, W1, W2 and y is one and the same for all experts, since the operator has x and y of one width. Experts stay: the
router counts them.

    QMoE   the same with codes of 2, 4 or 8 bits, packed along the last axis of W1 and W2, with scales (and zero points, packed
           too) per row [E, F], or per block of `block_size` along the contracted axis [E, F, H / block_size]

There, what shares a byte or a block goes together. No activation shows the inner positions, so the masked original silences
their columns of W2 instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxprune.groups.maps import Maps
from onnxprune.groups.observation import Array
from onnxprune.groups.units import Ids
from onnxprune.ops.attention import TOKENS, silence
from onnxprune.ops.base import CostContext, MapContext, MaskEdit, Rule, weights_at
from onnxprune.ops.labelled import Operand, bind, flatten, named, unnamed
from onnxprune.ops.linear import unpacked
from onnxprune.ops.pointwise import tie_blocks


@dataclass(frozen=True)
class _Inputs:
    """Positions of the inputs: per layer weights, bias, scales and zero points; what may not be there; what routes."""

    weights: tuple[int, int]
    bias: tuple[int, int]
    scales: tuple[int, int] | None
    zeros: tuple[int, int] | None
    third: tuple[int, ...]  # of a third layer
    routes: tuple[int, ...]
    others: tuple[int, ...] = ()  # scales of other kinds of codes


INPUTS = {
    "MoE": _Inputs((2, 4), (3, 5), None, None, (6, 7), (1,)),
    "QMoE": _Inputs((2, 5), (4, 7), (3, 6), (11, 12), (8, 9, 10, 13), (1, 14), tuple(range(15, 21))),
}


@dataclass(frozen=True)
class _Form:
    """How weights are stored: bits of a code (8 for floats, which are not packed), positions per block (0: one scale per row)."""

    bits: int = 8
    block: int = 0

    @staticmethod
    def of(attrs: dict[str, Any], where: _Inputs) -> _Form:
        if where.scales is None:
            return _Form()
        bits = attrs.get("fc1_expert_weight_bits", attrs.get("expert_weight_bits", 4))
        return _Form(int(bits), max(0, int(attrs.get("block_size", 0))))

    @property
    def packed(self) -> int:
        """Codes per byte."""
        return 8 // self.bits


def experts(ctx: MapContext) -> list[Maps]:
    """MoE(x, router, W1, b1, W2, b2, W3, b3), QMoE(x, router, W1, s1, b1, W2, s2, b2, …)."""
    where = INPUTS[ctx.node.op]
    last, count = ctx.rank() - 1, ctx.shape(where.weights[0])[0]
    for i in where.routes:
        if ctx.has(i):
            ctx.pin_axes(i, (0, 1), "routes tokens to its experts by their position, and keeps all experts")
    if reason := _unknown_form(ctx, where):
        ctx.pin_axes(0, (last,), reason)
        return ctx.nothing()
    form = _Form.of(ctx.attrs, where)
    inner = ctx.shape(where.weights[1])[2] * form.packed
    labels = ("t", "h") if last == 1 else ("b", "s", "h")
    x = flatten(ctx, Operand(labels, ctx.shape(0), named(ctx.maps(0), labels)), TOKENS)
    hidden = [f.ids for f in x.facets]
    ids = ctx.units.issue(count * inner, str(ctx.node)).reshape(count, inner)
    ctx.units.boxes.append(ids)
    whole = ctx.units.issue(count)
    ctx.units.row(ids, whole[:, None])
    ctx.pin([whole], "keeps all of its experts, and something of each")
    rows = np.repeat(ids, ctx.shape(where.weights[0])[1] // inner, axis=1)
    _layer(ctx, 0, rows, hidden)
    _layer(ctx, 1, None, hidden, ids)
    return [unnamed(x.facets, labels)]


def _unknown_form(ctx: MapContext, where: _Inputs) -> str:
    """Why nothing can be said of this node; empty where its form is known."""
    activation = ctx.attr("activation_type", "relu")
    activation = activation.decode() if isinstance(activation, bytes) else activation
    if any(ctx.has(i) for i in where.third):
        return "has a third layer per expert (FC3), which ONNX Runtime does not run on the CPU"
    if activation not in ("relu", "gelu", "silu", "identity", "swiglu"):
        return f"has the activation '{activation}', which ONNX Runtime does not run on the CPU"
    if activation == "swiglu" and int(ctx.attr("swiglu_fusion", 0)) != 1:
        return "has gates apart from their values (swiglu_fusion is not 1), which ONNX Runtime does not run on the CPU"
    if where.scales is None or where.zeros is None:
        return ""
    if activation != "swiglu" and int(ctx.attr("swiglu_fusion", 0)):
        return (
            f"has swiglu_fusion beside the activation '{activation}', for which ONNX Runtime reads beyond its weights"
        )
    kind = ctx.attr("quant_type", "int")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    bits = {int(ctx.attr(f"fc{n}_expert_weight_bits", ctx.attr("expert_weight_bits", 4))) for n in (1, 2)}
    if kind != "int" or not (len(bits) == 1 and bits <= {2, 4, 8}) or any(ctx.has(i) for i in where.others):
        return f"has codes of kind '{kind}' with {' and '.join(map(str, sorted(bits)))} bits, which its rule does not cover"
    if bits == {2} and int(ctx.attr("block_size", 0)) >= 32:
        return "has codes of 2 bits in blocks of 32 or more, which ONNX Runtime rounds otherwise in other widths"
    if int(ctx.attr("weights_prepacked", -1)) == 1:
        return "has weights that are packed for one execution provider"
    if any(not ctx.has(i) or not ctx.is_lazy(i) for i in (*where.weights, *where.scales)):
        return "has codes or scales that are computed"
    if any(ctx.has(i) and not ctx.is_lazy(i) for i in where.zeros):
        return "has zero points that are computed"
    return ""


def _layer(ctx: MapContext, n: int, rows: Ids | None, hidden: list[Ids], inner: Ids | None = None) -> None:
    """Units of the weights `[E, O, K]` of layer `n`, and of its tables.

    rows: units `[E, O]` of the outputs, None where they are the `hidden` ones `[H]`; inner: units `[E, K]` of the inputs, likewise.
    """
    where = INPUTS[ctx.node.op]
    form = _Form.of(ctx.attrs, where)
    outputs = [rows] if rows is not None else [h[None] for h in hidden]
    inputs = [inner] if inner is not None else [h[None] for h in hidden]
    zeros = where.zeros[n] if where.zeros is not None and ctx.has(where.zeros[n]) else None
    byte, block = form.packed, form.block
    together = (block * (byte if zeros is not None else 1)) if block else byte
    inputs = _kept_together(ctx, inputs, together, "inputs")
    if zeros is not None and not block:
        outputs = _kept_together(ctx, outputs, byte, "outputs")
    _bind(ctx, where.weights[n], outputs, [u[:, ::byte] for u in inputs])
    _bind(ctx, where.bias[n], outputs)
    if where.scales is not None:
        _bind(ctx, where.scales[n], outputs, [u[:, ::block] for u in inputs] if block else None)
    if zeros is not None and block:
        _bind(ctx, zeros, outputs, [u[:, ::together] for u in inputs])
    elif zeros is not None:
        _bind(ctx, zeros, [u[:, ::byte] for u in outputs])


def _kept_together(ctx: MapContext, units: list[Ids], size: int, side: str) -> list[Ids]:
    """Units `[rows, positions]` of which `size` positions in a row go together; none that this does not divide."""
    if size == 1:
        return units
    if any(u.shape[1] % size for u in units):
        count = units[0].shape[1]
        ctx.pin(units, f"stores its weights in pieces of {size} {side} (of {count}), of which the last is not whole")
        return []
    for u in units:
        tie_blocks(ctx, u.ravel(), size)
    return units


def _bind(ctx: MapContext, i: int, outputs: list[Ids], inputs: list[Ids] | None = None) -> None:
    """Input `i` `[E, O]`, or `[E, O, K]` with `inputs`, carries these units; a side without experts is alike in all of them."""
    labels = ("e", "o") if inputs is None else ("e", "o", "k")
    facets = [u if inputs is None else u[:, :, None] for u in outputs]
    facets += [u[:, None] for u in inputs or ()]
    bind(ctx, i, labels, named(tuple(facets), labels))


# ---------------------------------------------------------------- the masked original


def silence_experts(edit: MaskEdit) -> None:
    """Removed inner positions speak through W2 alone: their columns become zero."""
    silence(edit, INPUTS["MoE"].weights[1])


def silence_codes(edit: MaskEdit) -> None:
    """Bytes of removed inner positions become codes of zero: the zero points of their row or block, else half of the codes' range."""
    where = INPUTS["QMoE"]
    form = _Form.of(edit.attrs, where)
    assert where.zeros is not None
    i, byte = where.weights[1], form.packed
    codes, bits = edit.constant(i), form.bits
    if codes is None:
        return
    table: Array = np.full((1, 1, 1), 1 << (bits - 1), np.int64)
    if edit.has(where.zeros[1]):
        stored = edit.constant(where.zeros[1])
        assert stored is not None
        points = unpacked(stored, bits).astype(np.int64)
        blocks = points if form.block else points[:, : codes.shape[1], None]
        table = np.repeat(blocks, form.block // byte or 1, axis=2)[:, :, : codes.shape[2]]
    zero = table * (255 // ((1 << bits) - 1))  # the same code in every place of the byte
    edit.set_constant(i, np.where(edit.removed(i), zero.astype(codes.dtype), codes))


# ---------------------------------------------------------------- cost


def experts_macs(cost: CostContext) -> int:
    """T k (F H + H I): each token visits k experts."""
    return _macs(cost, INPUTS["MoE"])


def coded_experts_macs(cost: CostContext) -> int:
    return _macs(cost, INPUTS["QMoE"])


def _macs(cost: CostContext, where: _Inputs) -> int:
    x = cost.inputs[0]
    first, second = (cost.inputs[i] for i in where.weights)
    if x is None or first is None or second is None:
        return 0
    form = _Form.of(cost.attrs, where)
    visits = min(int(cost.attrs.get("k", 1)), first[0])
    return prod(x[:-1]) * visits * (prod(first[1:]) + prod(second[1:])) * form.packed


RULES = [
    Rule(
        ("com.microsoft::MoE",),
        "contraction",
        experts,
        macs=experts_macs,
        reference=silence_experts,
        weights=weights_at((2, -1), (4, -1)),
        note="every expert loses as many inner positions; experts stay",
    ),
    Rule(
        ("com.microsoft::QMoE",),
        "contraction",
        experts,
        macs=coded_experts_macs,
        reference=silence_codes,
        note="every expert loses as many inner positions, whole blocks where scales stand for blocks; experts stay",
    ),
]
