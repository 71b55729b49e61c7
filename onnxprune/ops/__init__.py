"""Everything the program knows about operators, one file per family."""

from __future__ import annotations

from onnx import GraphProto

from onnxprune.groups.maps import Maps
from onnxprune.ops import (
    attention,
    control,
    conv,
    fused,
    indexing,
    matmul,
    misc,
    movement,
    pointwise,
    quantized,
    recurrent,
    reduction,
    shape,
)
from onnxprune.ops.base import MapContext, Rule

RULES: list[Rule] = [
    *pointwise.RULES,
    *movement.RULES,
    *conv.RULES,
    *matmul.RULES,
    *reduction.RULES,
    *indexing.RULES,
    *shape.RULES,
    *control.RULES,
    *recurrent.RULES,
    *attention.RULES,
    *fused.RULES,
    *quantized.RULES,
    *misc.RULES,
]


def _table() -> dict[tuple[str, str], Rule]:
    table: dict[tuple[str, str], Rule] = {}
    for rule in RULES:
        for name in rule.ops:
            domain, _, op = name.rpartition("::")
            table[domain, op] = rule
    return table


TABLE = _table()


def unknown(ctx: MapContext) -> list[Maps]:
    """An operator without a rule keeps everything it touches."""
    domain = f" of domain '{ctx.node.domain}'" if ctx.node.domain else ""
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            ctx.pin(ctx.maps(i), f"has no rule{domain}", "add one in onnxprune/ops (README, 'Contributing')")
    return [() for _ in ctx.node.outputs]


def unseen(ctx: MapContext) -> list[Maps]:
    """A node whose tensors have no observed shape: a branch that was not taken, a sequence."""
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            ctx.pin(
                ctx.maps(i),
                "was not observed (a branch not taken, or no tensor)",
                "give inputs that reach it with --data",
            )
    return [() for _ in ctx.node.outputs]


UNSEEN = Rule((), "not observed (pins)", unseen)
UNKNOWN = Rule((), "unknown (pins)", unknown)


def is_quantized(graph: GraphProto) -> bool:
    """Are there quantized values?"""
    return any(rule_for(n.op_type, n.domain).coded for n in graph.node)


def rule_for(op: str, domain: str) -> Rule:
    """The rule of an operator; `UNKNOWN` pins."""
    return TABLE.get(("" if domain == "ai.onnx" else domain, op), UNKNOWN)
