"""Everything the program knows about operators, one file per family, and the rules that users register for operators of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from onnx import GraphProto

from onnxprune.errors import BadInputError
from onnxprune.groups.maps import Maps
from onnxprune.ops import (
    attention,
    control,
    conv,
    experts,
    fused,
    growing,
    indexing,
    matmul,
    misc,
    movement,
    pointwise,
    quantized,
    recurrent,
    reduction,
    sequence,
    shape,
)
from onnxprune.ops.base import MapContext, Rule

RULES: list[Rule] = [
    *pointwise.RULES,
    *movement.RULES,
    *growing.RULES,
    *conv.RULES,
    *matmul.RULES,
    *reduction.RULES,
    *indexing.RULES,
    *shape.RULES,
    *sequence.RULES,
    *control.RULES,
    *recurrent.RULES,
    *attention.RULES,
    *fused.RULES,
    *experts.RULES,
    *quantized.RULES,
    *misc.RULES,
]


RESERVED = ("", "ai.onnx", "com.microsoft")


def _key(name: str) -> tuple[str, str]:
    """Domain ("" for ai.onnx) and operator of "Conv" or "my.domain::Scale"."""
    domain, _, op = name.rpartition("::")
    return "" if domain == "ai.onnx" else domain, op


TABLE: dict[tuple[str, str], Rule] = {_key(name): rule for rule in RULES for name in rule.ops}
REGISTERED: dict[tuple[str, str], Rule] = {}


def register(rule: Rule) -> None:
    """Let every call from here on, in this process, treat operators of your own domain by `rule`.

    rule: its `ops` are written `"my.domain::Scale"`. `unregister` takes it back. Raises `BadInputError` for what is no `Rule`, an
    operator of ai.onnx or com.microsoft, one that has a rule already, or a name without a domain.
    """
    if not isinstance(rule, Rule):
        raise BadInputError(
            f"register takes an onnxprune.Rule, not {type(rule).__name__}; write register(Rule((...), ...))."
        )
    if not isinstance(rule.ops, tuple) or not rule.ops or not all(isinstance(name, str) and name for name in rule.ops):
        raise BadInputError(f"Rule.ops is {rule.ops!r}, but must be a tuple of names such as ('my.domain::Scale',).")
    if not callable(rule.maps):
        raise BadInputError(
            f"The rule of {rule.ops[0]} has no function `maps`; give one that returns the maps of each output."
        )
    for name in rule.ops:
        domain, _ = key = _key(name)
        if domain in RESERVED or key in TABLE:
            raise BadInputError(
                f"A rule for '{name}' cannot be registered: rules of {domain or 'ai.onnx'} are onnxprune's own; "
                "register operators of your own domain, written 'my.domain::Name'."
            )
        if key in REGISTERED:
            raise BadInputError(f"'{name}' has a registered rule already; take it back first with unregister.")
    if len({_key(name) for name in rule.ops}) < len(rule.ops):
        raise BadInputError(f"Rule.ops names an operator twice: {', '.join(rule.ops)}; name each once.")
    own = replace(rule, registered=True)
    REGISTERED.update({_key(name): own for name in rule.ops})


def unregister(*names: str) -> None:
    """Take back what `register` added for these operators. Raises `BadInputError` for one that was not registered."""
    for name in names:
        if REGISTERED.pop(_key(name), None) is None:
            raise BadInputError(f"'{name}' has no registered rule; registered are: {', '.join(_names()) or 'none'}.")


@contextmanager
def registered(rule: Rule) -> Iterator[None]:
    """`register`, for the time of a `with` block."""
    register(rule)
    try:
        yield
    finally:
        unregister(*rule.ops)


def _names() -> list[str]:
    return [f"{domain}::{op}" for domain, op in REGISTERED]


def unknown(ctx: MapContext) -> list[Maps]:
    """An operator without a rule keeps everything it touches."""
    domain = f" of domain '{ctx.node.domain}'" if ctx.node.domain else ""
    own = ctx.node.domain not in RESERVED
    remedy = (
        "give it one with onnxprune.register(Rule(…))" if own else "add one in onnxprune/ops (docs/contributing.md)"
    )
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            ctx.pin(ctx.maps(i), f"has no rule{domain}", remedy)
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


def unfollowed(ctx: MapContext) -> list[Maps]:
    """A node that takes a sequence of which is not known what is in it: one that a loop carries, or an input."""
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            parts = [f for maps, _ in ctx.parts(i) for f in maps]
            reason = "works on a sequence that a loop carries or that is an input, so that its tensors are not known"
            ctx.pin([*ctx.maps(i), *parts], reason, "in a loop, append to it and nothing else, or use a scan output")
    return [() for _ in ctx.node.outputs]


UNFOLLOWED = Rule((), "sequence of unknown tensors (pins)", unfollowed)
UNSEEN = Rule((), "not observed (pins)", unseen)
UNKNOWN = Rule((), "unknown (pins)", unknown)


def is_quantized(graph: GraphProto) -> bool:
    """Are there quantized values?"""
    return any(rule_for(n.op_type, n.domain).coded for n in graph.node)


def rule_for(op: str, domain: str) -> Rule:
    """The rule of an operator, built in or registered; `UNKNOWN` pins."""
    key = ("" if domain == "ai.onnx" else domain, op)
    return TABLE.get(key) or REGISTERED.get(key, UNKNOWN)
