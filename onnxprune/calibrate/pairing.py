"""Which positions of a layer are the same in two models, where values decide which there are.

A router sends tokens to experts, NonZero and TopK find positions, Gather fetches them. Row 3 of an expert's input is then one token in
the original and another in the pruned model, whose router decides differently. What decided is compared: rows fetched by the same index
are the same rows, whatever place they have got.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.calibrate.depends import dependent
from onnxprune.calibrate.stepwise import Stepwise, read_by
from onnxprune.calibrate.targets import Targets
from onnxprune.groups.maps import Shape
from onnxprune.groups.observation import Array
from onnxprune.ops import rule_for
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import Picks, Product

Pickers = dict[str, bool]
"""Tensors whose values decided where the positions of another tensor come from; True: row by row of its first axis."""


def pickers(nodes: Sequence[NodeProto], is_fixed: Callable[[str], bool]) -> dict[str, Pickers]:
    """By tensor, what picked its positions; tensors whose positions no value decides are left out.

    Bounds of a Slice that follow from sizes (half of the channels) decide none: channels that left do not count as positions.
    """
    values, _ = dependent(nodes, is_fixed)
    found: dict[str, Pickers] = {}
    for node in nodes:
        rule = rule_for(node.op_type, node.domain)
        mine: Pickers = {}
        for i in rule.picks:
            names = node.input if i >= 0 else node.output
            name = names[i if i >= 0 else -1 - i] if (i if i >= 0 else -1 - i) < len(names) else ""
            if name in values:
                mine[name] = all(a.i == 0 for a in node.attribute if a.name == "axis")
        through = rule.kind == "pointwise" or rule.linear is not None
        data = node.input[:1] if rule.places else (n for n in read_by(node) if n not in mine)
        for name in data:
            for picker, by_row in found.get(name, {}).items():
                mine[picker] = by_row and through and mine.get(picker, True)
        if mine:
            found.update((o, mine) for o in node.output if o)
    return found


@dataclass(frozen=True)
class Same:
    """Rows of the first model and of the second that are the same, of how many; None: all of them, in the same order."""

    new: Picks | None = None
    old: Picks | None = None
    sizes: tuple[int, int] = (0, 0)

    def positions(self, layer: LinearLayer, x: Array, y: Array) -> tuple[Shape, Picks, Picks]:
        """The shape of the layer's output in the first model, and the same positions there and in `y` of the second."""
        linear = layer.linear
        if self.new is not None and self.old is not None:
            if (x.shape[0], y.shape[0]) != self.sizes:
                return y.shape, NONE, NONE
            rest = linear.positions(y.shape) // max(y.shape[0], 1)
            within = np.arange(rest)
            new, old = (np.add.outer(rows * rest, within).ravel() for rows in (self.new, self.old))
            return (x.shape[0], *y.shape[1:]), new, old
        everything = np.arange(linear.positions(y.shape))
        if isinstance(linear, Product) and not linear.left and x.size // linear.width != everything.size:
            return y.shape, NONE, NONE
        return y.shape, everything, everything


NONE = np.empty(0, np.int64)


class Pairing:
    """Rows of layers in two models that run side by side. Both keep what picks them from the start."""

    def __init__(self, new: Stepwise, old: Stepwise | Targets, layers: Iterable[LinearLayer]) -> None:
        self.new, self.old = new, old
        self.found = pickers(new.nodes, new.is_constant)
        theirs = pickers(old.nodes, old.is_constant)
        self.alike = {x.y: self.found.get(x.x, {}).keys() == theirs.get(x.x, {}).keys() for x in layers}
        wanted = {name for x in layers if self.alike[x.y] for name in self.found.get(x.x, {})}
        for steps in (new, old):
            steps.keep(wanted)

    def is_picked(self, tensor: str) -> bool:
        return tensor in self.found

    def rows(self, layer: LinearLayer) -> Iterator[Same]:
        """Sample by sample."""
        picked = self.found.get(layer.x, {})
        if not self.alike[layer.y]:
            yield from (Same(NONE, NONE) for _ in range(self.new.count))
            return
        values = [zip(self.new.values(n), self.old.values(n), strict=True) for n in picked]
        linear = layer.linear
        is_plain = isinstance(linear, Product) and not linear.left and not linear.x_transposed
        for _ in range(self.new.count):
            found = [next(v) for v in values]
            if any((a is None) != (b is None) for a, b in found):
                yield Same(NONE, NONE)
                continue
            pairs = [(a, b) for a, b in found if a is not None and b is not None]
            if all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs):
                yield Same()
            elif len(pairs) == 1 and all(picked.values()) and is_plain:
                yield _matched(*(_numbers(x) for x in pairs[0]))
            else:
                yield Same(NONE, NONE)


def _numbers(index: Array) -> list[tuple[int, ...]]:
    """What each row was picked by: its entries of an index, or its place in a list of conditions."""
    rows = np.flatnonzero(index)[:, None] if index.dtype.kind == "b" else index.reshape(index.shape[0], -1)
    return [tuple(row) for row in rows.tolist()]


def _matched(new: list[tuple[int, ...]], old: list[tuple[int, ...]]) -> Same:
    """Places of what both lists have, where neither has anything twice."""
    where = {x: k for k, x in enumerate(old)}
    pairs = [(k, where[x]) for k, x in enumerate(new) if x in where]
    if len(where) < len(old) or len({k for _, k in pairs}) < len(pairs):
        return Same(NONE, NONE)
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return Same(found[:, 0], found[:, 1], (len(new), len(old)))
