"""Matrix products: MatMul, Gemm, Einsum.

    MatMul   y[b.., m, n] = sum_k a[b.., m, k] b[b.., k, n]

The contracted axes of both operands are tied; a constant operand offers fresh units on its other axis. Batch axes are rows:
an attention head goes with everything that is computed per head.
"""

from __future__ import annotations

from math import prod

from onnxprune.groups.maps import Maps
from onnxprune.ops.base import CostContext, MapContext, Rule
from onnxprune.ops.labelled import Operand, combine, named, operand, reduce_labels, unnamed
from onnxprune.ops.linear import Linear, LinearContext, Product


def _labels(ctx: MapContext, i: int, rank: int, inner: tuple[str, str]) -> tuple[str, ...]:
    if ctx.rank(i) == 1:
        return ("k",)
    batch = tuple(f"b{a}" for a in range(rank - 2))
    return (*batch[len(batch) - (ctx.rank(i) - 2) :], *inner)


def matmul(ctx: MapContext) -> list[Maps]:
    rank = max(ctx.rank(0), ctx.rank(1), 2)
    a = operand(ctx, 0, _labels(ctx, 0, rank, ("m", "k")))
    b = operand(ctx, 1, _labels(ctx, 1, rank, ("k", "n")))
    batch = tuple(f"b{x}" for x in range(rank - 2))
    out = (*batch, *(("m",) if ctx.rank(0) > 1 else ()), *(("n",) if ctx.rank(1) > 1 else ()))
    return [unnamed(combine(ctx, a, b, out, weight=True), out)]


def matmul_macs(cost: CostContext) -> int:
    a, out = cost.inputs[0], cost.outputs[0]
    return 0 if a is None or out is None or not a else prod(out) * a[-1]


def gemm(ctx: MapContext) -> list[Maps]:
    """Y = alpha A' B' + beta C; A' [M, K], B' [K, N], C broadcasts to [M, N]."""
    a = operand(ctx, 0, ("k", "m") if ctx.attr("transA", 0) else ("m", "k"))
    b = operand(ctx, 1, ("n", "k") if ctx.attr("transB", 0) else ("k", "n"))
    out = ("m", "n")
    result = Operand(out, ctx.out_shape(), combine(ctx, a, b, out, weight=True))
    if ctx.has(2):
        c = operand(ctx, 2, out[2 - ctx.rank(2) :])
        result = Operand(out, ctx.out_shape(), combine(ctx, result, c, out, what="its bias"))
    return [unnamed(result.facets, out)]


def gemm_macs(cost: CostContext) -> int:
    a, out = cost.inputs[0], cost.outputs[0]
    if a is None or out is None or len(a) != 2:
        return 0
    return prod(out) * a[0 if cost.attrs.get("transA", 0) else 1]


def terms(equation: str, ranks: list[int], out_rank: int) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Labels per operand and of the output of an einsum equation; `...` becomes labels `.0`, `.1`, right-aligned."""
    left, _, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")

    def spell(term: str, rank: int, width: int) -> tuple[str, ...]:
        if "..." not in term:
            return tuple(term)
        before, after = term.split("...")
        n = rank - len(before) - len(after)
        return (*before, *(f".{a}" for a in range(width - n, width)), *after)

    width = max((r - len(t) + 3 for t, r in zip(operands, ranks, strict=True) if "..." in t), default=0)
    spelled = [spell(t, r, width) for t, r in zip(operands, ranks, strict=True)]
    if "->" not in equation:
        letters = [x for t in spelled for x in t]
        explicit = sorted({x for x in letters if not x.startswith(".") and letters.count(x) == 1})
        return spelled, (*(f".{a}" for a in range(width)), *explicit)
    return spelled, spell(right, out_rank, width)


def einsum(ctx: MapContext) -> list[Maps]:
    equation = ctx.attr("equation", "")
    equation = equation.decode() if isinstance(equation, bytes) else equation
    inputs = list(range(len(ctx.node.inputs)))
    spelled, out = terms(equation, [ctx.rank(i) for i in inputs], len(ctx.out_shape()))
    if any(len(set(t)) < len(t) for t in spelled):
        for i in inputs:
            ctx.pin(ctx.maps(i), f"repeats a label in '{equation}'")
        return ctx.nothing()
    if len(inputs) == 1:
        a = Operand(spelled[0], ctx.shape(0), named(ctx.maps(0), spelled[0]))
        return [unnamed(reduce_labels(ctx, a, out), out)]
    result = operand(ctx, 0, spelled[0])
    for n, i in enumerate(inputs[1:], 1):
        later = {x for t in spelled[n + 1 :] for x in t}
        other = operand(ctx, i, spelled[n])
        labels = tuple(dict.fromkeys([*result.labels, *other.labels]))
        kept = out if n == len(inputs) - 1 else tuple(x for x in labels if x in later or x in out)
        sizes = tuple(max(result.size(x), other.size(x)) for x in kept)
        result = Operand(kept, sizes, combine(ctx, result, other, kept, weight=True))
    return [unnamed(result.facets, out)]


def einsum_macs(cost: CostContext) -> int:
    equation = cost.attrs.get("equation", "")
    shapes = [s for s in cost.inputs if s is not None]
    if len(shapes) != len(cost.inputs) or cost.outputs[0] is None:
        return 0
    spelled, _ = terms(equation, [len(s) for s in shapes], len(cost.outputs[0]))
    sizes: dict[str, int] = {}
    for labels, shape in zip(spelled, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return prod(sizes.values()) if len(shapes) > 1 else 0


def matmul_linear(ctx: LinearContext) -> Linear | None:
    a, b = ctx.shape(0), ctx.shape(1)
    if ctx.is_constant[1] and len(b) == 2 and len(a) >= 2 and not ctx.is_constant[0]:
        return Product(b[0])
    if ctx.is_constant[0] and len(a) == 2 and len(b) >= 2 and not ctx.is_constant[1]:
        return Product(a[1], left=True, transposed=True)
    return None


def gemm_linear(ctx: LinearContext) -> Linear | None:
    alpha, beta = float(ctx.attrs.get("alpha", 1.0)), float(ctx.attrs.get("beta", 1.0))
    is_bias = not ctx.has(2) or (
        ctx.is_constant[2] and len(ctx.shape(2)) > 0 and prod(ctx.shape(2)) == ctx.shape(2)[-1]
    )
    if ctx.is_constant[0] or not ctx.is_constant[1] or not alpha or not beta or not is_bias:
        return None
    b, transposed = ctx.shape(1), bool(ctx.attrs.get("transB", 0))
    return Product(b[1 if transposed else 0], transposed, bool(ctx.attrs.get("transA", 0)), False, alpha, beta, 2)


def matmul_weights(ctx: LinearContext) -> list[tuple[int, int]]:
    """A vector on the right has one axis."""
    is_vector = ctx.has(1) and len(ctx.shape(1)) == 1
    return [(1, -1 if is_vector else -2), (0, -1)]


def gemm_weights(ctx: LinearContext) -> list[tuple[int, int]]:
    return [(1, 1 if ctx.attrs.get("transB", 0) else 0), (0, 0 if ctx.attrs.get("transA", 0) else 1)]


def einsum_weights(ctx: LinearContext) -> list[tuple[int, int]]:
    """The first axis of each operand that is summed over."""
    spelled, out = str(ctx.attrs.get("equation", "")).replace(" ", "").partition("->")[::2]
    found = []
    for i, term in enumerate(spelled.split(",")):
        summed = [k for k, label in enumerate(term) if label not in out and label != "."]
        if summed and out and "..." not in term:
            found.append((i, summed[0]))
    return found


RULES = [
    Rule(
        ("MatMul",),
        "contraction",
        matmul,
        macs=matmul_macs,
        linear=matmul_linear,
        weights=matmul_weights,
        mixing="product",
    ),
    Rule(("Gemm",), "contraction", gemm, macs=gemm_macs, linear=gemm_linear, weights=gemm_weights, mixing="product"),
    Rule(("Einsum",), "contraction", einsum, macs=einsum_macs, weights=einsum_weights, mixing="product"),
]
