"""Subgraphs: both branches of an If are pruned alike; what a loop carries from step to step stays.

Weights inside branches and bodies are pruned like any others.
"""

from __future__ import annotations

from onnxprune.groups.maps import Maps
from onnxprune.ops.base import MapContext, Rule
from onnxprune.ops.labelled import Operand, combine, named, unnamed


def branches(ctx: MapContext) -> list[Maps]:
    """If: outputs of both branches are tied position by position where their shapes agree, and so are constants that both read."""
    then, other = ctx.subgraph("then_branch", {}), ctx.subgraph("else_branch", {})
    ctx.share_constants(("then_branch", "else_branch"), "reads it in both branches, in one of which it has to stay")
    if then is None or other is None:
        for side in (then, other):
            for maps, _ in side or []:
                ctx.pin(maps, "has a branch that could not be observed; its outputs stay as they are")
        return ctx.nothing()
    result: list[Maps] = []
    for (a, a_shape), (b, b_shape) in zip(then, other, strict=True):
        if a_shape is None or b_shape is None or a_shape != b_shape:
            ctx.pin([*a, *b], "gives different shapes in its branches")
            result.append(())
            continue
        labels = tuple(str(x) for x in range(len(a_shape)))
        left, right = Operand(labels, a_shape, named(a, labels)), Operand(labels, b_shape, named(b, labels))
        result.append(unnamed(combine(ctx, left, right, labels, what="the other branch"), labels))
    return result


def loop(ctx: MapContext) -> list[Maps]:
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            ctx.pin(ctx.maps(i), "carries it from step to step")
    for maps, _ in ctx.subgraph("body", {}) or []:
        ctx.pin(maps, "carries it from step to step")
    return ctx.nothing()


RULES = [
    Rule(("If",), "control flow", branches),
    Rule(("Loop", "Scan"), "control flow", loop, note="weights inside are pruned; carried values stay"),
]
