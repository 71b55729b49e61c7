"""A callback of a rule that raises is a bug; it must not end the run of somebody who only wants a smaller model.

What can be survived goes on with a cautious answer and is told as a warning; with `ONNXPRUNE_STRICT` set the exception is raised.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from onnx import NodeProto

from onnxprune.errors import RuleError
from onnxprune.groups.units import Pin
from onnxprune.ops.base import MapContext, Rule

STRICT = "ONNXPRUNE_STRICT"
BUILT_IN = "this is a bug of onnxprune, please report it"
REGISTERED = "mend the rule that was registered for it"
Answer = TypeVar("Answer")
Other = TypeVar("Other")

_sentences: ContextVar[list[str] | None] = ContextVar("sentences", default=None)


def begin() -> None:
    """Forget the failures of earlier runs; every entry of the API that tells them calls this first."""
    _sentences.set([])


def seen() -> tuple[str, ...]:
    """The failures since `begin`, one sentence each."""
    return tuple(dict.fromkeys(_sentences.get() or ()))


def label(node: NodeProto) -> str:
    """Operator and name of a node, as `str(Node)` writes them."""
    return f"{node.op_type} '{node.name or next((o for o in node.output if o), '')}'"


def is_strict() -> bool:
    return bool(os.environ.get(STRICT))


def sentence(rule: Rule, callback: str, node: str, error: Exception) -> str:
    """callback: the field of the rule that raised. node: operator and name, as `str(Node)` gives them."""
    op, _, name = node.partition(" ")
    part = "rule" if callback == "maps" else f"`{callback}` of the rule"
    on = f" on node {name}" if name else ""
    what = f"{type(error).__name__}: {error}".rstrip(".: ")
    return f"the {part} of {op} failed{on}: {what}; {REGISTERED if rule.registered else BUILT_IN}"


def attempt(rule: Rule, callback: str, node: str, call: Callable[[], Answer], otherwise: Other) -> Answer | Other:
    """What `call` gives, or `otherwise` where it raises."""
    try:
        return call()
    except Exception as error:
        if is_strict():
            raise
        note(sentence(rule, callback, node, error))
        return otherwise


def must(rule: Rule, callback: str, node: str, call: Callable[[], Answer]) -> Answer:
    """What `call` gives; raises `RuleError` where it raises, as going on would give a wrong model."""
    try:
        return call()
    except Exception as error:
        if is_strict():
            raise
        text = sentence(rule, callback, node, error)
        raise RuleError(
            f"{text[:1].upper()}{text[1:]}; nothing is written, leave the node alone with --exclude."
        ) from error


def note(text: str) -> None:
    if _sentences.get() is None:
        begin()
    found = _sentences.get()
    assert found is not None
    found.append(text)


def pin_everything(ctx: MapContext, text: str, issued: int) -> None:
    """Pin what the inputs carry, and all units from id `issued` on, which the failed rule (or a subgraph of the node) made."""
    ctx.given.clear()
    ctx.built.clear()
    pin = Pin(ctx.node.key, text)
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            for facet in ctx.maps(i):
                ctx.units.pin(facet.ravel(), pin)
            for maps, _ in ctx.parts(i):
                for facet in maps:
                    ctx.units.pin(facet.ravel(), pin)
    ctx.units.pin_from(issued, pin)
