"""Attention in one node: ai.onnx Attention and RotaryEmbedding, and what ONNX Runtime fuses transformers into.

    scores[b, h, s, t] = scale * sum_d Q[b, h, s, d] K[b, h, t, d]
    Y[b, h, s, e]      = sum_t softmax(scores)[b, h, s, t] V[b, h, t, e]

A contraction twice over, so the labels say it all: Q and K lose the same `d` of a head, V and Y the same `e`, and a
head goes when all of its `d` and `e` go. Keys and values that several query heads share are repeated, map and all, as
the operator repeats them. The scale stays 1/sqrt of the *original* head size.
"""

from __future__ import annotations

from math import prod, sqrt

import numpy as np

from onnxprune.groups.maps import Facet, Maps, Shape, reshape, varying
from onnxprune.groups.observation import Array
from onnxprune.ops.base import CostContext, Edit, MapContext, MaskEdit, Rule, weights_at
from onnxprune.ops.labelled import Label, Named, Operand, bind, combine, flatten, named, operand, unnamed

TOKENS: tuple[Label, ...] = ("b", "s", "t", "p")


def _by_head(shape: Shape, heads: int) -> Shape:
    """[B, S, H*D] as [B, S, H, D]; a tensor of four axes has its heads apart already."""
    return (*shape[:2], heads, shape[2] // heads) if len(shape) == 3 else shape


def _head_labels(rank: int, token: Label, size: Label) -> tuple[Label, ...]:
    return ("b", token, "h", size) if rank == 3 else ("b", "h", token, size)


def _heads(ctx: MapContext, i: int, heads: int, token: Label, size: Label) -> Operand:
    """Input `i` with its heads told apart and its batch and sequence axes left alone."""
    labels = _head_labels(ctx.rank(i), token, size)
    view = _by_head(ctx.shape(i), heads)
    facets = tuple(reshape(f, ctx.shape(i), view) for f in ctx.maps(i))
    ctx.units.boxes += [f for f in facets if len(varying(f)) > 1]
    return flatten(ctx, Operand(labels, view, named(facets, labels)), TOKENS)


def _repeated(a: Operand, repeats: int) -> Operand:
    """Each head of keys or values, for every query head that reads it. A single one has no head axis to repeat."""
    if repeats == 1 or a.size("h") == 1:
        return a
    facets = tuple(
        Named(f.labels, np.repeat(f.ids, repeats, axis=f.labels.index("h"))) if "h" in f.labels else f for f in a.facets
    )
    sizes = tuple(n * repeats if x == "h" else n for x, n in zip(a.labels, a.sizes, strict=True))
    return Operand(a.labels, sizes, facets)


def _attend(
    ctx: MapContext, q: Operand, k: Operand, v: Operand, bias: int
) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    """Units of the scores [B, H, S, T], and of the output over `h` and `e`."""
    out = ("b", "h", "s", "t")
    sizes = (q.size("b"), q.size("h"), q.size("s"), k.size("t"))
    scores = combine(ctx, q, k, out, what="its keys")
    if ctx.has(bias):
        own = out[4 - ctx.rank(bias) :]
        added = flatten(ctx, operand(ctx, bias, own), TOKENS)
        scores = combine(ctx, Operand(out, sizes, scores), added, out, what=f"its bias (input {bias})")
    return scores, combine(ctx, Operand(out, sizes, scores), v, ("b", "s", "h", "e"), what="its values")


def _cached(ctx: MapContext, new: Operand, i: int, size: Label) -> tuple[Operand, Maps]:
    """Keys or values [B, H, T, D] after those of the past, which are the present."""
    present = ("b", "h", "t", size)
    if not ctx.has(i):
        return new, unnamed(new.facets, present)
    past = flatten(ctx, operand(ctx, i, ("b", "h", "p", size)), TOKENS)
    facets = combine(ctx, new, past, present, what="the cache")
    return Operand(present, tuple(new.size(x) for x in present), facets), unnamed(facets, present)


def _merged(facets: tuple[Named, ...], heads: int, shape: Shape) -> Maps:
    """Facets over `h` and `e` as those of the output."""
    view = _by_head(shape, heads)
    return tuple(reshape(f, view, shape) for f in unnamed(facets, _head_labels(len(shape), "s", "e")))


# ---------------------------------------------------------------- ai.onnx


def attention(ctx: MapContext) -> list[Maps]:
    """Attention(Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen), in three or four dimensions."""
    heads = int(ctx.attr("q_num_heads")) if ctx.rank(0) == 3 else ctx.shape(0)[1]
    shared = int(ctx.attr("kv_num_heads")) if ctx.rank(1) == 3 else ctx.shape(1)[1]
    q, k, v = _heads(ctx, 0, heads, "s", "d"), _heads(ctx, 1, shared, "t", "d"), _heads(ctx, 2, shared, "t", "e")
    k, present_key = _cached(ctx, k, 4, "d")
    v, present_value = _cached(ctx, v, 5, "e")
    repeats = heads // shared
    scores, y = _attend(ctx, q, _repeated(k, repeats), _repeated(v, repeats), 3)
    raw = unnamed(scores, ("b", "h", "s", "t"))
    return [_merged(y, heads, ctx.out_shape()), present_key, present_value, raw][: len(ctx.node.outputs)]


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
    pairs, interleaved = rotated // 2, bool(ctx.attr("interleaved", 0))
    view, labels = _by_head(shape, heads), _head_labels(len(shape), "s", "d")
    x = Operand(labels, view, named(tuple(reshape(f, shape, view) for f in ctx.maps(0)), labels))
    x = flatten(ctx, x, TOKENS)
    angles: list[Named] = []
    for f in x.facets:
        if "d" not in f.labels:
            continue
        lead = f.ids.shape[:-1]
        turned, rest = f.ids[..., :rotated], f.ids[..., rotated:]
        split = turned.reshape(*lead, *((pairs, 2) if interleaved else (2, pairs)))
        pair = ctx.units.align(split, (len(lead) + interleaved,)).reshape(*lead, pairs)
        if lead:
            ctx.units.boxes += [turned, *([rest] if rotated < size else [])]
            pair = ctx.units.column(pair, tuple(range(len(lead)))).reshape(pairs)
        angles.append(Named(("a",), pair))
    for i in (cos, sin):
        table = tuple(f"c{a}" for a in range(ctx.rank(i) - 1))
        bind(ctx, i, (*table, "a"), tuple(angles) if pairs > 1 else (), flat=table)
    return [tuple(reshape(f, view, shape) for f in unnamed(x.facets, labels))]


def follow_rotary(edit: Edit) -> None:
    _follow_rotary(edit, 1)


def follow_rotary_microsoft(edit: Edit) -> None:
    _follow_rotary(edit, 2)


def _follow_rotary(edit: Edit, cos: int) -> None:
    before = edit.old(0)
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
    return packed(ctx, 1, 2, past=4, bias=5)


def packed(ctx: MapContext, w: int, b: int, past: int, bias: int, scales: tuple[int, ...] = ()) -> list[Maps]:
    """Projection `w` with bias `b`, a cache `past`, a bias of the scores, and `scales` along the columns."""
    heads = int(ctx.attr("num_heads"))
    q, k, v = _qkv_sizes(ctx.attrs, ctx.shape(w)[1])
    labels: tuple[Label, ...] = ("b", "s", "i")
    inner = flatten(ctx, Operand(labels, ctx.shape(0), named(ctx.maps(0), labels)), TOKENS).facets
    result: list[Maps] = ctx.nothing()
    has_cache = ctx.has(past) or any(ctx.node.outputs[1:])
    if q != k or ctx.attr("do_rotary", 0) or (has_cache and (q != v or heads == 1)):
        ids = ctx.units.issue(ctx.shape(w)[1], str(ctx.node))
        ctx.units.boxes.append(ids)
        ctx.pin(
            [ids], "turns positions inside, or has keys, queries or cached values of several sizes, and keeps its heads"
        )
        bind(ctx, w, ("i", "c"), (*inner, Named(("c",), ids)))
        return result
    qk = ctx.units.issue(q, str(ctx.node)).reshape(heads, q // heads)
    vo = ctx.units.issue(v, str(ctx.node)).reshape(heads, v // heads)
    ctx.units.boxes += [qk, vo]  # no activation shows Q and K
    cache: tuple[Named, ...] = ()
    if heads > 1:
        rows = ctx.units.issue(heads)
        ctx.units.row(qk, rows[:, None])
        ctx.units.row(vo, rows[:, None])
        if ctx.has(bias):
            per_head = (Named(("h",), rows),) if ctx.shape(bias)[1] > 1 else ()
            bind(ctx, bias, ("b", "h", "s", "t"), per_head, flat=TOKENS)
        cache = _packed_cache(ctx, (qk, vo), rows, past) if has_cache else ()
    columns = Named(("c",), np.concatenate([qk.ravel(), qk.ravel(), vo.ravel()]))
    bind(ctx, w, ("i", "c"), (*inner, columns))
    for i in (b, *scales):
        if ctx.has(i) and ctx.rank(i) == 1 and ctx.shape(i)[0] > 1:
            bind(ctx, i, ("c",), (columns,))
    result[0] = (vo.reshape(1, 1, v),)
    for i in range(1, len(result)):
        result[i] = unnamed(cache, ("2", "b", "h", "t", "d"))
    return result


def _packed_cache(ctx: MapContext, pair: tuple[Facet, Facet], rows: Facet, past: int) -> tuple[Named, ...]:
    """Keys and values [2, B, H, T, D] in one tensor: they lose the same heads and, in all heads, the same positions."""
    offsets = [ctx.units.column(ids, (0,)).ravel() for ids in pair]
    ctx.units.tie(offsets[0], offsets[1])
    cache = (Named(("h",), rows), *((Named(("d",), offsets[0]),) if offsets[0].size > 1 else ()))
    bind(ctx, past, ("2", "b", "h", "p", "d"), cache, flat=("2", *TOKENS))
    return cache


def follow_packed(edit: Edit) -> None:
    before = int(edit.attrs["num_heads"])
    q, _, _ = _qkv_sizes(edit.attrs, edit.old(1)[1])
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
        _add_bias(ctx, (q, k, v), heads)
    k, present_key = _cached(ctx, k, 6, "d")
    v, present_value = _cached(ctx, v, 7, "e")
    scores, y = _attend(ctx, q, k, v, 5)
    raw = unnamed(scores, ("b", "h", "s", "t"))
    return [_merged(y, heads, ctx.out_shape()), present_key, present_value, raw][: len(ctx.node.outputs)]


def _add_bias(ctx: MapContext, operands: tuple[Operand, ...], heads: int) -> None:
    """One bias over the columns of Q, K and V in turn, each `[head, size]`. One that is computed keeps its positions."""
    if not ctx.is_lazy(3):
        for a in operands:
            ctx.pin([f.ids for f in a.facets], "adds a bias that is computed")
        ctx.pin(ctx.maps(3), "adds it as a bias to queries, keys and values")
        return
    whole: list[Facet] = []
    start, total = 0, ctx.shape(3)[0]
    for a in operands:
        label = a.labels[-1]
        width = heads * a.size(label)
        for f in a.facets:
            facet = np.full(total, -1, np.int64)
            facet[start : start + width] = np.broadcast_to(f.over(("h", label)), (heads, a.size(label))).ravel()
            whole.append(facet)
        start += width
    ctx.give(3, whole)


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
    """GroupQueryAttention(query, key, value, past_key, past_value, lengths, total, cos, sin, positions, bias, …).

    Its kernels take head sizes in steps of 8 only, so that whole groups leave: a key/value head with its queries.
    """
    groups = int(ctx.attr("kv_num_heads"))
    other_forms = not ctx.has(1) or any(ctx.has(i) for i in range(11, len(ctx.node.inputs)))
    if other_forms or groups == 1 or (ctx.has(10) and ctx.shape(10)[1] > 1):
        for i in range(len(ctx.node.inputs)):
            if ctx.has(i) and not ctx.is_lazy(i):
                ctx.pin(ctx.maps(i), "has one group, packed projections or a bias per head, and keeps its heads")
        return ctx.nothing()
    rows = ctx.units.issue(groups)
    for i in (0, 1, 2):
        labels = ("b", "s", "h", "d")
        maps = tuple(reshape(f, ctx.shape(i), _by_head(ctx.shape(i), groups)) for f in ctx.maps(i))
        facets = flatten(ctx, Operand(labels, _by_head(ctx.shape(i), groups), named(maps, labels)), TOKENS).facets
        for f in facets:
            if "h" not in f.labels:
                ctx.pin([f.ids], "keeps its head size")
                continue
            first = ctx.units.align(f.ids, (1,)) if f.ids.ndim > 1 else f.ids
            ctx.units.tie(first.ravel(), rows, ctx.because("keeps whole heads"))
        if not any("h" in f.labels for f in facets):
            ctx.units.pin(rows, ctx.unmatched(f"has no removable index in input {i} ('{ctx.node.inputs[i]}')"))
    for i in (3, 4):
        bind(ctx, i, ("b", "h", "p", "d"), (Named(("h",), rows),), flat=("b", "p"))
    shape = ctx.out_shape()
    out = reshape(rows.reshape(1, 1, groups, 1), _by_head(shape, groups), shape)
    present = rows.reshape(1, groups, 1, 1)
    return [(out,), (present,), (present,), *[() for _ in ctx.node.outputs[3:]]][: len(ctx.node.outputs)]


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
        weights=weights_at((1, 0)),
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
