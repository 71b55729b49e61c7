"""Subgraphs: both branches of an If are pruned alike; what a loop carries from step to step stays, its scan outputs do not,
nor does what it appends to a sequence in every step. What a search for the best tokens hands to its decoder and takes from it stays.

Weights inside branches and bodies are pruned like any others.
"""

from __future__ import annotations

import numpy as np

from onnxprune.groups.maps import Maps, Shape, varying
from onnxprune.model.graph import Graph
from onnxprune.ops.base import MapContext, Parts, Repeated, Rule
from onnxprune.ops.labelled import Operand, combine, named, unnamed

CARRIED = "weights inside are pruned; carried values stay"


def branches(ctx: MapContext) -> list[Maps]:
    """If: outputs of both branches are tied position by position where their shapes agree along all axes with units (a cache is longer
    where it has a past), and so are constants that both read.
    """
    then, other = ctx.subgraph("then_branch", {}), ctx.subgraph("else_branch", {})
    ctx.share_constants(("then_branch", "else_branch"), "reads it in both branches, in one of which it has to stay")
    if then is None or other is None:
        for side in (then, other):
            for maps, _ in side or []:
                ctx.pin(maps, "has a branch that could not be observed; its outputs stay as they are")
        return ctx.nothing()
    result: list[Maps] = []
    for (a, a_shape), (b, b_shape) in zip(then, other, strict=True):
        if a_shape is None or b_shape is None or not _agree(a_shape, b_shape, (*a, *b)):
            ctx.pin([*a, *b], "gives different shapes in its branches")
            result.append(())
            continue
        labels = tuple(str(x) for x in range(len(a_shape)))
        left, right = Operand(labels, a_shape, named(a, labels)), Operand(labels, b_shape, named(b, labels))
        result.append(unnamed(combine(ctx, left, right, labels, what="the other branch"), labels))
    return result


def _agree(a: Shape, b: Shape, maps: Maps) -> bool:
    """Are shapes equal, save for axes that carry no units?"""
    if len(a) != len(b):
        return False
    differ = [axis for axis, (n, m) in enumerate(zip(a, b, strict=True)) if n != m]
    return all(facet.shape[axis] == 1 for facet in maps for axis in differ)


def loop(ctx: MapContext) -> list[Maps]:
    """Loop: iterations and condition, then carried values; the body gives a condition, those values, and rows of scan outputs."""
    carried = len(ctx.node.inputs) - 2
    body = ctx.node.subgraphs.get("body")
    appended = [] if body is None else [k for k in range(carried) if _is_appended(ctx, body, k)]
    found = _body(ctx, {}, carried + 1, {body.inputs[2 + k]: () for k in appended} if body is not None else {})
    for k in appended:
        for maps, shape in ctx.parts_of(body.outputs[1 + k]) if body is not None else ():
            ctx.pin([f for f in maps if not varying(f)], "appends it as the only position of a tensor")
            ctx.build(k, Repeated(((tuple(f for f in maps if varying(f)), shape),)))
    rows = [tuple(f[None] for f in maps) for maps, _ in found[carried + 1 :]]
    return [*[()] * carried, *rows]


def _is_appended(ctx: MapContext, body: Graph, k: int) -> bool:
    """Is carried value `k` an empty sequence that each step does nothing with but put a tensor at its end?"""
    if not ctx.is_sequence(2 + k) or ctx.parts(2 + k):
        return False
    before, after = body.inputs[2 + k], body.outputs[1 + k]
    readers = [n for n in body.walk() if before in n.inputs]
    made = [n for n in body.nodes if after in n.outputs and n.op == "SequenceInsert" and n.inputs[0] == before]
    kept = [*body.outputs].count(before) == 0 and [*body.outputs].count(after) == 1
    return kept and len(readers) == len(made) == 1 and len([i for i in made[0].inputs if i]) == 2


def scan(ctx: MapContext) -> list[Maps]:
    """Scan: carried values, then inputs of which the body gets one position after the other; scan outputs as of a Loop."""
    body, count = ctx.node.subgraphs.get("body"), int(ctx.attr("num_scan_inputs", 0))
    if body is None or ctx.opset < 9:  # an axis of the batch, and lengths before all
        _body(ctx, {}, None)
        return ctx.nothing()
    carried = len(ctx.node.inputs) - count
    axes = ctx.attr("scan_input_axes") or [0] * count
    inputs: dict[str, Maps] = {}
    for i, axis in enumerate(axes, carried):
        axis = int(axis) % ctx.rank(i)
        kept = () if ctx.is_lazy(i) else ctx.pin_axes(i, (axis,), "goes along it step by step")
        inputs[body.inputs[i]] = tuple(f.squeeze(axis) for f in kept)
    found = _body(ctx, inputs, carried)
    outputs: list[Maps] = [()] * carried
    directions = ctx.attr("scan_output_axes") or [0] * max(0, len(found) - carried)
    for axis, (maps, shape) in zip(directions, found[carried:], strict=False):
        where = int(axis) % (len(shape or ()) + 1)
        outputs.append(tuple(np.expand_dims(f, where) for f in maps))
    return outputs


def search(ctx: MapContext) -> list[Maps]:
    """BeamSearch and its like: what they hand to their bodies and take from them stays (tokens, masks, caches, logits), nothing else."""
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i):
            ctx.pin(ctx.maps(i), "searches with it")
    for name in ctx.node.subgraphs:
        for maps, _ in ctx.subgraph(name, {}) or []:
            ctx.pin(maps, f"reads it from its {name}")
    ctx.share_constants(
        ("init_decoder", "decoder"), "reads it in the first step and in the others, in one of which it has to stay"
    )
    return ctx.nothing()


def _body(
    ctx: MapContext, inputs: dict[str, Maps], carried: int | None, parts: dict[str, Parts] | None = None
) -> list[tuple[Maps, Shape | None]]:
    """Outputs of the body, of which the first `carried` (None: all) stay as they are, as do all inputs that are not in `inputs`.

    parts: inputs that are sequences, with what is in them; what is in others stays.
    """
    body = ctx.node.subgraphs.get("body")
    names = dict(enumerate(body.inputs)) if body is not None else {}
    for i in range(len(ctx.node.inputs)):
        if ctx.has(i) and not ctx.is_lazy(i) and names.get(i) not in inputs:
            ctx.pin([*ctx.maps(i), *(f for maps, _ in ctx.parts(i) for f in maps)], "carries it from step to step")
    found = ctx.subgraph("body", inputs, parts) or []
    for maps, _ in found[:carried]:
        ctx.pin(maps, "carries it from step to step")
    return found


RULES = [
    Rule(("If",), "control flow", branches),
    Rule(("Loop",), "control flow", loop, note=CARRIED, sequences=(), sized_by=(0, 1)),
    Rule(("Scan",), "control flow", scan, note=CARRIED),
    Rule(
        tuple(f"com.microsoft::{op}" for op in ("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch")),
        "control flow",
        search,
        note="weights inside are pruned; caches stay",
        sized_by=None,
    ),
]
