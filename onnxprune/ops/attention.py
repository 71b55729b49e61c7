"""Attention in one node: ai.onnx Attention and RotaryEmbedding, and what ONNX Runtime fuses transformers into.

    scores[b, g, r, s, t] = scale * sum_d Q[b, s, g, r, d] K[b, t, g, d]      head (g, r): query head r of key/value head g
    Y[b, s, g, r, e]      = sum_t softmax(scores)[b, g, r, s, t] V[b, t, g, e]

A contraction twice over, so the labels say it all: Q and K lose the same `d` of a head, V and Y the same `e`, and a head (of keys
and values, with its queries) goes when all of its `d` and `e` go. The scale stays 1/sqrt of the *original* head size.
"""

from __future__ import annotations

from math import prod, sqrt

import numpy as np

from onnxprune.core.maps import Facet, Maps, Shape, reshape, varying
from onnxprune.core.observation import Array
from onnxprune.ops.base import CostContext, Edit, MapContext, MaskEdit, Rule
from onnxprune.ops.labelled import Label, Named, Operand, bind, combine, flatten, named, operand, unnamed

TOKENS: tuple[Label, ...] = ("b", "s", "t", "p")


def _split_heads(shape: Shape, groups: int, repeats: int = 1, heads_first: bool | None = None) -> Shape:
    """[B, S, H*D] as [B, S, G, R, D], or [B, H, S, D] as [B, G, R, S, D]; without R where it is 1."""
    heads = (groups, repeats) if repeats > 1 else (groups,)
    if len(shape) == 3:
        return (*shape[:2], *heads, shape[2] // (groups * repeats))
    return (shape[0], *heads, *shape[2:])


def _head_labels(rank: int, token: Label, size: Label, repeats: int = 1) -> tuple[Label, ...]:
    heads = ("g", "r") if repeats > 1 else ("g",)
    return ("b", token, *heads, size) if rank == 3 else ("b", *heads, token, size)


def _heads(ctx: MapContext, i: int, groups: int, token: Label, size: Label, repeats: int = 1) -> Operand:
    """Input `i` with its heads told apart and its batch and sequence axes left alone."""
    labels = _head_labels(ctx.rank(i), token, size, repeats)
    view = _split_heads(ctx.shape(i), groups, repeats)
    facets = tuple(reshape(f, ctx.shape(i), view) for f in ctx.maps(i))
    ctx.units.boxes += [f for f in facets if len(varying(f)) > 1]
    return flatten(ctx, Operand(labels, view, named(facets, labels)), TOKENS)


def _attend(
    ctx: MapContext, q: Operand, k: Operand, v: Operand, bias: int | None = None, repeats: int = 1, groups: int = 1
) -> tuple[Operand, tuple[Named, ...]]:
    """Units of the scores `b g r s t`, and those of the output `b s g r e`."""
    heads: tuple[Label, ...] = ("g", "r") if repeats > 1 else ("g",)
    out = ("b", *heads, "s", "t")
    sizes = (q.size("b"), *((groups, repeats) if repeats > 1 else (groups,)), q.size("s"), k.size("t"))
    scores = Operand(out, sizes, combine(ctx, q, k, out, what="the keys"))
    if bias is not None and ctx.has(bias):
        scores = Operand(out, sizes, _add_bias(ctx, scores, bias, groups, repeats))
    return scores, combine(ctx, scores, v, ("b", "s", *heads, "e"), what="the values")


def _add_bias(ctx: MapContext, scores: Operand, i: int, groups: int, repeats: int) -> tuple[Named, ...]:
    """A mask or bias that broadcasts to [B, H, S, T]: per head where it has a head axis."""
    shape = ctx.shape(i)
    per_head = len(shape) >= 3 and shape[-3] > 1
    own: tuple[Label, ...] = ("b", "h", "s", "t")[4 - len(shape) :]
    view = shape
    if "h" in own:
        at = own.index("h")
        heads = ("g", "r") if repeats > 1 else ("g",)
        own = (*own[:at], *heads, *own[at + 1 :])
        split = (groups, repeats) if per_head else (1, 1)
        view = (*shape[:at], *split[: len(heads)], *shape[at + 1 :])
    other = flatten(ctx, operand(ctx, i, own, view), TOKENS)
    sizes = tuple(n if x in TOKENS and n == scores.size(x) else n for x, n in zip(own, other.sizes, strict=True))
    other = Operand(own, sizes, other.facets, other.constant, other.native)
    return combine(ctx, scores, other, scores.labels, what=f"its bias (input {i})")


def _joined(facets: tuple[Named, ...], groups: int, repeats: int, size: int, shape: Shape) -> Maps:
    """Facets over `g`, `r`, `e` as those of a tensor [B, S, H*E]."""
    heads: tuple[Label, ...] = ("g", "r") if repeats > 1 else ("g",)
    view = (*shape[:2], *((groups, repeats) if repeats > 1 else (groups,)), size)
    return tuple(reshape(f, view, shape) for f in unnamed(facets, ("b", "s", *heads, "e")))


def _cached(ctx: MapContext, new: Operand, i: int, k: int, size: Label, groups: int) -> tuple[Operand, Maps]:
    """Keys or values after those of the past: `[B, G, T, D]`, which is also output `k`."""
    present = ("b", "g", "t", size)
    if not ctx.has(i):
        return new, unnamed(new.facets, present)
    past = flatten(ctx, operand(ctx, i, ("b", "g", "p", size)), TOKENS)
    sizes = (new.size("b"), groups, new.size("t"), new.size(size))
    facets = combine(ctx, Operand(new.labels, new.sizes, new.facets), past, present, what="the cache")
    return Operand(present, sizes, facets), unnamed(facets, present)


# ---------------------------------------------------------------- ai.onnx


def attention(ctx: MapContext) -> list[Maps]:
    """Attention(Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen), in three or four dimensions."""
    three = ctx.rank(0) == 3
    q_heads = int(ctx.attr("q_num_heads")) if three else ctx.shape(0)[1]
    groups = int(ctx.attr("kv_num_heads")) if ctx.rank(1) == 3 else ctx.shape(1)[1]
    repeats = q_heads // groups
    q = _heads(ctx, 0, groups, "s", "d", repeats)
    k = _heads(ctx, 1, groups, "t", "d")
    v = _heads(ctx, 2, groups, "t", "e")
    k, present_key = _cached(ctx, k, 4, 1, "d", groups)
    v, present_value = _cached(ctx, v, 5, 2, "e", groups)
    scores, y = _attend(ctx, q, k, v, 3, repeats, groups)
    heads: tuple[Label, ...] = ("g", "r") if repeats > 1 else ("g",)
    order = ("b", "s", *heads, "e") if three else ("b", *heads, "s", "e")
    shape = ctx.out_shape()
    view = _split_heads(shape, groups, repeats)
    maps = tuple(reshape(f, view, shape) for f in unnamed(y, order))
    results = [maps, present_key, present_value]
    if len(ctx.node.outputs) > 3 and ctx.node.outputs[3]:
        raw = ctx.out_shape(3)
        results.append(
            tuple(reshape(f, (raw[0], *scores.sizes[1:-2], *raw[2:]), raw) for f in unnamed(scores.facets, scores.labels))
        )
    return results


def _alive(edit: Edit, i: int, axis: int, heads: int) -> int:
    """How many of the heads along `axis` keep anything."""
    kept: Array = edit.kept(i, axis)
    return int(kept.reshape(heads, -1).any(axis=1).sum())


def follow_heads(edit: Edit) -> None:
    if len(edit.old(0)) == 3:
        before = int(edit.attrs["q_num_heads"])
        after = _alive(edit, 0, 2, before)
        old_size, new_size = edit.old(0)[2] // before, edit.new(0)[2] // after
        edit.set_attr("q_num_heads", after)
    else:
        old_size, new_size = edit.old(0)[3], edit.new(0)[3]
    if len(edit.old(1)) == 3:
        edit.set_attr("kv_num_heads", _alive(edit, 1, 2, int(edit.attrs["kv_num_heads"])))
    if old_size != new_size:
        _keep_scale(edit, old_size)


def _keep_scale(edit: Edit, size: int, unset: float = 0.0) -> None:
    if float(edit.attrs.get("scale", unset) or unset) == unset:
        edit.set_attr("scale", 1.0 / sqrt(size))


def attention_macs(cost: CostContext) -> int:
    """B S T H (D + E), from Q [B, S, H D] (or [B, H, S, D]) and K, V."""
    q, k, y = cost.inputs[0], cost.inputs[1], cost.outputs[0]
    if q is None or k is None or y is None:
        return 0
    tokens = k[1] if len(k) == 3 else k[2]
    past = cost.inputs[4] if len(cost.inputs) > 4 else None
    return (prod(q) + prod(y)) * (tokens + (past[2] if past else 0))


def rotary(ctx: MapContext) -> list[Maps]:
    """RotaryEmbedding(X, cos, sin, position_ids)."""
    return _rotary(ctx, 1, 2)


def rotary_microsoft(ctx: MapContext) -> list[Maps]:
    """com.microsoft::RotaryEmbedding(X, position_ids, cos, sin)."""
    return _rotary(ctx, 2, 3)


def _rotary_sizes(attrs: dict[str, object], shape: Shape, cache: Shape) -> tuple[int, int, int]:
    """Heads, head size and rotated size of X."""
    rotated = int(attrs.get("rotary_embedding_dim") or 0)  # type: ignore[call-overload]
    if len(shape) == 4:
        heads, size = shape[1], shape[3]
    else:
        heads = int(attrs.get("num_heads") or 0)  # type: ignore[call-overload]
        heads = heads or shape[2] // (2 * cache[-1])
        size = shape[2] // heads
    return heads, size, rotated or size


def _rotary(ctx: MapContext, cos: int, sin: int) -> list[Maps]:
    """The two positions of a pair share their angle, which all heads share: pairs leave, at the same offset in every head.

    Of a partly rotated head, the other positions are units of their own.
    """
    shape = ctx.shape(0)
    heads, size, rotated = _rotary_sizes(ctx.attrs, shape, ctx.shape(cos))
    pairs = rotated // 2
    view = (*shape[:2], heads, size) if len(shape) == 3 else shape
    token = 1 if len(shape) == 3 else 2
    labels: tuple[Label, ...] = ("b", "s", "h", "d") if len(shape) == 3 else ("b", "h", "s", "d")
    x = Operand(labels, view, named(tuple(reshape(f, shape, view) for f in ctx.maps(0)), labels))
    x = flatten(ctx, x, (labels[0], labels[token]))
    split = (pairs, 2) if ctx.attr("interleaved", 0) else (2, pairs)
    axis = 1 if ctx.attr("interleaved", 0) else 0
    result: list[Named] = []
    angles: list[Facet] = []
    for f in x.facets:
        if "d" not in f.labels:
            result.append(f)
            continue
        lead = f.ids.shape[:-1]
        turned = f.ids[..., :rotated].reshape(*lead, *split)
        apart = (*range(len(lead)), len(lead) + axis)
        first = ctx.units.align(turned, apart).reshape(pairs)
        angles.append(first)
        if rotated == size:
            both = np.repeat(first, 2) if axis == 1 else np.tile(first, 2)
            result.append(Named(("d",), both))
        else:
            ctx.units.boxes += [turned.reshape(*lead, rotated), f.ids[..., rotated:]]
            result.append(f)
    for i in (cos, sin):
        table = tuple(f"c{a}" for a in range(ctx.rank(i) - 1))
        bind(ctx, i, (*table, "a"), tuple(Named(("a",), ids) for ids in angles) if pairs > 1 else (), flat=table)
    return [tuple(reshape(f, view, shape) for f in unnamed(tuple(result), labels))]


def follow_rotary(edit: Edit) -> None:
    _follow_rotary(edit, 1)


def follow_rotary_microsoft(edit: Edit) -> None:
    _follow_rotary(edit, 2)


def _follow_rotary(edit: Edit, cos: int) -> None:
    before, after = edit.old(0), edit.new(0)
    heads, _, _ = _rotary_sizes(edit.attrs, before, edit.old(cos))
    if edit.attrs.get("rotary_embedding_dim"):
        edit.set_attr("rotary_embedding_dim", 2 * edit.new(cos)[-1])
    if len(before) == 3 and edit.attrs.get("num_heads"):
        edit.set_attr("num_heads", _alive(edit, 0, 2, heads))


# ---------------------------------------------------------------- com.microsoft: attention


def _qkv_sizes(attrs: dict[str, object], columns: int) -> tuple[int, int, int]:
    sizes = [int(n) for n in attrs.get("qkv_hidden_sizes") or ()]  # type: ignore[attr-defined]
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else (columns // 3,) * 3


def packed_attention(ctx: MapContext) -> list[Maps]:
    """Attention(x, W [I, Q + K + V], B, mask, past, bias): projection and attention in one.

    Columns of Q and K are the same units `(head, d)`; those of V are `(head, e)`.
    """
    return packed(ctx, 1, 2, past=4, mask=3, bias=5, scales=())


def packed(
    ctx: MapContext, w: int, b: int, past: int, mask: int, bias: int, scales: tuple[int, ...]
) -> list[Maps]:
    heads = int(ctx.attr("num_heads"))
    q, k, v = _qkv_sizes(ctx.attrs, ctx.shape(w)[1])
    x = flatten(ctx, Operand(("b", "s", "i"), ctx.shape(0), named(ctx.maps(0), ("b", "s", "i"))), TOKENS)
    inner = x.facets
    origin = str(ctx.node)
    qk = ctx.units.issue(q, origin).reshape(heads, q // heads)
    vo = ctx.units.issue(v, origin).reshape(heads, v // heads)
    columns = Named(("c",), np.concatenate([qk.ravel(), qk.ravel(), vo.ravel()]))
    if heads > 1:
        rows = ctx.units.issue(heads)
        ctx.units.row(qk, rows[:, None])
        ctx.units.row(vo, rows[:, None])
        ctx.units.boxes += [a for a in (qk, vo) if a.shape[1] > 1]
        if ctx.has(bias) and ctx.rank(bias) == 4:
            bind(ctx, bias, ("b", "h", "s", "t"), (Named(("h",), rows),) if ctx.shape(bias)[1] > 1 else (), flat=TOKENS)
    bind(ctx, w, ("i", "c"), (*inner, columns))
    bind(ctx, b, ("c",), (columns,))
    for i in scales:
        if ctx.has(i) and ctx.rank(i) == 1 and ctx.shape(i)[0] > 1:
            bind(ctx, i, ("c",), (columns,))
    if q != k or ctx.has(past) or ctx.attr("do_rotary", 0) or (len(ctx.node.outputs) > 1 and ctx.node.outputs[1]):
        reason = "keeps its heads: it has a cache, or turns positions inside"
        ctx.pin([columns.ids], reason)
        return [(), *[() for _ in ctx.node.outputs[1:]]]
    return [(vo.reshape(1, 1, v),), *[() for _ in ctx.node.outputs[1:]]]


def follow_packed(edit: Edit) -> None:
    before = int(edit.attrs["num_heads"])
    q, _, v = _qkv_sizes(edit.attrs, edit.old(1)[1])
    kept: Array = edit.kept(1, 1)
    if kept.all():
        return
    new_q, new_v = int(kept[:q].sum()), int(kept[2 * q :].sum())
    after = int(kept[2 * q :].reshape(before, -1).any(axis=1).sum())
    edit.set_attr("num_heads", after)
    if new_q != new_v or edit.attrs.get("qkv_hidden_sizes"):
        edit.set_attr("qkv_hidden_sizes", [new_q, new_q, new_v])
    if q // before != new_q // after:
        _keep_scale(edit, q // before)


def silence_packed(edit: MaskEdit) -> None:
    """Queries, keys and values live inside: their columns of the projection become zero."""
    silence(edit, 1, 2)


def silence(edit: MaskEdit, *inputs: int) -> None:
    """Constants are zero where something has been removed."""
    for i in inputs:
        value = edit.constant(i)
        if value is not None:
            edit.set_constant(i, np.where(edit.removed(i), value.dtype.type(0), value))


def packed_macs(cost: CostContext) -> int:
    """B S I (Q + K + V) + B S S (Q + V)"""
    x, weight, y = cost.inputs[0], cost.inputs[1], cost.outputs[0]
    if x is None or weight is None or y is None:
        return 0
    q = (weight[1] - y[2]) // 2
    return prod(x) * weight[1] + x[0] * x[1] * x[1] * (q + y[2])


def multi_head(ctx: MapContext) -> list[Maps]:
    """MultiHeadAttention(query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value, …)."""
    heads = int(ctx.attr("num_heads"))
    extra = [i for i in (8, 9) if ctx.has(i)]
    if ctx.rank(0) == 5 or (ctx.has(1) and ctx.rank(1) == 5) or extra or not ctx.has(2):
        for i in (0, 1, 2, 3, 6, 7):
            if ctx.has(i):
                ctx.pin(ctx.maps(i), "has packed projections or a shared cache, whose layout its rule does not cover")
        return ctx.nothing()
    q, k, v = _heads(ctx, 0, heads, "s", "d"), _heads(ctx, 1, heads, "t", "d"), _heads(ctx, 2, heads, "t", "e")
    if ctx.has(3):
        q, k, v = _biased(ctx, q, k, v, heads)
    k, present_key = _cached(ctx, k, 6, 1, "d", heads)
    v, present_value = _cached(ctx, v, 7, 2, "e", heads)
    scores, y = _attend(ctx, q, k, v, 5, groups=heads)
    maps = _joined(y, heads, 1, ctx.out_shape()[2] // heads, ctx.out_shape())
    return [maps, present_key, present_value, unnamed(scores.facets, scores.labels)][: len(ctx.node.outputs)]


def _biased(ctx: MapContext, q: Operand, k: Operand, v: Operand, heads: int) -> tuple[Operand, Operand, Operand]:
    """One bias over the columns of Q, K and V in turn, each `[head, size]`.

    All that a constant bias needs is known once Q and K are tied; a computed one is rare and keeps its positions.
    """
    sizes = [a.size(x) for a, x in ((q, "d"), (k, "d"), (v, "e"))]
    if not ctx.is_lazy(3):
        for a in (q, k, v):
            ctx.pin([f.ids for f in a.facets], "adds a bias that is computed")
        ctx.pin(ctx.maps(3), "adds it as a bias to queries, keys and values")
        return q, k, v
    whole: list[Facet] = []
    start = 0
    total = sum(heads * n for n in sizes)
    for a, n, label in ((q, sizes[0], "d"), (k, sizes[1], "d"), (v, sizes[2], "e")):
        for f in a.facets:
            part = np.broadcast_to(f.over(("g", label)), (heads, n)).reshape(-1)
            facet = np.full(total, -1, np.int64)
            facet[start : start + heads * n] = part
            whole.append(facet)
        start += heads * n
    ctx.give(3, whole)
    return q, k, v


def silence_bias(edit: MaskEdit) -> None:
    silence(edit, 3)


def follow_multi_head(edit: Edit) -> None:
    before = int(edit.attrs["num_heads"])
    if len(edit.old(0)) != 3 or (edit.old(0), edit.old_out()) == (edit.new(0), edit.new_out()):
        return
    after = _alive(edit, 0, 2, before)
    edit.set_attr("num_heads", after)
    if edit.old(0)[2] // before != edit.new(0)[2] // after:
        _keep_scale(edit, edit.old(0)[2] // before)


def grouped_query(ctx: MapContext) -> list[Maps]:
    """GroupQueryAttention(query, key, value, past_key, past_value, …): its kernels want head sizes in steps of 8, so whole
    groups (a key/value head with its queries) leave.
    """
    heads, groups = int(ctx.attr("num_heads")), int(ctx.attr("kv_num_heads"))
    repeats = heads // groups
    if not ctx.has(1) or any(ctx.has(i) for i in range(11, len(ctx.node.inputs))):
        for i in range(len(ctx.node.inputs)):
            if ctx.has(i) and not ctx.is_lazy(i):
                ctx.pin(ctx.maps(i), "has packed projections or normalizes inside, which its rule does not cover")
        return ctx.nothing()
    rows = ctx.units.issue(groups)
    for i in (0, 1, 2):
        n = repeats if i == 0 else 1
        for f in _heads(ctx, i, groups, "s", "d", n).facets:
            ids = f.over(("g", "r", "d") if n > 1 else ("g", "d"))
            if "g" in f.labels:
                first = ctx.units.align(ids, tuple(range(1, ids.ndim)))
                ctx.units.tie(first.ravel(), rows, ctx.because("keeps whole heads"))
            else:
                ctx.pin([ids], "keeps its head size")
        if not ctx.maps(i):
            ctx.pin([rows], f"has no removable index in input {i} ('{ctx.node.inputs[i]}')")
    out: Maps = ()
    if groups > 1:
        for i in (3, 4):
            bind(ctx, i, ("b", "g", "p", "d"), (Named(("g",), rows),), flat=("b", "p"))
        shape = ctx.out_shape()
        view = (*shape[:2], groups, shape[2] // groups)
        out = (reshape(rows.reshape(1, 1, groups, 1), view, shape),)
    else:
        ctx.pin([rows], "has one group")
    present: Maps = (rows.reshape(1, groups, 1, 1),) if groups > 1 else ()
    if ctx.has(10):
        ctx.pin(ctx.maps(10), "is added to its scores") if not ctx.is_lazy(10) else None
        if ctx.shape(10)[1] > 1:
            ctx.pin([rows], "adds a bias per head")
    return [out, present, present, *[() for _ in ctx.node.outputs[3:]]][: len(ctx.node.outputs)]


def follow_groups(edit: Edit) -> None:
    heads, groups = int(edit.attrs["num_heads"]), int(edit.attrs["kv_num_heads"])
    edit.set_attr("num_heads", _alive(edit, 0, 2, heads))
    edit.set_attr("kv_num_heads", _alive(edit, 1, 2, groups))


def grouped_macs(cost: CostContext) -> int:
    q, k, y = cost.inputs[0], cost.inputs[1], cost.outputs[0]
    present = cost.outputs[1] if len(cost.outputs) > 1 else None
    if q is None or k is None or y is None:
        return 0
    return (prod(q) + prod(y)) * (present[2] if present else k[1])


RULES = [
    Rule(("Attention",), "contraction", attention, adjust=follow_heads, macs=attention_macs),
    Rule(("RotaryEmbedding",), "pointwise", rotary, adjust=follow_rotary),
    Rule(("com.microsoft::RotaryEmbedding",), "pointwise", rotary_microsoft, adjust=follow_rotary_microsoft),
    Rule(
        ("com.microsoft::Attention",),
        "contraction",
        packed_attention,
        adjust=follow_packed,
        macs=packed_macs,
        reference=silence_packed,
    ),
    Rule(
        ("com.microsoft::MultiHeadAttention",),
        "contraction",
        multi_head,
        adjust=follow_multi_head,
        macs=attention_macs,
        reference=silence_bias,
    ),
    Rule(
        ("com.microsoft::GroupQueryAttention",),
        "contraction",
        grouped_query,
        adjust=follow_groups,
        macs=grouped_macs,
        note="whole groups of heads leave; the head size stays",
    ),
]
