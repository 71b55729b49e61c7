"""What a rule is, and what it may ask for.

A `Rule` holds everything the rest of the program knows about an operator: how index maps pass through it
(`maps`), which inputs carry shapes or indices (`params`), what of the node follows a removal (`adjust`), and what it costs (`macs`).
Rules state relations; the rest of the program acts on them.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from onnxprune.groups.maps import Facet, Maps, Shape, expand_axes, pad_rank, per_axis, simplify, varying
from onnxprune.groups.observation import Array
from onnxprune.groups.units import Pin, UnitTable
from onnxprune.model.graph import Graph, Node
from onnxprune.ops.edit import Edit, MaskEdit
from onnxprune.ops.linear import LinearContext, LinearRule

Mixing = Literal["copy", "sum", "scale", "product"]
INEXACT_REMEDY = "prune it approximately with --include-inexact"
FREE_REMEDY = "let it shrink with --free '{}'"


@dataclass(frozen=True)
class Rule:
    """One operator (or several that behave alike). Only `maps` is needed; without the rest less is known, never something wrong.

    A *unit* is what pruning can remove (a channel, a head); a *facet* is an integer array that says which unit a position of a tensor
    belongs to. It has the rank of its tensor, and along each axis either the tensor's size or 1, where the axis does not matter: the
    channels of an `[N, C, H, W]` activation are a facet of shape `[1, C, 1, 1]`. -1 is no unit. The *maps* of a tensor are a tuple of
    facets; a position goes as soon as one of its units goes, and an empty tuple means that nothing of the tensor can go.

    ops: names, `"Conv"` for ai.onnx or `"com.microsoft::FusedConv"`.
    kind: the family, for `onnxprune ops`.
    maps: gets a `MapContext`; returns one maps tuple per output of the node, facets as above. What it ties or pins is in the context.
    params: positions of inputs whose *values* matter (shapes, axes, indices); they carry no units.
    adjust: gets an `Edit`, changes attributes and parameter inputs after a removal and returns nothing; None when nothing of the node
        can change. Weights are sliced by their maps, without it. It is called only for nodes with an input or output that shrinks.
    macs: gets a `CostContext`; returns the multiply-accumulates of the node as an int. None counts as 0.
    typed: the dtype of the first output is observed, for rules whose adjustment inserts arithmetic.
    rounded: the channels are worth rounding to what the runtime's kernels like.
    reference: changes the masked original where removal is approximate (statistics of the kept positions only).
    carries_shape: the output is a shape: what integer operators make of it carries no units.
    alias: the output of a constant is that constant (exporters share weights through Identity).
    linear: gets a `LinearContext`; returns a `Product` or `Sliding` (`ops/linear.py`), the node as a matrix product with constant weights,
        or None where it is none. Data-driven scores, repair and sparsity of the weights need it.
    step: gets attributes and constant inputs behind the first; returns the factor of "output = factor x first input + constant", shape
        `[]` or `[C]`.
    adds: the output is the sum of its two inputs.
    coded: the output is a quantized code, or decoded from one: behind it a constant is not stored as the numbers it is.
    rounds: the output is the first input, rounded to codes. What is decoded behind it is still stored as the numbers it is (fake
        quantization).
    encode: what the first input has to be for the output to become (about) a value, from attributes and inputs: codes for a decoder,
        the value moved back for a movement; None where there is none.
    random: the output is drawn anew in every run, or may be.
    picks: inputs whose values decide which positions of the others the outputs have (indices, conditions); -1, -2, … stand for outputs
        that say so. places: whatever is written there, positions of the output are those of the first input.
    sized_by: inputs whose values decide how large an output is; None where the values of all that it reads do.
    whole: the outputs are whole numbers or answers, so that a small change of what the node reads changes them by one or not at all; or a
        function of the attributes that says so.
    weights: gets a `LinearContext`; returns `(input, contracted axis)` of each operand that it multiplies by, where `linear` does not
        cover it.
    idle: gets an `IdleContext`; returns True where the node certainly gives its first input back, and may be taken out.
    mixing: how units of one axis pass, where a linear map of them passes too (`choose/mix.py`): `copy` (values move), `sum` (each unit
        of the output is the same sum over that unit of all inputs), `scale` (units are multiplied by what does not tell them
        apart), `product` (of matrices). It holds whatever the attributes are; else it is a function of them.
    eight_bit: gets the operator's name; returns, for each operand of 8 bits that may be signed or not: its input, that of its zero point,
        that of the zero point of what it is multiplied by (None where that is always unsigned).
    sequences: the outputs that are sequences of tensors, for rules that follow their parts (`ctx.parts`, `ctx.build`); None where the
        operator takes and gives tensors only, and whatever lies in a sequence that it reads stays.
    repeats: a function of the context and an axis of the output: may what lies there once per sample (heads behind a dynamic batch) leave
        it? Where `adjust` has the sizes that the node is told follow (`Edit.patch_sizes`); by default so where there is no `adjust`.
    registered: set by `onnxprune.register`; not part of a rule that one writes.
    """

    ops: tuple[str, ...]
    kind: str
    maps: Callable[[MapContext], list[Maps]]
    params: tuple[int, ...] = ()
    adjust: Callable[[Edit], None] | None = None
    macs: Callable[[CostContext], int] | None = None
    typed: bool = False
    note: str = ""
    rounded: bool = False
    reference: Callable[[MaskEdit], None] | None = None
    carries_shape: bool = False
    alias: bool = False
    linear: LinearRule | None = None
    step: Callable[[dict[str, Any], list[Array]], Array] | None = None
    adds: bool = False
    coded: bool = False
    rounds: bool = False
    encode: Callable[[dict[str, Any], Array, list[Array]], Array | None] | None = None
    random: bool = False
    picks: tuple[int, ...] = ()
    places: bool = False
    sized_by: tuple[int, ...] | None = ()
    whole: bool | Callable[[dict[str, Any]], bool] = False
    weights: Callable[[LinearContext], list[tuple[int, int]]] | None = None
    idle: Callable[[IdleContext], bool] | None = None
    mixing: Mixing | Callable[[dict[str, Any]], Mixing | None] | None = None
    eight_bit: Callable[[str], list[tuple[int, int, int | None]]] | None = None
    sequences: tuple[int, ...] | None = None
    repeats: Callable[[MapContext, int], bool] | None = None
    registered: bool = False

    def decides_size(self, i: int) -> bool:
        """Can the value of input `i` change the size of an output?"""
        return self.sized_by is None or i in self.sized_by

    def is_whole(self, attrs: dict[str, Any]) -> bool:
        """Of a node with these attributes."""
        return self.whole(attrs) if callable(self.whole) else self.whole

    def mixing_of(self, attrs: dict[str, Any]) -> Mixing | None:
        """Of a node with these attributes."""
        return self.mixing(attrs) if callable(self.mixing) else self.mixing


@dataclass(frozen=True)
class CostContext:
    """Shapes of one node's inputs and outputs (None where skipped or unknown) and its attributes."""

    attrs: dict[str, Any]
    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]


Dims = tuple[int | str | None, ...]
Parts = tuple[tuple[Maps, Shape], ...]
"""Maps and shape of each tensor of a sequence."""


class Repeated(Parts):
    """A sequence of any number of tensors that all have the maps of its one part: what a loop appended in every step."""


@dataclass(frozen=True)
class IdleContext:
    """One node, for `idle`: attributes, which inputs it has, and what is certain of them.

    value: of an input that is constant, else None. shape, out_shape: of the first input and output, sizes as numbers or symbols; None
    where unknown. kind: element type of the first input.
    """

    attrs: dict[str, Any]
    inputs: tuple[bool, ...]
    value: Callable[[int], Array | None]
    shape: Dims | None
    out_shape: Dims | None
    kind: int | None
    opset: int

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i]

    def keeps_shape(self) -> bool:
        return self.shape is not None and self.shape == self.out_shape and None not in self.shape

    def is_all(self, i: int, number: int) -> bool:
        """Is input `i` a constant with no other entries than `number`?"""
        value = self.value(i) if self.has(i) else None
        return value is not None and bool((value == number).all())


class MapContext:
    """What a `maps` rule sees of one node: `node`, `attrs`, the `opset` of its domain, and of inputs (`i`) and outputs (`k`) the shapes
    that were observed (all concrete), the maps, and the values of `params`.

    Constants are *lazy*: a rule either gives a constant the facets it needs (`give`), or asks for its maps and
    gets one facet of fresh units per axis. Every use of a constant has its own units, so that weights shared by
    several layers can be cut differently.
    """

    def __init__(
        self,
        node: Node,
        *,
        shapes: dict[str, Shape],
        lazy: dict[str, str],
        state: dict[str, Maps],
        parts: dict[str, Parts],
        values: Callable[[str], Array | None],
        units: UnitTable,
        opset: int,
        walk: Callable[[Graph, dict[str, Maps], dict[str, Parts]], list[tuple[Maps, Shape | None]] | None],
        share: Callable[[list[Graph], Pin], None],
        indices: set[str],
        is_dynamic: Callable[[str, int], bool],
        per_sample: Callable[[str, int], int],
        entries: Callable[[str], list[int | None]],
        held: Container[str] = (),
    ) -> None:
        self.node = node
        self.attrs = node.attrs
        self.units = units
        self.opset = opset
        self._shapes = shapes
        self._lazy = lazy
        self._state = state
        self._parts = parts
        self._values = values
        self._walk = walk
        self._share = share
        self._indices = indices
        self._is_dynamic = is_dynamic
        self._per_sample = per_sample
        self._entries = entries
        self._held = held
        self.given: dict[int, Maps] = {}
        self.built: dict[int, Parts] = {}

    # -- what is there

    def has(self, i: int) -> bool:
        return i < len(self.node.inputs) and self.node.inputs[i] != ""

    def shape(self, i: int) -> Shape:
        return self._shapes[self.node.inputs[i]]

    def out_shape(self, k: int = 0) -> Shape:
        return self._shapes[self.node.outputs[k]]

    def rank(self, i: int = 0) -> int:
        return len(self.shape(i))

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def value(self, i: int) -> Array | None:
        """The value of a parameter input: constant, or observed and equal for both feeds."""
        return self._values(self.node.inputs[i]) if self.has(i) else None

    def entries(self, i: int) -> list[int | None]:
        """The numbers of a parameter input, None where they change with the inputs; [] where unknown."""
        found = self.value(i)
        return self._entries(self.node.inputs[i]) if found is None else [int(x) for x in found.ravel()]

    def axis(self, default: int = 0, name: str = "axis", rank: int | None = None) -> int:
        axis = int(self.attr(name, default))
        return axis % max(1, self.rank() if rank is None else rank)

    def is_lazy(self, i: int) -> bool:
        """True for a constant, whose facets this rule may choose."""
        return self.has(i) and self.node.inputs[i] in self._lazy and i not in self.given

    def is_dynamic_out(self, axis: int, k: int = 0) -> bool:
        """True when the size of an output's axis follows the inputs."""
        return self._is_dynamic(self.node.outputs[k], axis)

    def grown(self, axis: int) -> Facet | None:
        """Fresh units along an axis of the first output that the node makes longer. Where its size follows the inputs, as many as other
        tensors are known to have along such an axis for every sample; None where that is nowhere known.
        """
        shape = self.out_shape()
        if not self.is_dynamic_out(axis):
            return self.fresh(shape, (axis,))
        count = self._per_sample(self.node.outputs[0], axis)
        if count < 2:
            return None
        one = self.fresh(tuple(count if a == axis else 1 for a in range(len(shape))), (axis,))
        return np.concatenate([one] * (shape[axis] // count), axis=axis)

    def offers(self, i: int) -> bool:
        """False for constants of indices and flags, which have no units of their own."""
        return self.node.inputs[i] not in self._indices

    def maps(self, i: int) -> Maps:
        """The maps of input `i`; a lazy constant gets fresh units along every axis."""
        if not self.has(i):
            return ()
        if i in self.given:
            return self.given[i]
        key = self.node.inputs[i]
        if key in self._lazy and not self.offers(i):
            return ()
        if key in self._lazy:
            self.given[i] = per_axis(self.shape(i), lambda n: self.units.issue(n, str(self.node)))
            return self.given[i]
        return self._state.get(key, ())

    def give(self, i: int, facets: list[Facet] | Maps) -> None:
        """Set the facets of a lazy constant, in its own axes."""
        self.given[i] = tuple(f for f in simplify(facets) if f.size > 1)

    def parts(self, i: int) -> Parts:
        """The tensors of a sequence; none of a tensor."""
        return self.parts_of(self.node.inputs[i])

    def parts_of(self, key: str) -> Parts:
        """The same of any tensor that has been walked, such as an output of a subgraph."""
        return self._parts.get(key, ())

    def is_sequence(self, i: int) -> bool:
        """Is input `i` a sequence of which all parts are known?"""
        return self.node.inputs[i] in self._parts

    def build(self, k: int, parts: Parts) -> None:
        """Say what is in an output that is a sequence."""
        self.built[k] = parts

    # -- what a rule can say

    def pin(self, facets: Maps | list[Facet], reason: str, remedy: str = "") -> None:
        for facet in facets:
            self.units.pin(facet.ravel(), self.because(reason, remedy))

    def because(self, reason: str, remedy: str = "") -> Pin:
        return Pin(self.node.key, f"{self.node} {reason}", remedy)

    def unmatched(self, reason: str) -> Pin:
        """A pin because an operand has no units, or none that may go. Where one is a graph input, freeing it is the remedy."""
        held = [key for key in self.node.inputs if key and key in self._held]
        named = [key for key in held if f"'{key}'" in reason] or held
        return self.because(reason, FREE_REMEDY.format(named[0]) if named else "")

    def approximate(self, facet: Facet, axes: tuple[int, ...], reason: str) -> None:
        """The node takes statistics along `axes`: what leaves without all of its row there changes them."""
        if any(facet.shape[a] > 1 for a in axes):
            others = [a for a in range(facet.ndim) if a not in axes]
            rows = facet.transpose([*others, *axes]).reshape(prod(facet.shape[a] for a in others), -1)
            self.units.approximate(rows, self.because(reason, INEXACT_REMEDY))

    def pin_axes(self, i: int, axes: tuple[int, ...], reason: str) -> Maps:
        """Pin the facets of input `i` that vary along `axes`; return the others."""
        free = []
        for facet in self.maps(i):
            if any(facet.shape[a] > 1 for a in axes):
                self.pin([facet], reason)
            else:
                free.append(facet)
        return tuple(free)

    def whole_axes(self, i: int, axes: tuple[int, ...], reason: str) -> Maps:
        """The node looks at `axes` as a whole: units along them alone stay; rows along other axes go with all of `axes`."""
        maps = self.maps(i)
        apart = tuple(f for f in maps if any(a not in axes for a in varying(f)))
        self.pin([f for f in maps if not any(f is g for g in apart)], reason)
        return self.flat_axes(apart, axes)

    def flat_axes(self, maps: Maps, axes: tuple[int, ...]) -> Maps:
        """Tie positions along `axes`, along which the operator cannot tell units apart (space, time)."""
        result = []
        for facet in maps:
            mixed = tuple(a for a in axes if facet.shape[a] > 1)
            result.append(self.units.align(facet, mixed) if mixed else facet)
        return simplify(result)

    def fresh(self, shape: Shape, axes: tuple[int, ...], origin: bool = False) -> Facet:
        """New units along `axes` (jointly) of a tensor of `shape`."""
        side = tuple(shape[a] if a in axes else 1 for a in range(len(shape)))
        return self.units.issue(int(np.prod(side)), str(self.node) if origin else "").reshape(side)

    def subgraph(
        self, name: str, inputs: dict[str, Maps], parts: dict[str, Parts] | None = None
    ) -> list[tuple[Maps, Shape | None]] | None:
        """Maps and shapes of a subgraph's outputs after walking it; None where it was not observed.

        inputs, parts: the maps of its inputs by name, and what is in those that are sequences. An output that is one has no shape.
        """
        return self._walk(self.node.subgraphs[name], inputs, parts or {}) if name in self.node.subgraphs else None

    def share_constants(self, names: tuple[str, ...], reason: str) -> None:
        """A constant that several of these subgraphs read, each in the same place of its own, is cut in all of them alike."""
        self._share([self.node.subgraphs[n] for n in names if n in self.node.subgraphs], self.because(reason))

    def pass_through(self, i: int = 0) -> Maps:
        """The maps of input `i`, brought to the rank of the output."""
        rank = len(self.out_shape())
        return tuple(pad_rank(f, rank) if f.ndim < rank else f for f in self.maps(i))

    def nothing(self) -> list[Maps]:
        return [() for _ in self.node.outputs]


def weights_at(*places: tuple[int, int]) -> Callable[[LinearContext], list[tuple[int, int]]]:
    """A `weights` rule for fixed inputs and axes."""
    return lambda ctx: list(places)


def move(ctx: MapContext, i: int, operation: Callable[[Facet, Shape], Facet], expand: tuple[int, ...] = ()) -> Maps:
    """Apply a numpy operation to every facet, expanded along `expand` where it varies there at all."""
    shape = ctx.shape(i)
    result = []
    for facet in ctx.maps(i):
        axes = tuple(a for a in expand if any(facet.shape[b] > 1 for b in expand))
        result.append(operation(expand_axes(facet, shape, axes), shape))
    return simplify(result)


__all__ = [
    "FREE_REMEDY",
    "INEXACT_REMEDY",
    "CostContext",
    "Dims",
    "Edit",
    "IdleContext",
    "MapContext",
    "MaskEdit",
    "Rule",
    "move",
    "varying",
    "weights_at",
]
