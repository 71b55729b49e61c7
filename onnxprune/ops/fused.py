"""What ONNX Runtime's optimizer and model builders make of matrix products, embeddings and biases (com.microsoft).

FusedMatMul   y = alpha A' B'     transA swaps the last two axes; transBatchA moves the first axis before the last
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.groups.maps import Facet, Maps, simplify, varying
from onnxprune.groups.units import Ids
from onnxprune.ops.base import CostContext, Edit, MapContext, Rule
from onnxprune.ops.labelled import Label, Named, Operand, bind, combine, named, operand, unnamed
from onnxprune.ops.linear import Blocks, Linear, LinearContext, unpacked
from onnxprune.ops.matmul import gemm, gemm_macs, gemm_weights
from onnxprune.ops.pointwise import broadcast, tie_blocks


def _labels(
    rank: int, batch: int, inner: tuple[Label, Label], transposed: bool, batch_transposed: bool
) -> tuple[Label, ...]:
    """Labels of an operand; `inner` are those of its last two axes once every transposition is done."""
    if rank == 1:
        return ("k",)
    outer = tuple(f"b{a}" for a in range(batch - (rank - 2), batch))
    before, last = inner[::-1] if transposed else inner
    return (before, *outer, last) if batch_transposed else (*outer, before, last)


def fused_matmul(ctx: MapContext) -> list[Maps]:
    batch = max(ctx.rank(0), ctx.rank(1), 2) - 2
    sides = (("A", ("m", "k")), ("B", ("k", "n")))
    a, b = (
        operand(
            ctx,
            i,
            _labels(ctx.rank(i), batch, inner, bool(ctx.attr(f"trans{x}", 0)), bool(ctx.attr(f"transBatch{x}", 0))),
        )
        for i, (x, inner) in enumerate(sides)
    )
    lead = tuple(f"b{x}" for x in range(batch))
    out = (*lead, *(("m",) if ctx.rank(0) > 1 else ()), *(("n",) if ctx.rank(1) > 1 else ()))
    return [unnamed(combine(ctx, a, b, out, weight=True), out)]


def fused_matmul_macs(cost: CostContext) -> int:
    a, out = cost.inputs[0], cost.outputs[0]
    if not a or out is None:
        return 0
    labels = _labels(
        len(a),
        max(len(a) - 2, 0),
        ("m", "k"),
        bool(cost.attrs.get("transA", 0)),
        bool(cost.attrs.get("transBatchA", 0)),
    )
    return prod(out) * a[labels.index("k")]


def fused_matmul_weights(ctx: LinearContext) -> list[tuple[int, int]]:
    places = []
    for i, (x, inner) in enumerate((("A", ("m", "k")), ("B", ("k", "n")))):
        rank = len(ctx.shape(i))
        turned = bool(ctx.attrs.get(f"trans{x}", 0)), bool(ctx.attrs.get(f"transBatch{x}", 0))
        places.append((i, _labels(rank, max(rank - 2, 0), inner, *turned).index("k")))
    return places


# ---------------------------------------------------------------- weights in blocks of few bits


def block_matmul(ctx: MapContext) -> list[Maps]:
    """MatMulNBits(A, B, scales, zero_points, g_idx, bias): y = A dequantize(B)'.

    N, one row of every table, can be pruned, and of K whole blocks (where zero points are packed, as many as share a byte).
    """
    n, last = int(ctx.attr("N")), ctx.rank() - 1
    tables = [i for i in (1, 2, 3, 5) if ctx.has(i)]
    if ctx.attr("weight_prepacked", 0) or any(not ctx.is_lazy(i) or prod(ctx.shape(i)) % n for i in tables):
        return [ctx.pin_axes(0, (last,), "has weights that are packed or computed")]
    blocks = _contracted_blocks(ctx, last)
    ids = ctx.units.issue(n, str(ctx.node))
    for i in tables:
        shape, rest = ctx.shape(i), prod(ctx.shape(i)) // n
        mine: list[Facet] = []
        for block in blocks if i != 5 else ():
            if len(shape) == 3:
                mine.append(block.reshape(1, -1, 1))
                continue
            of_row = np.repeat(block, rest // block.size) if rest >= block.size else block[:: block.size // rest]
            mine.append(np.tile(of_row, n) if shape[0] != n else of_row.reshape(1, -1))
        if shape[0] == n:
            ctx.give(i, [ids.reshape(n, *[1] * (len(shape) - 1)), *mine])
        else:  # the rows of all N, one after the other
            ctx.give(i, [np.repeat(ids, rest), *mine])
    kept = [f for f in ctx.maps(0) if f.shape[last] == 1]
    return [simplify([*kept, ids.reshape(*[1] * last, n)])]


def _contracted_blocks(ctx: MapContext, last: int) -> list[Ids]:
    """Units of the blocks along the contracted axis, per facet of A; those that have to stay are pinned."""
    k, size, bits = int(ctx.attr("K")), int(ctx.attr("block_size")), int(ctx.attr("bits", 4))
    facets = [f for f in ctx.maps(0) if f.shape[last] > 1]
    is_packed = ctx.has(3) and prod(ctx.shape(3)) != int(ctx.attr("N")) * (k // size)
    together = size * (8 // bits if is_packed else 1)
    if ctx.has(4) or k % together or any(varying(f) != (last,) for f in facets):
        ctx.pin(facets, f"quantizes its weights in blocks of {together} along the contracted axis (of {k})")
        return []
    found = []
    for facet in facets:
        tie_blocks(ctx, facet.ravel(), together)
        found.append(facet.ravel()[::size])
    return found


def gather_blocks(ctx: MapContext) -> list[Maps]:
    """GatherBlockQuantized(table, indices, scales, zero_points): rows of a table whose width is quantized in blocks; whole blocks go."""
    size, tables = int(ctx.attr("block_size", 128)), [i for i in (0, 2, 3) if ctx.has(i)]
    width, last = ctx.out_shape()[-1], len(ctx.out_shape()) - 1
    by_row = ctx.axis(0, "gather_axis") == 0 and ctx.axis(1, "quantize_axis") == ctx.rank() - 1 == 1
    entries = [ctx.shape(i)[-1] for i in tables]
    count = width // size
    fits = width % size == 0 and all(n % count == 0 or count % n == 0 for n in entries)
    if not by_row or not fits or any(not ctx.is_lazy(i) or ctx.rank(i) != 2 for i in tables):
        for i in tables:
            ctx.pin(ctx.maps(i) if not ctx.is_lazy(i) else (), f"quantizes its table in blocks of {size}")
        return ctx.nothing()
    ids = ctx.units.issue(count, str(ctx.node))
    shared = max(count // n for n in entries) if min(entries) < count else 1  # blocks whose zero points share a byte
    if shared > 1:
        tie_blocks(ctx, ids, shared)
    for i, n in zip(tables, entries, strict=True):
        ctx.give(i, [(np.repeat(ids, n // count) if n >= count else ids[:: count // n]).reshape(1, n)])
    return [(np.repeat(ids, size).reshape(*[1] * last, width),)]


def follow_blocks(edit: Edit) -> None:
    for name, before, after in (
        ("N", edit.old_out()[-1], edit.new_out()[-1]),
        ("K", edit.old(0)[-1], edit.new(0)[-1]),
    ):
        if before != after:
            edit.set_attr(name, after)


def block_linear(ctx: LinearContext) -> Linear | None:
    """Codes that are stored, with scales and zero points; the bias is input 5, or what an Add behind the node adds."""
    n, k, size, bits = (int(ctx.attrs.get(x, d)) for x, d in (("N", 0), ("K", 0), ("block_size", 0), ("bits", 4)))
    is_stored = all(not ctx.has(i) or ctx.is_constant[i] for i in (1, 2, 3, 5))
    if (
        not is_stored
        or ctx.is_constant[0]
        or ctx.has(4)
        or ctx.attrs.get("weight_prepacked", 0)
        or bits not in (2, 4, 8)
    ):
        return None
    scales, points = ctx.value(2), ctx.value(3)
    blocks = -(-k // size)
    if scales is None or scales.size != n * blocks or prod(ctx.shape(1)) != n * blocks * size * bits // 8:
        return None
    zeros = np.full((n, blocks), 1 << (bits - 1))
    if points is not None:
        rows = points.reshape(n, -1)
        zeros = (unpacked(rows, bits) if rows.dtype == np.uint8 else rows)[:, :blocks]
    return Blocks(
        k,
        b=5 if ctx.has(5) else None,
        bits=bits,
        size=size,
        stored=ctx.shape(1),
        scales=scales.reshape(n, blocks).astype(np.float64),
        zeros=zeros.astype(np.float64),
    )


def block_macs(cost: CostContext) -> int:
    out = cost.outputs[0]
    return 0 if out is None else prod(out) * int(cost.attrs.get("K", 0))


# ---------------------------------------------------------------- embeddings and biases


def embed_layer_norm(ctx: MapContext) -> list[Maps]:
    """EmbedLayerNormalization(ids, segments, words [V, H], positions, segments, gamma [H], beta, …): the sum of three rows."""
    width = ctx.shape(2)[1]
    ids = ctx.units.issue(width, str(ctx.node))
    units = (Named(("h",), ids),) if width > 1 else ()
    for i in (2, 3, 4):
        bind(ctx, i, (f"v{i}", "h"), units)
    for i in (5, 6):
        bind(ctx, i, ("h",), units)
    ctx.approximate(ids, (0,), "takes mean and variance over the embedding axis")
    wide = unnamed(units, ("b", "s", "h"))
    return [wide if k in (0, 2) else () for k in range(len(ctx.node.outputs))]


def bias_add(ctx: MapContext) -> list[Maps]:
    """BiasAdd(X, bias, skip)"""
    return [broadcast(ctx, [i for i in range(3) if ctx.has(i)])]


def bias_split_gelu(ctx: MapContext) -> list[Maps]:
    """BiasSplitGelu(X [.., 2H], bias): with X + bias = (a, b), y = a gelu(b); both halves lose the same offsets."""
    half = ctx.out_shape()[-1]
    labels = tuple(str(a) for a in range(ctx.rank()))
    x = Operand(labels, ctx.shape(0), named(ctx.maps(0), labels))
    facets = unnamed(combine(ctx, x, operand(ctx, 1, labels[-1:]), labels, what="its bias"), labels)
    sizes = (*ctx.shape(0)[:-1], half)

    def part(start: int) -> Operand:
        cut = tuple(f[..., start : start + half] if f.shape[-1] > 1 else f for f in facets)
        return Operand(labels, sizes, named(cut, labels))

    return [unnamed(combine(ctx, part(0), part(half), labels, what="its other half"), labels)]


def nhwc_pool(ctx: MapContext) -> list[Maps]:
    """Pooling of [N, S.., C], channel by channel."""
    return [ctx.flat_axes(ctx.maps(0), tuple(range(1, ctx.rank() - 1)))]


def gated(ctx: MapContext) -> list[Maps]:
    """SwiGLU(A, B) and the like: operands of one shape, position by position."""
    return [broadcast(ctx, [i for i in range(len(ctx.node.inputs)) if ctx.has(i)])]


def causal_conv(ctx: MapContext) -> list[Maps]:
    """CausalConvWithState(x [B, C, L], W [C, 1, k], bias [C], past [B, C, k-1]): depthwise over time."""
    labels = ("b", "c", "l")
    facets = ctx.flat_axes(ctx.maps(0), (0, 2))
    result = Operand(labels, ctx.shape(0), named(facets, labels))
    for i, own in ((1, ("c", "o", "k")), (2, ("c",)), (3, ("b", "c", "p"))):
        if ctx.has(i):
            if not ctx.is_lazy(i):
                ctx.pin_axes(i, tuple(a for a, x in enumerate(own) if x != "c"), "keeps its other axes")
            facets = unnamed(combine(ctx, result, operand(ctx, i, own), labels, what=f"input {i}"), labels)
            result = Operand(labels, ctx.shape(0), named(facets, labels))
    return [unnamed(result.facets, labels)] * len(ctx.node.outputs)


def causal_conv_macs(cost: CostContext) -> int:
    w, out = cost.inputs[1], cost.outputs[0]
    return 0 if w is None or out is None else prod(out) * prod(w[1:])


RULES = [
    Rule(
        ("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul"),
        "contraction",
        fused_matmul,
        macs=fused_matmul_macs,
        weights=fused_matmul_weights,
    ),
    Rule(("com.microsoft::FusedGemm",), "contraction", gemm, macs=gemm_macs, weights=gemm_weights),
    Rule(
        ("com.microsoft::MatMulNBits",),
        "contraction",
        block_matmul,
        adjust=follow_blocks,
        macs=block_macs,
        linear=block_linear,
        note="of the contracted axis, whole blocks go",
    ),
    Rule(("com.microsoft::GatherBlockQuantized",), "movement", gather_blocks, note="of the width, whole blocks go"),
    Rule(("com.microsoft::EmbedLayerNormalization",), "normalization (approximate)", embed_layer_norm),
    Rule(("com.microsoft::BiasAdd",), "pointwise", bias_add),
    Rule(("com.microsoft::BiasSplitGelu",), "pointwise", bias_split_gelu),
    Rule(("com.microsoft::NhwcMaxPool",), "pooling", nhwc_pool),
    Rule(("SwiGLU",), "pointwise", gated),
    Rule(
        ("CausalConvWithState",),
        "contraction",
        causal_conv,
        macs=causal_conv_macs,
    ),
]
