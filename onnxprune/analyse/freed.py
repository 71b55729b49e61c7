"""Inputs and outputs whose axes may shrink (`--free`): which they are, and how their units hang together.

A freed input gets units of its own along every static axis, as a weight does; what it meets ties them. Its axis shrinks only where
a weight does with it: a batch or a length that happens to be static stays. A freed output is cut as inner tensors are, but the same
positions leave all of its rows, so that whoever feeds or reads the model slices whole axes.

An input and an output that are one state, before a step and after it, are a *pair*: their axes are tied, so that what one step gives
can be fed to the next. Pairs are told by their names (`past_key_values.0.key` and `present.0.key`), or by the user (`h=h_out`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from onnx import ModelProto

from onnxprune.errors import BadInputError
from onnxprune.groups.classes import Bools
from onnxprune.groups.maps import Facet, Maps, Shape, per_axis, varying
from onnxprune.groups.units import Ids, Pin, UnitTable
from onnxprune.model.element_types import NUMBERS
from onnxprune.model.interface import KEY
from onnxprune.runtime import graph_inputs

IsDynamic = Callable[[str, int], bool]
# what tells a state before a step from the one after it, once each is replaced by nothing but its place
BEFORE = r"past(?:_key_values?)?|(?<![a-z])in(?:put)?(?![a-z])|(?<![a-zA-Z])([hc])_?0(?![0-9])"
AFTER = r"present(?:_key_values?)?|(?<![a-z])out(?:put)?(?![a-z])|(?<![a-zA-Z])([hc])_?n(?![a-zA-Z])"


@dataclass(frozen=True)
class Freed:
    """Names of inputs and outputs whose axes may shrink; pairs (input, output) of one state among them."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


NOTHING = Freed()


def freed(proto: ModelProto, patterns: Sequence[str]) -> Freed:
    """What patterns such as `present.*` and pairs such as `h=h_out` free. Raises `BadInputError` for one that names
    nothing, and for a file that says itself what shrank (`model/interface.py`).
    """
    if any(p.key == KEY for p in proto.metadata_props):
        raise BadInputError(f"The model has a metadata entry '{KEY}', which is reserved; remove the entry.")
    inputs = [v.name for v in graph_inputs(proto)]
    outputs = [v.name for v in proto.graph.output]
    free: set[str] = set()
    given: list[tuple[str, str]] = []
    for pattern in patterns:
        found = {n for n in (*inputs, *outputs) if fnmatchcase(n, pattern)}
        before, _, after = pattern.partition("=")
        if not found and before in inputs and after in outputs:
            given.append((before, after))
            found = {before, after}
        if not found:
            raise BadInputError(_unmatched(pattern, [*inputs, *outputs]))
        free |= found
    own_in, own_out = tuple(n for n in inputs if n in free), tuple(n for n in outputs if n in free)
    return Freed(own_in, own_out, (*given, *_named_pairs(own_in, own_out, given)))


def _unmatched(pattern: str, names: Sequence[str]) -> str:
    near = get_close_matches(pattern, names, 1, cutoff=0.0)
    return (
        f"--free '{pattern}' matches no input and no output of the model; the nearest is '{near[0]}'."
        if near
        else f"--free '{pattern}' matches nothing: the model has no inputs and outputs that have a name."
    )


def _named_pairs(
    inputs: Sequence[str], outputs: Sequence[str], given: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Names that differ only in which side of a step they are on."""
    taken = {n for pair in given for n in pair}
    after = {_stem(AFTER, n): n for n in outputs if n not in taken and re.search(AFTER, n)}
    before = {n: _stem(BEFORE, n) for n in inputs if n not in taken and re.search(BEFORE, n)}
    return tuple((n, after[stem]) for n, stem in before.items() if stem in after)


def _stem(pattern: str, name: str) -> str:
    return re.sub(pattern, lambda m: f"<{m.group(1) or ''}>", name)


# ---------------------------------------------------------------- units


def admit(
    units: UnitTable, free: Freed, shapes: Mapping[str, Shape], kinds: Mapping[str, str], is_dynamic: IsDynamic
) -> dict[str, Maps]:
    """Units along every static axis of the freed inputs of numbers, by name."""
    found = {}
    for name in free.inputs:
        if kinds.get(name, "") in NUMBERS and name in shapes:
            static = [1 if is_dynamic(name, a) else n for a, n in enumerate(shapes[name])]
            found[name] = per_axis(tuple(static), units.issue)
    return found


def release(units: UnitTable, name: str, maps: Maps, is_dynamic: IsDynamic) -> None:
    """Let a freed output shrink: what lies along axes of fixed size may leave, whole rows or the same positions of all."""
    for facet in maps:
        axes = varying(facet)
        dynamic = [a for a in axes if is_dynamic(name, a)]
        if dynamic:
            reason = f"graph output '{name}' has them in axis {dynamic[0]}, whose size changes with the inputs"
            units.pin(facet.ravel(), Pin(name, reason))
        elif len(axes) > 1:
            units.align_rows(facet, axes[:-1])


def tie_pair(
    units: UnitTable, pair: tuple[str, str], maps: tuple[Maps, Maps], shapes: tuple[Shape, Shape], is_dynamic: IsDynamic
) -> None:
    """The axes of a state after a step shrink as those before it. Axes of two sizes (a length that grows) are left alone."""
    before, after = pair
    if len(shapes[0]) != len(shapes[1]):
        raise BadInputError(
            f"--free {before}={after}: they have {len(shapes[0])} and {len(shapes[1])} axes, so one cannot be fed as the other."
        )
    for facet in maps[0]:
        axis = varying(facet)[0]  # those of an input have one each
        if shapes[0][axis] != shapes[1][axis] or is_dynamic(after, axis):
            continue
        pin = Pin(before, f"'{after}', which is fed as '{before}' in the next step, keeps axis {axis}")
        theirs = [f for f in maps[1] if axis in varying(f)]
        if not theirs:
            units.pin(facet.ravel(), pin)
        for other in theirs:
            axes = varying(other)
            if axes == (axis,):
                units.tie(facet, other, pin)
            elif axis == axes[-1]:
                units.tie(facet, units.column(other, axes[:-1]), pin)
            else:
                units.row(other, facet)


def offer(units: UnitTable, inputs: Mapping[str, Maps], read: Sequence[Facet]) -> None:
    """Units of freed inputs can be removed where a weight loses them too; the others stay.

    read: maps of constants.
    """
    classes = np.append(units.components(), -1)
    made = _reached(units, classes, [ids for ids, _ in units.issues])
    known = _reached(units, classes, [ids.ravel() for ids in read]) | made
    for name, maps in inputs.items():
        for facet in maps:
            ids = facet.ravel()
            if not known[classes[ids]].any():
                axis = varying(facet)[0]
                units.pin(ids, Pin(name, f"axis {axis} of input '{name}' is tied to no weight"))
            elif not made[classes[ids]].any():
                units.issues.append((ids, f"input '{name}'"))


def _reached(units: UnitTable, classes: Ids, start: Sequence[Ids]) -> Bools:
    """Per class, with one more entry for no unit: is one of these units in it, in a row of it, or is it a row of theirs?"""
    found = np.zeros(int(classes.max(initial=-1)) + 2, bool)
    for ids in start:
        found[classes[ids]] = True
    rows = [(classes[child], classes[parent]) for child, parent in units.rows]
    while True:
        found[-1] = False
        before = int(found.sum())
        for child, parent in rows:
            found[parent[found[child]]] = True
            found[child[found[parent]]] = True
        found[-1] = False
        if int(found.sum()) == before:
            return found
