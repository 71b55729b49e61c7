"""Recurrent layers: the hidden size is an axis like any other, and the gates are blocks of it.

    LSTM  i, o, f, c = W x + R h + B      W [D, 4H, I]   R [D, 4H, H]   B [D, 8H]   P [D, 3H]
          Y [T, D, B, H]   Y_h, Y_c, initial_h, initial_c [D, B, H]

Unit `(d, j)` is hidden position `j` of direction `d`: rows `g H + j` of W and R for every gate `g`, column `j` of R, and
position `j` of the states and the outputs. Directions are rows, which lose equally many. The input axis of W is tied to x.

A hidden unit that is forced to zero at the outputs would still speak inside, through its state: the masked original has its
columns of R set to zero as well.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.groups.maps import Maps
from onnxprune.ops.base import CostContext, Edit, MapContext, MaskEdit, Rule, weights_at
from onnxprune.ops.labelled import Named, Operand, bind, flatten, named, unnamed

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}


def recurrent(ctx: MapContext) -> list[Maps]:
    """X, W, R, B, sequence_lens, initial_h, initial_c, P -> Y, Y_h, Y_c."""
    return _recurrent(ctx, ("d", "g", "i"), ("d", "g", "h"))


def _recurrent(ctx: MapContext, w: tuple[str, ...], r: tuple[str, ...]) -> list[Maps]:
    gates = GATES[ctx.node.op]
    batch_first = int(ctx.attr("layout", 0)) == 1
    directions, hidden = ctx.shape(2)[0], ctx.shape(2)[r.index("h")]
    ids = ctx.units.issue(directions * hidden, str(ctx.node)).reshape(directions, hidden)
    if directions > 1:  # a direction cannot go: `direction` names both
        whole = ctx.units.issue(directions)
        ctx.units.row(ids, whole[:, None])
        ctx.pin([whole], "runs in both directions")
    x = Operand(("t", "b", "i"), ctx.shape(0), named(ctx.maps(0), ("t", "b", "i")))
    inner = flatten(ctx, x, ("t", "b")).facets

    def blocks(n: int, label: str) -> Named:
        """The units `n` times over, along an axis called `label`."""
        tiled = np.tile(ids, (1, n))
        return Named(("d", label), tiled) if directions > 1 else Named((label,), tiled[0])

    state = () if hidden == 1 else (blocks(1, "h"),)
    rows = () if gates * hidden == 1 else (blocks(gates, "g"),)
    bind(ctx, 1, w, (*rows, *inner))
    bind(ctx, 2, r, (*rows, *state))
    bind(ctx, 3, ("d", "v"), (blocks(2 * gates, "v"),))
    states = ("b", "d", "h") if batch_first else ("d", "b", "h")
    for i in (5, 6):
        bind(ctx, i, states, state, flat=("b",))
    bind(ctx, 7, ("d", "p"), (blocks(3, "p"),))
    y = ("b", "t", "d", "h") if batch_first else ("t", "d", "b", "h")
    return [unnamed(state, labels) for labels in (y, states, states)]


def follow_hidden(edit: Edit) -> None:
    before, after = edit.old(2)[2], edit.new(2)[2]
    if before != after:
        edit.set_attr("hidden_size", after)


def silence(edit: MaskEdit) -> None:
    """Removed units leave the recurrence: their columns of R become zero."""
    recurrence = edit.constant(2)
    if recurrence is not None:
        edit.set_constant(2, np.where(edit.removed(2), np.zeros_like(recurrence), recurrence))


def recurrent_macs(cost: CostContext) -> int:
    """T B D G H (I + H)"""
    x, w, r = cost.inputs[0], cost.inputs[1], cost.inputs[2]
    if x is None or w is None or r is None:
        return 0
    return prod(x[:2]) * (prod(w) + prod(r))


# ---------------------------------------------------------------- com.microsoft


def quantized_lstm(ctx: MapContext) -> list[Maps]:
    """DynamicQuantizeLSTM: W [D, I, 4H] and R [D, H, 4H] of 8 bits; inputs 8 to 11 are their scales and zero points."""
    result = _recurrent(ctx, ("d", "i", "g"), ("d", "h", "g"))
    facets = {i: ctx.given.get(i, ()) for i in (1, 2)}
    for i, of in ((8, 1), (9, 1), (10, 2), (11, 2)):
        if ctx.has(i) and ctx.rank(i) == 2 and ctx.shape(i)[1] > 1:  # [D, 4H], else one per direction
            rows = [f for f in facets[of] if f.shape[2] > 1]
            bind(ctx, i, ("d", "g"), named(tuple(f.squeeze(1) for f in rows), ("d", "g")))
    return result


def follow_quantized_hidden(edit: Edit) -> None:
    before, after = edit.old(2)[1], edit.new(2)[1]
    if before != after:
        edit.set_attr("hidden_size", after)


def silence_quantized(edit: MaskEdit) -> None:
    """The state is quantized over its whole range: removed units must be zero in it, so all their gates become zero."""
    for i, zero in ((1, 9), (2, 11), (3, None), (7, None)):
        value = edit.constant(i) if edit.has(i) else None
        if value is None:
            continue
        points = edit.constant(zero) if zero is not None and edit.has(zero) else None
        if points is not None and points.ndim == 2:
            points = points[:, None, :]
        elif points is not None:
            points = points[:, None, None]
        edit.set_constant(i, np.where(edit.removed(i), value.dtype.type(0) if points is None else points, value))


RULES = [
    Rule(
        ("LSTM", "GRU", "RNN"),
        "recurrent",
        recurrent,
        adjust=follow_hidden,
        macs=recurrent_macs,
        reference=silence,
        weights=weights_at((1, -1), (2, -1)),
    ),
    Rule(
        ("com.microsoft::DynamicQuantizeLSTM",),
        "recurrent",
        quantized_lstm,
        adjust=follow_quantized_hidden,
        macs=recurrent_macs,
        reference=silence_quantized,
        eight_bit=lambda op: [(1, 9, None), (2, 11, None)],
    ),
]
